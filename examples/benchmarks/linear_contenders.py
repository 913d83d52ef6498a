"""What `benchmark.py --part linear` times: loss and gradient of a last layer, each library called as its users do."""

import importlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import softjax
from benchmarks.timing import Call

OURS, NONE, PLAIN, FLOOR = "softjax", "softjax, none", "optax on logits", "three products"
MAPPED, JAX_CCE, TOKAMAX = "lax.map, checkpoint", "jax-cce", "tokamax"
IN_JAX = (OURS, NONE, PLAIN, MAPPED, JAX_CCE, TOKAMAX, FLOOR)


class Contender(NamedTuple):
    """One thing to time. `call` returns when its result, loss first, is there."""

    name: str
    call: Call
    temporary_bytes: int | None = None
    compile_seconds: float | None = None


class Layer(NamedTuple):
    hidden: jax.Array
    kernel: jax.Array
    labels: jax.Array


def problem(samples: int, features: int, classes: int, dtype: str, seed: int) -> Layer:
    generator = np.random.default_rng([seed, samples, features, classes])
    hidden = generator.standard_normal((samples, features), np.float32)
    kernel = generator.standard_normal((features, classes), np.float32) / np.float32(math.sqrt(features))
    labels = generator.integers(classes, size=samples, dtype=np.int32)
    return Layer(jnp.asarray(hidden).astype(dtype), jnp.asarray(kernel).astype(dtype), jnp.asarray(labels))


def product(a: jax.Array, b: jax.Array, i: int, j: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((i,), (j,)), ((), ())), preferred_element_type=jnp.float32)


def ours(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return softjax.linear_cross_entropy(hidden, kernel, labels, base=math.e)


def ours_none(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(softjax.linear_cross_entropy(hidden, kernel, labels, base=math.e, reduction="none"))


def plain(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    logits = product(hidden, kernel, 1, 0)
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def mapped(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """What is written by hand: `lax.map` over chunks whose logits `jax.checkpoint` computes again."""
    samples, features = hidden.shape
    chunk = max(n for n in range(1, 257) if samples % n == 0)

    @jax.checkpoint
    def one(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = product(chunk[0], kernel, 1, 0)
        return jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(logits, chunk[1]))

    return jnp.sum(jax.lax.map(one, (hidden.reshape(-1, chunk, features), labels.reshape(-1, chunk)))) / samples


def three_products(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> Any:
    """The logits, and as if they were their own gradient, the gradients of the hidden vectors and of the kernel."""
    x = product(hidden, kernel, 1, 0).astype(hidden.dtype)
    return product(x, kernel, 1, 1).astype(hidden.dtype), product(hidden, x, 0, 0).astype(kernel.dtype)


def three_products_turned(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> Any:
    """The same with the kernel's gradient as [classes, features], a product that XLA may compute faster."""
    x = product(hidden, kernel, 1, 0).astype(hidden.dtype)
    return product(x, kernel, 1, 1).astype(hidden.dtype), product(x, hidden, 0, 0).astype(kernel.dtype)


def jax_contenders(layer: Layer, only: tuple[str, ...] = ()) -> Iterator[Contender]:
    losses: dict[str, Callable[..., Any]] = {OURS: ours, NONE: ours_none, PLAIN: plain, MAPPED: mapped}
    losses |= {name: loss for name, loss in ((JAX_CCE, _jax_cce()), (TOKAMAX, _tokamax())) if loss}
    programs = {name: jax.value_and_grad(loss, (0, 1)) for name, loss in losses.items()}
    programs |= {FLOOR: three_products, "three products, turned": three_products_turned}
    for name, program in programs.items():
        if not only or name in only:
            arrays = layer._replace(kernel=layer.kernel.T) if name == JAX_CCE else layer
            yield compiled(name, program, *arrays)


def compiled(name: str, program: Callable[..., Any], *arrays: Any) -> Contender:
    lowered = jax.jit(program).lower(*arrays)
    start = time.perf_counter()
    executable = lowered.compile()
    seconds = time.perf_counter() - start
    memory = getattr(executable.memory_analysis(), "temp_size_in_bytes", None)
    return Contender(name, lambda: jax.block_until_ready(executable(*arrays)), memory, seconds)


def _jax_cce() -> Callable[..., jax.Array] | None:
    library = _installed("jax_cce")
    return library and (lambda hidden, kernel, labels: library.linear_cross_entropy(hidden, kernel, labels))


def _tokamax() -> Callable[..., jax.Array] | None:
    library = _installed("tokamax")
    if library:
        importlib.import_module("absl.flags").FLAGS([__name__])  # or it would read this program's options as its own
    return library and (
        lambda hidden, kernel, labels: library.linear_softmax_cross_entropy_loss(
            hidden, labels, kernel, reduction="mean", implementation="xla"
        )
    )


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception:  # not installed, or not for these versions of what it needs
        return None


def on_torch(dtype: Any, threads: int) -> Any:
    """torch, where it is installed and has the device that JAX runs on."""
    torch = _installed("torch")
    on_gpu = jax.default_backend() == "gpu"
    if torch is None or (jax.default_backend() != "cpu" and not (on_gpu and torch.cuda.is_available())):
        return None
    if not on_gpu and dtype != jnp.float32:
        return None  # on a CPU without instructions for it, a product that takes XLA 1 s takes torch 50
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")  # on a GPU XLA, too, multiplies float32 as TF32 unless told otherwise
    return torch


def torch_contenders(layer: Layer, threads: int) -> Iterator[Contender]:
    torch = on_torch(layer.hidden.dtype, threads)
    if torch is None:
        return
    wait = torch.cuda.synchronize if jax.default_backend() == "gpu" else lambda: None
    functional = torch.nn.functional
    hidden = torch.from_dlpack(layer.hidden).detach().clone().requires_grad_()
    kernel = torch.from_dlpack(layer.kernel).detach().T.contiguous().requires_grad_()
    labels = torch.from_dlpack(layer.labels).long()

    def with_gradient(loss: Callable[[], Any]) -> Call:
        def call() -> Any:
            value = loss()
            gradients = torch.autograd.grad(value, (hidden, kernel))
            wait()
            return value.detach(), gradients

        return call

    def products() -> Any:
        with torch.no_grad():
            x = hidden @ kernel.T
            gradients = x @ kernel, x.T @ hidden
            wait()
            return gradients

    yield Contender("torch on logits", with_gradient(lambda: functional.cross_entropy(hidden @ kernel.T, labels)))
    if hasattr(functional, "linear_cross_entropy"):
        linear = functional.linear_cross_entropy
        yield Contender("torch, linear", with_gradient(lambda: linear(hidden, kernel, labels)))
    yield Contender("torch, three products", products)
