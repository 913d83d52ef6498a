"""Contenders of `benchmark.py --part linear`: loss and gradients of a last layer, each library as its users call it."""

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

SOFTJAX, UNREDUCED, UNFUSED = "softjax", "softjax, reduction=none", "unfused baseline (optax)"
CHUNKED, JAX_CCE, TOKAMAX = "hand-written chunked loss", "jax-cce", "tokamax"
MATMULS, MATMULS_TRANSPOSED = "three matmuls", "three matmuls, transposed"
UNFUSED_TORCH, LINEAR_TORCH, MATMULS_TORCH = (
    "unfused baseline (torch)",
    "torch linear_cross_entropy",
    "three matmuls (torch)",
)
IN_JAX = (SOFTJAX, UNREDUCED, UNFUSED, CHUNKED, JAX_CCE, TOKAMAX, MATMULS)


class Contender(NamedTuple):
    """One call to time. `call` returns when its result is ready. The loss is its first result."""

    name: str
    call: Call
    temporary_bytes: int | None = None
    compile_seconds: float | None = None


class Layer(NamedTuple):
    hidden: jax.Array
    kernel: jax.Array
    labels: jax.Array


def random_layer(samples: int, features: int, classes: int, dtype: str, seed: int) -> Layer:
    generator = np.random.default_rng([seed, samples, features, classes])
    hidden = generator.standard_normal((samples, features), np.float32)
    kernel = generator.standard_normal((features, classes), np.float32) / np.float32(math.sqrt(features))
    labels = generator.integers(classes, size=samples, dtype=np.int32)
    return Layer(jnp.asarray(hidden).astype(dtype), jnp.asarray(kernel).astype(dtype), jnp.asarray(labels))


def matmul(a: jax.Array, b: jax.Array, i: int, j: int) -> jax.Array:
    """Contracts axis `i` of `a` with axis `j` of `b`, in float32."""
    return jax.lax.dot_general(a, b, (((i,), (j,)), ((), ())), preferred_element_type=jnp.float32)


def softjax_loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return softjax.linear_cross_entropy(hidden, kernel, labels, base=math.e)


def softjax_unreduced_loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(softjax.linear_cross_entropy(hidden, kernel, labels, base=math.e, reduction="none"))


def unfused_loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """The unfused baseline: it materialises the logits."""
    logits = matmul(hidden, kernel, 1, 0)
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def hand_written_chunked_loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """The usual hand-written loss: `lax.map` over chunks, and `jax.checkpoint` recomputes the logits of a chunk."""
    samples, features = hidden.shape
    size = max(n for n in range(1, 257) if samples % n == 0)

    @jax.checkpoint
    def chunk_loss(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = matmul(chunk[0], kernel, 1, 0)
        return jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(logits, chunk[1]))

    chunks = hidden.reshape(-1, size, features), labels.reshape(-1, size)
    return jnp.sum(jax.lax.map(chunk_loss, chunks)) / samples


def three_matmuls(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> Any:
    """The lower bound: the logits, and the two gradient matmuls with the logits in place of their gradient."""
    x = matmul(hidden, kernel, 1, 0).astype(hidden.dtype)
    return matmul(x, kernel, 1, 1).astype(hidden.dtype), matmul(hidden, x, 0, 0).astype(kernel.dtype)


def three_matmuls_transposed(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> Any:
    """The same with a kernel gradient of layout [classes, features], which XLA may compute faster."""
    x = matmul(hidden, kernel, 1, 0).astype(hidden.dtype)
    return matmul(x, kernel, 1, 1).astype(hidden.dtype), matmul(x, hidden, 0, 0).astype(kernel.dtype)


def jax_contenders(layer: Layer, names: tuple[str, ...] = ()) -> Iterator[Contender]:
    """The contenders in JAX: those of `names`, or all that are installed."""
    losses: dict[str, Callable[..., Any]] = {
        SOFTJAX: softjax_loss,
        UNREDUCED: softjax_unreduced_loss,
        UNFUSED: unfused_loss,
        CHUNKED: hand_written_chunked_loss,
    }
    losses |= {name: loss for name, loss in ((JAX_CCE, _jax_cce_loss()), (TOKAMAX, _tokamax_loss())) if loss}
    programs = {name: jax.value_and_grad(loss, (0, 1)) for name, loss in losses.items()}
    programs |= {MATMULS: three_matmuls, MATMULS_TRANSPOSED: three_matmuls_transposed}
    for name, program in programs.items():
        if not names or name in names:
            arrays = layer._replace(kernel=layer.kernel.T) if name == JAX_CCE else layer
            yield compile_contender(name, program, *arrays)


def compile_contender(name: str, program: Callable[..., Any], *arrays: Any) -> Contender:
    lowered = jax.jit(program).lower(*arrays)
    start = time.perf_counter()
    executable = lowered.compile()
    seconds = time.perf_counter() - start
    memory = getattr(executable.memory_analysis(), "temp_size_in_bytes", None)
    return Contender(name, lambda: jax.block_until_ready(executable(*arrays)), memory, seconds)


def _jax_cce_loss() -> Callable[..., jax.Array] | None:
    library = _import_if_usable("jax_cce")
    return library and (lambda hidden, kernel, labels: library.linear_cross_entropy(hidden, kernel, labels))


def _tokamax_loss() -> Callable[..., jax.Array] | None:
    library = _import_if_usable("tokamax")
    if library:
        importlib.import_module("absl.flags").FLAGS([__name__])  # else it would parse this program's command line
    return library and (
        lambda hidden, kernel, labels: library.linear_softmax_cross_entropy_loss(
            hidden, labels, kernel, reduction="mean", implementation="xla"
        )
    )


def _import_if_usable(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception:  # not installed, or incompatible with the installed versions of its dependencies
        return None


def import_torch(dtype: Any, threads: int) -> Any:
    """torch, if it is installed and supports the device that JAX uses; else None."""
    torch = _import_if_usable("torch")
    on_gpu = jax.default_backend() == "gpu"
    if torch is None or (jax.default_backend() != "cpu" and not (on_gpu and torch.cuda.is_available())):
        return None
    if not on_gpu and dtype != jnp.float32:
        return None  # a bfloat16 matmul takes torch 50 s and XLA 1 s on a CPU without bfloat16 instructions
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")  # XLA's default on a GPU: float32 matmuls in TF32
    return torch


def torch_contenders(layer: Layer, threads: int) -> Iterator[Contender]:
    torch = import_torch(layer.hidden.dtype, threads)
    if torch is None:
        return
    wait = torch.cuda.synchronize if jax.default_backend() == "gpu" else lambda: None
    functional = torch.nn.functional
    hidden = torch.from_dlpack(layer.hidden).detach().clone().requires_grad_()
    kernel = torch.from_dlpack(layer.kernel).detach().T.contiguous().requires_grad_()
    labels = torch.from_dlpack(layer.labels).long()

    def value_and_gradients(loss: Callable[[], Any]) -> Call:
        def call() -> Any:
            value = loss()
            gradients = torch.autograd.grad(value, (hidden, kernel))
            wait()
            return value.detach(), gradients

        return call

    def matmuls() -> Any:
        with torch.no_grad():
            x = hidden @ kernel.T
            gradients = x @ kernel, x.T @ hidden
            wait()
            return gradients

    yield Contender(UNFUSED_TORCH, value_and_gradients(lambda: functional.cross_entropy(hidden @ kernel.T, labels)))
    if hasattr(functional, "linear_cross_entropy"):
        linear = functional.linear_cross_entropy
        yield Contender(LINEAR_TORCH, value_and_gradients(lambda: linear(hidden, kernel, labels)))
    yield Contender(MATMULS_TORCH, matmuls)
