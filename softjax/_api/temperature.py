"""Temperature scaling: the temperature that calibrates a classifier."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax._args import arrays
from softjax._args.labels import SparseLabels, target_from_labels
from softjax._args.types import Array, ArrayLike, Float
from softjax._args.validation import check_labels
from softjax._mesh.axes import ClassAxis, varying_like
from softjax._rows.block import apply_rule, make_block
from softjax._rows.edges import nan_where
from softjax._rows.statistics import STATISTICS
from softjax._xla import one_cpu

_LAST_AXIS = ClassAxis(-1)


MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""Of the temperature, and of its inverse."""


def fit_temperature(
    logits: ArrayLike, labels: ArrayLike | SparseLabels, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    """The temperature T in [0.01, 100] that minimises the mean cross-entropy of logits / T.

    Fit T on held-out samples and divide the logits by it. This calibrates the confidences and keeps the predictions. At
    the minimum inside the bounds, the mean cross-entropy equals the mean entropy.

    T is 0.01 if every prediction is right, 100 if the predictions are no better than chance. It is 1 if the loss does
    not depend on T: all logits equal, one class, or every weight 0.

    Args:
        logits: `[*samples, classes]`, real floating. A logit of −inf marks a class that does not exist.
        labels: integer class ids `[*samples]`, a floating distribution of the shape of `logits`, or `SparseLabels`.
        weights: boolean or real, broadcastable to the samples. Samples of weight 0 are ignored, whatever they hold.

    Returns:
        A scalar, float32 or wider, without gradient. It is NaN if a sample of non-zero weight has loss NaN, for example
        a class id out of range. A label with logit −inf has loss +inf at every T, so it does not affect the fit. Inside
        a `shard_map` the fit covers the samples of one device. To fit all samples, call it under `jit` on global
        arrays.

    Raises:
        TypeError: `logits` are not real floating, or `labels` or `weights` have a wrong dtype.
        ValueError: a shape is not valid.

    Source: Guo et al. 2017, arXiv:1706.04599. Solved by Newton's method in 1/T, in which the cross-entropy is convex.

    >>> import jax.numpy as jnp, softjax
    >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    >>> print(softjax.metrics.fit_temperature(logits, jnp.array([0, 0, 1, 0])).round(4))  # 3 of 4 are right: 2 / ln 3
    1.8205
    """
    logits, axis = arrays.logits(logits, -1)
    target = check_labels(labels, logits.shape, axis)
    return _fit(logits, target, arrays.weights(weights, arrays.samples_shape(logits.shape, axis)))


@jax.jit
def _fit(logits, labels, weights):
    x, labels, weights = lax.stop_gradient((one_cpu.widen(logits), labels, weights))
    # The loss is that of the differences, which keep their digits where the logits are large.
    slopes = partial(_derivatives_by_inverse, x - jnp.max(x, -1, keepdims=True), labels, weights)
    ends = lax.map(slopes, jnp.asarray([1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE], x.dtype))
    low, high = ends.slope
    root = _newton_root(slopes, (low < 0) & (high > 0), x.dtype)
    root = jnp.where(high <= 0, 1 / MIN_TEMPERATURE, jnp.where(low >= 0, 1 / MAX_TEMPERATURE, root))
    root = jnp.where(ends.varied.any(), root, 1)
    return nan_where(jnp.isnan(ends.loss).any(), 1 / root)


class _Derivatives(NamedTuple):
    """Of β = 1/T: the sum of the losses, its first and second derivatives, and whether any depends on it."""

    loss: Any
    slope: Any
    curvature: Any
    varied: Any


def _derivatives_by_inverse(below, labels, weights, beta):
    dropped = below == -jnp.inf
    finite = jnp.where(dropped, 0, below)

    def sums(beta):
        x = jnp.where(dropped, -jnp.inf, finite * beta)
        target = target_from_labels(labels, x.shape[-1], -1)
        s = apply_rule(STATISTICS, make_block(_LAST_AXIS, x, target, None, None)).statistics
        w = jnp.ones_like(s.entropy) if weights is None else weights.astype(s.entropy.dtype)
        counted = (w != 0) & (s.cross_entropy != jnp.inf)
        h, entropy = (jnp.sum(w * jnp.where(counted, n, 0)).astype(beta.dtype) for n in (s.cross_entropy, s.entropy))
        return (h, entropy), jnp.any(counted & jnp.any(finite < 0, -1))

    # ∂h/∂β = Σ_j q_j x_j − x_y, ∂²h/∂β² = Var_q x, and ∂H/∂β = −β Var_q x, so that first derivatives are enough.
    (loss, _), (slope, spread), varied = jax.jvp(sums, (beta,), (jnp.ones_like(beta),), has_aux=True)
    return _Derivatives(loss, slope, -spread / beta, varied)


class _NewtonState(NamedTuple):
    beta: Any
    low: Any
    high: Any
    moved: Any
    steps: Any


def _newton_root(slopes, inside, dtype):
    """Where the slope is 0, by Newton's steps; by bisection of ln β where these leave the bracket or do not shrink."""
    enough = jnp.finfo(dtype).eps ** 0.5 / 16  # the step after one so small is of the size of a rounding

    def going(state):
        return inside & (state.moved > enough * state.beta) & (state.steps < 100)

    def step(state):
        beta, low, high, moved, steps = state
        at = slopes(beta)
        low, high = jnp.where(at.slope < 0, beta, low), jnp.where(at.slope < 0, high, beta)
        newton = beta - at.slope / at.curvature
        good = (low <= newton) & (newton <= high) & (jnp.abs(newton - beta) < moved / 2)
        after = jnp.where(good, newton, jnp.sqrt(low * high))
        return _NewtonState(after, low, high, jnp.abs(after - beta), steps + 1)

    # As `inside` varies over a mesh, so does all that depends on it.
    one, low, high = (
        varying_like(jnp.asarray(number, dtype), inside) for number in (1, 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE)
    )
    return lax.while_loop(going, step, _NewtonState(one, low, high, high, 0)).beta
