"""softmax and log-softmax, with their analytic pull-backs."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softjax import _checks as checks
from softjax import _log_sum
from softjax import _mesh as mesh
from softjax import _placement as placement
from softjax import _units as units
from softjax._differentiable import differentiable
from softjax._split import Split, split_of_logits
from softjax._types import Array, ArrayLike, Axis, AxisName, Bool, Number


def softmax(logits: ArrayLike, *, axis: Axis = -1, where: ArrayLike | None = None, axis_name: AxisName = None) -> Array:
    """q_i = exp x_i / Σ_j exp x_j.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: the classes that exist. The others have probability exactly 0 and
            gradient exactly 0.
        axis_name: the mesh axis, or axes, over which the classes are split: bound by a `shard_map` or `vmap` around
            the call, else of the mesh in context.

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
    exist = checks.where(where, logits)
    return _softmax(_Static(axis, split_of_logits(axis_name, None, logits, axis)), logits, exist)


def log_softmax(
    logits: ArrayLike,
    *,
    base: Number = 10.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """log_b q_i = (x_i − ln Σ_j exp x_j) / ln b, never as the logarithm of a rounded probability.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: the classes that exist. The others have log-probability −inf and
            gradient exactly 0.
        axis_name: as in `softmax`.

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
    base, exist = checks.base(base), checks.where(where, logits)
    return _log_softmax(_Static(axis, split_of_logits(axis_name, None, logits, axis), base), logits, exist)


class _Static(NamedTuple):
    axis: int
    split: Split
    base: float = math.e

    @property
    def core(self) -> tuple[int, mesh.Names]:
        """What the custom derivatives need to know."""
        return self.axis, self.split.classes

    def arranged(self, *arrays: Array | None) -> list[Array | None]:
        """One device's arrays, as the custom derivatives need them."""
        return placement.aligned(self.split.classes, [self.split.gathered(a, self.axis) for a in arrays])[0]

    def over(self, function: Callable[..., Array], *arrays: Array | None) -> Array:
        """The function of arrays of the rank of the logits, on each device's part of them."""
        specs = [self.split.of_logits(array, self.axis) for array in arrays]
        return self.split.over(function, arrays, specs, specs[0])


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
def _softmax(static, logits, where):
    def local(logits: Array, where: Array | None) -> Array:
        q = _wide_softmax(static.core, *static.arranged(logits, where)).astype(logits.dtype)
        return static.split.scattered(q, static.axis)

    return static.over(local, logits, where)


def _softmax_forward(static, logits, where, *, moving):
    axis, names = static
    residuals = _Residuals(logits, where, _log_sum.log_sum(logits, where, axis, names, bool(moving)))
    return _probabilities(residuals), residuals


def _softmax_backward(static, residuals, g, *, moving):
    axis, names = static
    # ∂q_i/∂x_j = q_i ([i = j] − q_j)  ⇒  dx = q · (g − Σ_i q_i g_i)
    q = _probabilities(residuals)
    g = _reaching(residuals, g)
    return (q * (g - mesh.total(jnp.sum(q * g, axis, keepdims=True), names))).astype(residuals.logits.dtype), None


_wide_softmax = differentiable(_softmax_forward, _softmax_backward)


@partial(jax.jit, static_argnums=0)
def _log_softmax(static, logits, where):
    def local(logits: Array, where: Array | None) -> Array:
        nats = _wide_log_softmax(static.core, *static.arranged(logits, where))
        return static.split.scattered(units.from_nats(nats, static.base).astype(logits.dtype), static.axis)

    return static.over(local, logits, where)


def _log_softmax_forward(static, logits, where, *, moving):
    axis, names = static
    pair = _log_sum.log_sum(logits, where, axis, names, bool(moving))
    x = _log_sum.existing(logits, where) - _log_sum.origin(pair.peak)
    nats = x - pair.log_mass
    nats = nats if where is None else jnp.where(where, nats, -jnp.inf)
    return nats, _Residuals(logits, where, pair)


def _log_softmax_backward(static, residuals, g, *, moving):
    axis, names = static
    # ∂ln q_i/∂x_j = [i = j] − q_j  ⇒  dx = g − q · Σ_i g_i
    g = _reaching(residuals, g)
    dx = g - _probabilities(residuals) * mesh.total(jnp.sum(g, axis, keepdims=True), names)
    return dx.astype(residuals.logits.dtype), None


_wide_log_softmax = differentiable(_log_softmax_forward, _log_softmax_backward)


def _reaching(residuals: _Residuals, g: Array) -> Array:
    """The cotangent where classes exist: elsewhere the value is a constant."""
    return g if residuals.where is None else jnp.where(residuals.where, g, 0)
