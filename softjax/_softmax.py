"""softmax and log-softmax, with their analytic pull-backs."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softjax import _checks as checks
from softjax import _log_sum
from softjax import _placement as placement
from softjax import _units as units
from softjax._differentiable import differentiable
from softjax._types import Array, ArrayLike, Axis, Bool, Number


def softmax(logits: ArrayLike, *, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """q_i = exp x_i / Σ_j exp x_j.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: the classes that exist. The others have probability exactly 0 and
            gradient exactly 0.

    Returns:
        The probabilities, in the shape and dtype of `logits`; they are accumulated in float32 or wider.

    Raises:
        TypeError: `logits` are not real floating, or `where` is not boolean.
        ValueError: `axis` is not an axis of `logits`, there is no class, or `where` does not broadcast to `logits`.

    Source: the DeepLibs softmax document, with ∂q_i/∂x_j = q_i ([i = j] − q_j) for its −q_i·q_i.

    >>> import jax.numpy as jnp, softjax
    >>> print(*(f"{q:.4f}" for q in softjax.softmax(jnp.array([0.0, 10.0, 15.0, 18.0, 20.0]))))
    0.0000 0.0000 0.0059 0.1185 0.8756
    """
    logits, axis = checks.logits(logits, axis)
    return _softmax(axis, logits, checks.where(where, logits))


def log_softmax(logits: ArrayLike, *, base: Number = 10.0, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    """log_b q_i = (x_i − ln Σ_j exp x_j) / ln b, never as the logarithm of a rounded probability.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: the classes that exist. The others have log-probability −inf and
            gradient exactly 0.

    Returns:
        The log-probabilities, in the shape and dtype of `logits`; they are accumulated in float32 or wider.

    Raises:
        TypeError: `logits` are not real floating, `where` is not boolean, or `base` is not a number.
        ValueError: `axis` is not an axis of `logits`, there is no class, `where` does not broadcast to `logits`, or
            `base` is out of range.

    Source: the DeepLibs softmax document, whose worked logarithms are natural ones (`base=math.e`).

    >>> import jax.numpy as jnp, softjax
    >>> print(softjax.log_softmax(jnp.array([0.0, 10.0, 15.0, 18.0, 20.0])).round(4))
    [-8.7436 -4.4007 -2.2292 -0.9263 -0.0577]
    """
    logits, axis = checks.logits(logits, axis)
    return _log_softmax((axis, checks.base(base)), logits, checks.where(where, logits))


class _Residuals(NamedTuple):
    logits: Array
    where: Bool[Array, "..."] | None
    log_sum: _log_sum.LogSum


def _probabilities(residuals: _Residuals) -> Array:
    # q_j = exp(x_j − peak) / mass, and 0 for a class that does not exist, also where none does
    x, where, pair = residuals
    q = _log_sum.shifted_exp(_log_sum.existing(x, where), pair.peak) / pair.mass
    return q if where is None else jnp.where(where, q, 0)


@partial(jax.jit, static_argnums=0)
def _softmax(axis, logits, where):
    return _wide_softmax(axis, *placement.aligned(logits, where)).astype(logits.dtype)


def _softmax_forward(axis, logits, where, *, moving):
    residuals = _Residuals(logits, where, _log_sum.log_sum(logits, where, axis, bool(moving)))
    return _probabilities(residuals), residuals


def _softmax_backward(axis, residuals, g, *, moving):
    # ∂q_i/∂x_j = q_i ([i = j] − q_j)  ⇒  dx = q · (g − Σ_i q_i g_i)
    q = _probabilities(residuals)
    g = _reaching(residuals, g)
    return (q * (g - jnp.sum(q * g, axis, keepdims=True))).astype(residuals.logits.dtype), None


_wide_softmax = differentiable(_softmax_forward, _softmax_backward)


@partial(jax.jit, static_argnums=0)
def _log_softmax(static, logits, where):
    axis, base = static
    nats = _wide_log_softmax(axis, *placement.aligned(logits, where))
    return units.from_nats(nats, base).astype(logits.dtype)


def _log_softmax_forward(axis, logits, where, *, moving):
    pair = _log_sum.log_sum(logits, where, axis, bool(moving))
    x = _log_sum.existing(logits, where) - _log_sum.origin(pair.peak)
    nats = x - pair.log_mass
    nats = nats if where is None else jnp.where(where, nats, -jnp.inf)
    return nats, _Residuals(logits, where, pair)


def _log_softmax_backward(axis, residuals, g, *, moving):
    # ∂ln q_i/∂x_j = [i = j] − q_j  ⇒  dx = g − q · Σ_i g_i
    g = _reaching(residuals, g)
    dx = g - _probabilities(residuals) * jnp.sum(g, axis, keepdims=True)
    return dx.astype(residuals.logits.dtype), None


_wide_log_softmax = differentiable(_log_softmax_forward, _log_softmax_backward)


def _reaching(residuals: _Residuals, g: Array) -> Array:
    """The cotangent where classes exist: elsewhere the value is a constant."""
    return g if residuals.where is None else jnp.where(residuals.where, g, 0)
