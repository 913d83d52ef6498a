"""`benchmark.py --part distil`: time and memory of a divergence from a teacher, fused with both last layers."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import softjax
from benchmarks.linear_cases import AfterRound, describe_problem, time_contenders
from benchmarks.linear_contenders import Contender, compile_contender, import_torch, matmul
from benchmarks.settings import Config

Kind = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
KINDS: tuple[Kind, ...] = ("forward_kl", "reverse_kl", "jensen_shannon")
SOFTJAX, UNFUSED, UNFUSED_TORCH = "softjax", "unfused baseline (jax.nn)", "unfused baseline (torch)"
MATMULS = "four matmuls"


class Layers(NamedTuple):
    hidden: jax.Array
    kernel: jax.Array
    teacher_hidden: jax.Array
    teacher_kernel: jax.Array


def distil_case(shape: tuple[int, int, int], dtype: str, config: Config, after_round: AfterRound) -> dict[str, Any]:
    layers = random_layers(*shape, dtype, config.seed)
    contenders = [*jax_contenders(layers), *torch_contenders(layers, config.torch_threads)]
    timings = time_contenders(contenders, config, after_round)
    divergences = {c.name: float(c.call()[0]) for c in contenders if c.name != MATMULS}
    return {**describe_problem(shape, dtype), "divergences_in_nats": divergences, "timings": timings}


def random_layers(samples: int, features: int, classes: int, dtype: str, seed: int) -> Layers:
    generator = np.random.default_rng([seed, samples, features, classes])

    def normal(*lengths: int) -> jax.Array:
        scale = 1 if lengths[0] == samples else 1 / math.sqrt(features)
        return jnp.asarray(generator.standard_normal(lengths, np.float32) * np.float32(scale)).astype(dtype)

    shapes = (samples, features), (features, classes)
    return Layers(*(normal(*lengths) for lengths in shapes * 2))


def softjax_divergence(kind: Kind) -> Callable[..., jax.Array]:
    return lambda *layers: softjax.linear_divergence(*layers, kind=kind, base=math.e)


def unfused_divergence(kind: str) -> Callable[..., jax.Array]:
    """The unfused baseline: it materialises the logits of student and teacher."""

    def divergence(hidden: jax.Array, kernel: jax.Array, teacher_hidden: jax.Array, teacher_kernel: jax.Array) -> Any:
        log_q = jax.nn.log_softmax(matmul(hidden, kernel, 1, 0))
        log_p = jax.nn.log_softmax(matmul(teacher_hidden, teacher_kernel, 1, 0))
        return jnp.mean(_row_divergences(kind, log_q, log_p))

    return divergence


def _row_divergences(kind: str, log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    if kind == "forward_kl":
        return jnp.sum(p * (log_p - log_q), -1)
    if kind == "reverse_kl":
        return jnp.sum(q * (log_q - log_p), -1)
    log_m = jnp.logaddexp(log_p, log_q) - math.log(2)
    return jnp.sum(p * (log_p - log_m) + q * (log_q - log_m), -1) / 2


def four_matmuls(hidden: jax.Array, kernel: jax.Array, teacher_hidden: jax.Array, teacher_kernel: jax.Array) -> Any:
    """The lower bound: both logits, and the student's two gradient matmuls with their sum in place of a gradient."""
    x = (matmul(hidden, kernel, 1, 0) + matmul(teacher_hidden, teacher_kernel, 1, 0)).astype(hidden.dtype)
    return matmul(x, kernel, 1, 1).astype(hidden.dtype), matmul(x, hidden, 0, 0).astype(kernel.dtype)


def jax_contenders(layers: Layers) -> Iterator[Contender]:
    for kind in KINDS:
        for name, divergence in ((SOFTJAX, softjax_divergence(kind)), (UNFUSED, unfused_divergence(kind))):
            yield compile_contender(f"{name}, {kind}", jax.value_and_grad(divergence, (0, 1)), *layers)
    yield compile_contender(MATMULS, four_matmuls, *layers)


def torch_contenders(layers: Layers, threads: int) -> Iterator[Contender]:
    """Forward and reverse KL with `kl_div`, as torch's users write them."""
    torch = import_torch(layers.hidden.dtype, threads)
    if torch is None:
        return
    hidden, kernel, *teacher = (torch.from_dlpack(array).detach().clone() for array in layers)
    student = hidden.requires_grad_(), kernel.requires_grad_()
    log_softmax, kl = torch.nn.functional.log_softmax, torch.nn.functional.kl_div

    def call(kind: str) -> Any:
        log_q, log_p = log_softmax(hidden @ kernel, -1), log_softmax(teacher[0] @ teacher[1], -1)
        pair = (log_q, log_p) if kind == "forward_kl" else (log_p, log_q)
        value = kl(*pair, reduction="batchmean", log_target=True)
        gradients = torch.autograd.grad(value, student)
        if hidden.is_cuda:
            torch.cuda.synchronize()
        return value.detach(), gradients

    for kind in KINDS[:2]:
        yield Contender(f"{UNFUSED_TORCH}, {kind}", lambda kind=kind: call(kind))
