"""softmax and log-softmax, with their analytic VJPs."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softjax._args import arrays, options
from softjax._args.types import Array, ArrayLike, Axes, AxisName, Number
from softjax._mesh.axes import ClassAxis, with_same_varying_axes
from softjax._mesh.placement import split_for_logits
from softjax._mesh.split import Split, reshard_like
from softjax._rows.log_sum import below_peak, drop_peak, log_sum
from softjax._rows.reduction import from_nats
from softjax._xla import one_cpu
from softjax._xla.every_mode import opaque_to_remat, with_forward_mode


def softmax(logits: ArrayLike, *, axis: Axes = -1, where: ArrayLike | None = None, axis_name: AxisName = None) -> Array:
    """The softmax probabilities, q_i = exp x_i / Σ_j exp x_j.

    The gradient is analytic: ∂q_i/∂x_j = q_i ([i = j] − q_j). For a loss use `cross_entropy`, which takes logits.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        axis: the class axis of `logits`, or a tuple of axes that together hold the classes.
        where: boolean, broadcastable to `logits`: True for the classes that exist. The others are masked: probability
            exactly 0 and gradient exactly 0.
        axis_name: mesh axes that shard the class dimension. They are bound by a `shard_map` or `vmap` around the call,
            or else belong to the mesh in context.

    Returns:
        The probabilities, in the shape and dtype of `logits`, accumulated in float32 or wider.

    Raises:
        TypeError: `logits` are not real floating, or `where` is not boolean.
        ValueError: `axis` is not an axis of `logits`, there are no classes, or `where` does not broadcast to `logits`.

    Source: the DeepLibs softmax document, with ∂q_i/∂x_j = −q_i q_j for i ≠ j, where the document prints −q_i q_i.

    >>> import jax.numpy as jnp, softjax
    >>> print(*(f"{q:.4f}" for q in softjax.softmax(jnp.array([0.0, 10.0, 15.0, 18.0, 20.0]))))
    0.0000 0.0000 0.0059 0.1185 0.8756
    """
    if isinstance(axis, (tuple, list)):
        return _over_several_axes(softmax, logits, axis, where, axis_name)
    logits, axis = arrays.logits(logits, axis)
    exist = arrays.where(where, logits)
    return _softmax_or_log(_SoftmaxConfig(axis, split_for_logits(axis_name, None, logits, axis)), logits, exist)


def log_softmax(
    logits: ArrayLike,
    *,
    base: Number = 10.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """The log-probabilities log_b q_i = (x_i − ln Σ_j exp x_j) / ln b, in hartleys by default.

    They never come from the logarithm of a rounded probability. `log_probabilities` gives those of a few classes only.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        base: as in `cross_entropy`.
        axis: as in `softmax`.
        where: boolean, broadcastable to `logits`: True for the classes that exist. The others are masked:
            log-probability −inf and gradient exactly 0.
        axis_name: as in `softmax`.

    Returns:
        The log-probabilities in units of `base`, in the shape and dtype of `logits`, accumulated in float32 or wider.

    Raises:
        TypeError: `logits` are not real floating, `where` is not boolean, or `base` is not a number.
        ValueError: `axis` is not an axis of `logits`, there are no classes, `where` does not broadcast to `logits`, or
            `base` is out of range.

    Source: the DeepLibs softmax document. Its worked logarithms are natural ones: `base=math.e` gives them.

    >>> import jax.numpy as jnp, softjax
    >>> print(softjax.log_softmax(jnp.array([0.0, 10.0, 15.0, 18.0, 20.0])).round(4))
    [-8.7436 -4.4007 -2.2292 -0.9263 -0.0577]
    """
    if isinstance(axis, (tuple, list)):
        return _over_several_axes(partial(log_softmax, base=base), logits, axis, where, axis_name)
    logits, axis = arrays.logits(logits, axis)
    base, exists = options.base(base), arrays.where(where, logits)
    return _softmax_or_log(_SoftmaxConfig(axis, split_for_logits(axis_name, None, logits, axis), base), logits, exists)


def _over_several_axes(function, logits, axis, where, axis_name):
    """`function` over several class axes, which are merged into the last axis."""
    if axis_name is not None:
        raise ValueError(f"`axis` must be one axis where `axis_name` splits it, got {tuple(axis)}.")
    logits = arrays.floating("logits", logits)
    axes, mask = arrays.axes("logits", logits, axis), arrays.where(where, logits)
    last = tuple(range(-len(axes), 0))

    def merge(array: Array) -> Array:
        moved = jnp.moveaxis(array, axes, last)
        return moved.reshape((*moved.shape[: -len(axes)], -1))

    exists = None if mask is None else merge(jnp.broadcast_to(mask, logits.shape))
    shape = jnp.moveaxis(logits, axes, last).shape
    return jnp.moveaxis(function(merge(logits), where=exists).reshape(shape), last, axes)


class _SoftmaxConfig(NamedTuple):
    """The static part of a call."""

    axis: int
    split: Split
    base: float | None = None
    """The base of log_b q; None for q itself."""


@partial(jax.jit, static_argnums=0)
def _softmax_or_log(config, logits, where):
    specs = [config.split.logits_spec(array, config.axis) for array in (logits, where)]
    return config.split.shard_map(partial(_local, config), specs, specs[0])(logits, where)


def _local(config, logits, where):
    axis, split, base = config
    (x, where), _ = with_same_varying_axes(split.class_mesh_axes, split.local_classes(axis, logits, where))
    classes = ClassAxis(axis, split.class_mesh_axes)
    if where is not None:
        x = jnp.where(where, x, jnp.where(classes.any(where), -jnp.inf, jnp.zeros((), x.dtype)))
    result = _probabilities(classes, x) if base is None else from_nats(_log_probabilities(classes, x), base)
    if where is not None:
        result = jnp.where(where, result, 0 if base is None else -jnp.inf)  # a constant, without a derivative
    return reshard_like(logits, split.slice_classes(result.astype(logits.dtype), axis))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(classes, x):
    return _softmax_forward(classes, x)[0]


def _softmax_forward(classes, x):
    s = log_sum(classes, x, None)
    q = _exp_over_mass(classes, x, s)
    return q, _residuals(q, x, s)


def _exp_over_mass(classes, x, s):
    return jnp.exp(below_peak(classes, one_cpu.widen(x), s)) / s.mass


def _residuals(result, x, s):
    """The result, or logits of a narrower dtype, from which the backward pass computes it again; and the row's sums."""
    return (result if result.dtype == x.dtype else x), s


def _softmax_backward(classes, residuals, g):
    # ∂q_i/∂x_j = q_i ([i = j] − q_j)  ⇒  dx_j = q_j (g_j − Σ_i q_i g_i)
    # For a dominant class q_j (g_j (1 − q_j) − Σ_{i≠j} q_i g_i), in which nothing cancels.
    kept, s = residuals
    q = kept if kept.dtype == g.dtype else _exp_over_mass(classes, kept, s)
    is_dominant = q > 0.5
    for_dominant = g * s.one_minus_q_peak - classes.sum_keepdims(drop_peak(q) * g)
    dx = q * jnp.where(is_dominant, for_dominant, g - classes.sum_keepdims(q * g))
    return (dx.astype(kept.dtype),)


_softmax.defvjp(opaque_to_remat(_softmax_forward), _softmax_backward)
_probabilities = with_forward_mode(_softmax)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_softmax(classes, x):
    return _log_softmax_forward(classes, x)[0]


def _log_softmax_forward(classes, x):
    s = log_sum(classes, x, None)
    log_q = _minus_log_mass(classes, x, s)
    return log_q, _residuals(log_q, x, s)


def _minus_log_mass(classes, x, s):
    return below_peak(classes, one_cpu.widen(x), s) - s.log_mass


def _log_softmax_backward(classes, residuals, g):
    # ∂ln q_i/∂x_j = [i = j] − q_j  ⇒  dx_j = g_j − q_j Σ_i g_i
    # For a dominant class g_j (1 − q_j) − q_j Σ_{i≠j} g_i, in which nothing cancels.
    kept, s = residuals
    q = jnp.exp(kept if kept.dtype == g.dtype else _minus_log_mass(classes, kept, s))
    is_dominant = q > 0.5
    for_dominant = g * s.one_minus_q_peak - q * classes.sum_keepdims(jnp.where(is_dominant, 0, g))
    dx = jnp.where(is_dominant, for_dominant, g - q * classes.sum_keepdims(g))
    return (dx.astype(kept.dtype),)


_log_softmax.defvjp(opaque_to_remat(_log_softmax_forward), _log_softmax_backward)
_log_probabilities = with_forward_mode(_log_softmax)
