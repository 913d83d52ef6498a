"""`benchmark.py --part core`: the mean cross-entropy of integer labels, each library called as its users call it."""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import softjax
from benchmarks import timing
from benchmarks.settings import Config
from benchmarks.timing import Call


class Contender(NamedTuple):
    """One call to time. `call` returns when its result is ready."""

    library: str
    quantity: str
    call: Call
    temporary_bytes: int | None = None  # the compiler's figure: memory in addition to arguments and results


Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softjax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return softjax.cross_entropy(logits, labels)


def optax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def contenders(logits: jax.Array, labels: jax.Array, torch_threads: int) -> Iterator[Contender]:
    for library, loss in {"softjax": softjax_loss, "optax": optax_loss}.items():
        yield compile_contender(library, "value", loss, logits, labels)
        yield compile_contender(library, "value and gradient", jax.value_and_grad(loss), logits, labels)
        yield Contender(library, "eager value", blocking_call(loss, logits, labels))
        yield Contender(library, "eager gradient", blocking_call(jax.grad(loss), logits, labels))
    yield from torch_contenders(logits, labels, torch_threads)
    # The lower bound of the gradient: it has to read the logits and write an array of their size.
    yield compile_contender("read and write", "pass", lambda x: x * 2, logits)


def compile_contender(library: str, quantity: str, function: Callable[..., Any], *arrays: jax.Array) -> Contender:
    jitted = jax.jit(function)
    memory = jitted.lower(*arrays).compile().memory_analysis()
    return Contender(library, quantity, blocking_call(jitted, *arrays), getattr(memory, "temp_size_in_bytes", None))


def blocking_call(function: Callable[..., Any], *arrays: jax.Array) -> Call:
    return lambda: jax.block_until_ready(function(*arrays))


def torch_contenders(logits: jax.Array, labels: jax.Array, threads: int) -> Iterator[Contender]:
    """torch's cross-entropy, if torch is installed and supports the device that JAX uses."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return
    on_gpu = jax.default_backend() == "gpu"
    if jax.default_backend() != "cpu" and not (on_gpu and torch.cuda.is_available()):
        return
    torch.set_num_threads(threads)
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    cross_entropy = torch.nn.functional.cross_entropy
    x, y = torch.from_dlpack(logits), torch.from_dlpack(labels).long()
    leaf = x.detach().requires_grad_()

    def value() -> Any:
        loss = cross_entropy(x, y)
        wait()
        return loss

    def value_and_gradient() -> Any:
        loss = cross_entropy(leaf, y)
        gradient = torch.autograd.grad(loss, leaf)
        wait()
        return loss, gradient

    yield Contender("torch", "value", value)
    yield Contender("torch", "value and gradient", value_and_gradient)


def random_problem(rows: int, classes: int, dtype: str, seed: int) -> tuple[jax.Array, jax.Array]:
    generator = np.random.default_rng([seed, rows, classes])
    logits = generator.standard_normal((rows, classes), np.float32)
    labels = generator.integers(classes, size=rows, dtype=np.int32)
    return jnp.asarray(logits).astype(dtype), jnp.asarray(labels)


def core_problems(config: Config) -> list[tuple[tuple[int, int], str]]:
    return [(shape, dtype) for shape in config.shapes for dtype in config.dtypes]


def core_case(shape: tuple[int, int], dtype: str, config: Config, after_round: Callable[[], Any]) -> dict[str, Any]:
    """Times all contenders on one problem, and returns the problem's entry of the results file."""
    logits, labels = random_problem(*shape, dtype, config.seed)
    entries = {(c.library, c.quantity): c for c in contenders(logits, labels, config.torch_threads)}
    timings = timing.interleaved(
        {name: entry.call for name, entry in entries.items()},
        rounds=config.rounds,
        at_least=config.at_least_ms / 1e3,
        seed=config.seed,
        after_round=after_round,
    )
    losses = {library: float(c.call()) for (library, quantity), c in entries.items() if quantity == "value"}
    losses["softjax"] *= math.log(10)  # from base 10 to nats
    ratios = [
        {"quantity": quantity, "library": library}
        | dataclasses.asdict(timing.ratio(timings["softjax", quantity], library_timing))
        for (library, quantity), library_timing in timings.items()
        if library != "softjax" and ("softjax", quantity) in timings
    ]
    return {
        "rows": shape[0],
        "classes": shape[1],
        "dtype": dtype,
        "losses_in_nats": losses,
        "timings": [timing_record(entries[name], timings[name]) for name in entries],
        "softjax_ratios": ratios,
    }


def timing_record(contender: Contender, measured: timing.Timing) -> dict[str, Any]:
    return {
        "library": contender.library,
        "quantity": contender.quantity,
        "median": measured.median,
        "quartiles": measured.quartiles,
        "calls_per_round": measured.calls_per_round,
        "seconds": measured.seconds,
        "temporary_bytes": contender.temporary_bytes,
    }
