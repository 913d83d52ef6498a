"""Normalised gradient descent on a linear classifier, with the gradients of several libraries.

The libraries' gradients differ where samples are confident. With logits x = pixels W, the margin of W on separable
samples is

    min_i (x_i,y − max_{j≠y} x_ij) / ‖W‖,

the distance of the nearest sample from a wrong prediction. The update is W ← W − η g/‖g‖, where g is the gradient of
the cross-entropy. It turns W towards the largest possible margin. As W grows, ever more confident samples dominate g.
Sources: Soudry et al. 2018, arXiv:1710.10345; Nacson et al. 2019, arXiv:1803.01905.
"""

import importlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.svm import LinearSVC

import softjax


class Samples(NamedTuple):
    pixels: np.ndarray  # [images, features]
    labels: np.ndarray  # [images]
    classes: int


class Schedule(NamedTuple):
    rate: float
    steps: int
    every: int  # steps between two records; it divides `steps`


class Trace(NamedTuple):
    """The records of one run, in the arithmetic of its library."""

    kernels: np.ndarray  # [records, features, classes]
    losses: np.ndarray  # [records]
    gradients: np.ndarray  # [records, features, classes]


Loss = Callable[[Any, Any], Any]  # logits [images, classes] and labels [images] to the sum of the losses
Descent = Callable[[Samples, Schedule], Trace]


# Sum the losses instead of taking their mean. The direction is the same. The factor 1/901 of the mean would cost 7 of
# the 87 nats that float32 offers before exp underflows.
def softjax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return softjax.cross_entropy(logits, labels, base=math.e, reduction="sum")


def optax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def contenders() -> Iterator[tuple[str, str, Descent]]:
    """Yields library, dtype and descent function. torch is included if it is installed."""
    for library, loss in {"softjax": softjax_loss, "optax": optax_loss}.items():
        for dtype in ("float32", "float64"):
            yield library, dtype, jax_descent(loss, dtype)
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return
    yield "torch", "float32", torch_descent(torch)


def jax_descent(loss: Loss, dtype: str) -> Descent:
    def descend(samples: Samples, schedule: Schedule) -> Trace:
        # By default, accelerators may round the inputs of a matmul.
        with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
            pixels, labels = jnp.asarray(samples.pixels, dtype), jnp.asarray(samples.labels)
            start = jnp.zeros((pixels.shape[1], samples.classes), dtype)
            return Trace(*map(np.asarray, _scan_descent(loss, start, pixels, labels, schedule)))

    return descend


@jax.jit(static_argnames=("loss", "schedule"))
def _scan_descent(loss: Loss, start: jax.Array, pixels: jax.Array, labels: jax.Array, schedule: Schedule) -> Any:
    def kernel_loss(kernel: jax.Array) -> jax.Array:
        return loss(pixels @ kernel, labels)

    def step(kernel: jax.Array, _: None) -> tuple[jax.Array, None]:
        return kernel - schedule.rate * unit_vector(jax.grad(kernel_loss)(kernel)), None

    def record(kernel: jax.Array, _: None) -> tuple[jax.Array, Any]:
        kernel = jax.lax.scan(step, kernel, length=schedule.every)[0]
        return kernel, (kernel, *jax.value_and_grad(kernel_loss)(kernel))

    return jax.lax.scan(record, start, length=schedule.steps // schedule.every)[1]


def unit_vector(g: jax.Array) -> jax.Array:
    """g / ‖g‖, and 0 for g = 0.

    In float32, the squares of g = 1e-23 underflow. The squares of g / max |g| sum to at least 1.
    """
    largest = jnp.max(jnp.abs(g))
    g = g / jnp.where(largest > 0, largest, 1)
    return g / jnp.sqrt(jnp.maximum(jnp.sum(g * g), 1))


def torch_descent(torch: Any) -> Descent:
    def descend(samples: Samples, schedule: Schedule) -> Trace:
        torch.set_num_threads(1)  # several threads wait for each other when other programs use the cores
        pixels, labels = torch.tensor(samples.pixels), torch.tensor(samples.labels).long()
        kernel = torch.zeros((pixels.shape[1], samples.classes), requires_grad=True)

        def value_and_gradient() -> tuple[Any, Any]:
            loss = torch.nn.functional.cross_entropy(pixels @ kernel, labels, reduction="sum")
            return loss.detach(), torch.autograd.grad(loss, kernel)[0]

        records = []
        for step in range(1, schedule.steps + 1):
            g = value_and_gradient()[1]
            g = g / (g.abs().max() or 1)
            kernel.data -= schedule.rate * g / (g.norm() or 1)
            if step % schedule.every == 0:
                records.append([a.numpy().copy() for a in (kernel.data, *value_and_gradient())])
        return Trace(*map(np.stack, zip(*records, strict=True)))

    return descend


def measure_curves(descend: Descent, samples: Samples, schedule: Schedule) -> dict[str, Any]:
    """The curves of one run: loss and gradient norm as the library computes them, margin and gap in float64."""
    began = time.perf_counter()
    trace = descend(samples, schedule)
    seconds = time.perf_counter() - began
    margins = np.array([margin(kernel, samples) for kernel in trace.kernels])
    curves = {
        "margin": margins,
        "gap": margins * np.linalg.norm(np.float64(trace.kernels), axis=(1, 2)),  # smallest logit gap, in nats
        "loss": np.float64(trace.losses),
        "gradient_norm": np.linalg.norm(np.float64(trace.gradients), axis=(1, 2)),
    }
    six_digits = {name: [float(f"{value:.6g}") for value in curve] for name, curve in curves.items()}
    return {"seconds": round(seconds, 2), **six_digits}


def margin(kernel: np.ndarray, samples: Samples) -> float:
    """min_i (x_i,y − max_{j≠y} x_ij) / ‖W‖ in float64, and 0 for W = 0."""
    kernel = np.asarray(kernel, np.float64)
    logits = np.asarray(samples.pixels, np.float64) @ kernel
    is_label = np.arange(samples.classes) == samples.labels[:, None]
    gaps = logits[is_label] - np.max(logits, axis=1, initial=-np.inf, where=~is_label)
    return float(np.min(gaps) / (np.linalg.norm(kernel) or 1))


def hard_margin(samples: Samples) -> float:
    """The largest possible margin.

    It is the margin of the smallest ‖W‖ whose gaps are all at least 1: Crammer and Singer's support vector machine.
    """
    machine = LinearSVC(
        multi_class="crammer_singer", C=1e4, fit_intercept=False, tol=1e-8, max_iter=1_000_000, random_state=0
    )
    return margin(machine.fit(np.float64(samples.pixels), samples.labels).coef_.T, samples)
