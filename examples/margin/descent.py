"""Normalised gradient descent on a linear classifier, by libraries whose gradients differ where samples are confident.

Of separable samples the margin of W is min_i (x_i,y − max_{j≠y} x_ij) / ‖W‖ with x = pixels W: how far the nearest of
them is from being wrong. W ← W − η g/‖g‖, g the gradient of the cross-entropy, turns W towards the largest margin that
there is, and as W grows, g comes to be that of ever more confident samples. Sources: Soudry et al. 2018,
arXiv:1710.10345; Nacson et al. 2019, arXiv:1803.01905.
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
    every: int  # a record every so many steps, which divide `steps`


class Trace(NamedTuple):
    """What a library makes of the samples, in the order of the records, in its own arithmetic."""

    kernels: np.ndarray  # [records, features, classes]
    losses: np.ndarray  # [records]
    gradients: np.ndarray  # [records, features, classes]


Loss = Callable[[Any, Any], Any]  # of logits [images, classes] and labels [images], the sum over the images
Descent = Callable[[Samples, Schedule], Trace]


# The sums of the losses, not their means: the direction is the same, and 1/901 would cost 7 of the 87 nats that float32
# has before exp underflows.
def softjax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return softjax.cross_entropy(logits, labels, base=math.e, reduction="sum")


def optax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def contenders() -> Iterator[tuple[str, str, Descent]]:
    """Library, type and descent; torch where it is installed."""
    for library, loss in {"softjax": softjax_loss, "optax": optax_loss}.items():
        for dtype in ("float32", "float64"):
            yield library, dtype, by_jax(loss, dtype)
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return
    yield "torch", "float32", by_torch(torch)


def by_jax(loss: Loss, dtype: str) -> Descent:
    def descend(samples: Samples, schedule: Schedule) -> Trace:
        # In full precision on accelerators too, which might round the factors of a product.
        with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
            pixels, labels = jnp.asarray(samples.pixels, dtype), jnp.asarray(samples.labels)
            start = jnp.zeros((pixels.shape[1], samples.classes), dtype)
            return Trace(*map(np.asarray, _trace(loss, start, pixels, labels, schedule)))

    return descend


@jax.jit(static_argnames=("loss", "schedule"))
def _trace(loss: Loss, start: jax.Array, pixels: jax.Array, labels: jax.Array, schedule: Schedule) -> Any:
    def total(kernel: jax.Array) -> jax.Array:
        return loss(pixels @ kernel, labels)

    def step(kernel: jax.Array, _: None) -> tuple[jax.Array, None]:
        return kernel - schedule.rate * unit(jax.grad(total)(kernel)), None

    def record(kernel: jax.Array, _: None) -> tuple[jax.Array, Any]:
        kernel = jax.lax.scan(step, kernel, length=schedule.every)[0]
        return kernel, (kernel, *jax.value_and_grad(total)(kernel))

    return jax.lax.scan(record, start, length=schedule.steps // schedule.every)[1]


def unit(g: jax.Array) -> jax.Array:
    """g / ‖g‖, and 0 of 0. In float32 the squares of a g of 1e-23 underflow; those of g / max |g| sum to 1 or more."""
    largest = jnp.max(jnp.abs(g))
    g = g / jnp.where(largest > 0, largest, 1)
    return g / jnp.sqrt(jnp.maximum(jnp.sum(g * g), 1))


def by_torch(torch: Any) -> Descent:
    def descend(samples: Samples, schedule: Schedule) -> Trace:
        torch.set_num_threads(1)  # more of them wait for each other where other programs run too
        pixels, labels = torch.tensor(samples.pixels), torch.tensor(samples.labels).long()
        kernel = torch.zeros((pixels.shape[1], samples.classes), requires_grad=True)

        def value_and_gradient() -> tuple[Any, Any]:
            loss = torch.nn.functional.cross_entropy(pixels @ kernel, labels, reduction="sum")
            return loss.detach(), torch.autograd.grad(loss, kernel)[0]

        records = []
        for number in range(1, schedule.steps + 1):
            g = value_and_gradient()[1]
            g = g / (g.abs().max() or 1)
            kernel.data -= schedule.rate * g / (g.norm() or 1)
            if number % schedule.every == 0:
                records.append([a.numpy().copy() for a in (kernel.data, *value_and_gradient())])
        return Trace(*map(np.stack, zip(*records, strict=True)))

    return descend


def curves(descend: Descent, samples: Samples, schedule: Schedule) -> dict[str, Any]:
    """The loss and the norm of the gradient that the library has at each record, and the margin in float64."""
    began = time.perf_counter()
    trace = descend(samples, schedule)
    seconds = time.perf_counter() - began
    margins = np.array([margin(kernel, samples) for kernel in trace.kernels])
    numbers = {
        "margin": margins,
        "gap": margins * np.linalg.norm(np.float64(trace.kernels), axis=(1, 2)),  # of the nearest sample, in nats
        "loss": np.float64(trace.losses),
        "gradient_norm": np.linalg.norm(np.float64(trace.gradients), axis=(1, 2)),
    }
    digits = {name: [float(f"{number:.6g}") for number in curve] for name, curve in numbers.items()}
    return {"seconds": round(seconds, 2), **digits}


def margin(kernel: np.ndarray, samples: Samples) -> float:
    """min_i (x_i,y − max_{j≠y} x_ij) / ‖W‖, in float64; 0 of a W of zeros."""
    wide = np.asarray(kernel, np.float64)
    logits = np.asarray(samples.pixels, np.float64) @ wide
    own = np.arange(samples.classes) == samples.labels[:, None]
    gaps = logits[own] - np.max(logits, axis=1, initial=-np.inf, where=~own)
    return float(np.min(gaps) / (np.linalg.norm(wide) or 1))


def hard_margin(samples: Samples) -> float:
    """The largest margin that there is: that of the least ‖W‖ with gaps of at least 1, Crammer and Singer's machine."""
    machine = LinearSVC(
        multi_class="crammer_singer", C=1e4, fit_intercept=False, tol=1e-8, max_iter=1_000_000, random_state=0
    )
    return margin(machine.fit(np.float64(samples.pixels), samples.labels).coef_.T, samples)
