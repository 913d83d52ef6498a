"""softmax and log-softmax, with their analytic pull-backs."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softjax import _checks as checks
from softjax import _cpu as cpu
from softjax import _options as options
from softjax._block import block_of
from softjax._classes import Classes, aligned
from softjax._every_mode import in_every_mode, one_operation
from softjax._labels import SparseLabels, without_mass
from softjax._log_sum import below, log_sum
from softjax._placement import split_of_logits
from softjax._reduce import from_nats
from softjax._rows import rows
from softjax._split import Split
from softjax._types import Array, ArrayLike, Axes, Axis, AxisName, Number
from softjax._validation import ids_of


def softmax(logits: ArrayLike, *, axis: Axes = -1, where: ArrayLike | None = None, axis_name: AxisName = None) -> Array:
    """q_i = exp x_i / Σ_j exp x_j.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        axis: the class axis of `logits`, or a tuple of axes that hold the classes together.
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
    if isinstance(axis, (tuple, list)):
        return _of_several_axes(softmax, logits, axis, where, axis_name)
    logits, axis = checks.logits(logits, axis)
    exist = checks.where(where, logits)
    return _over_devices(_Static(axis, split_of_logits(axis_name, None, logits, axis)), logits, exist)


def log_softmax(
    logits: ArrayLike,
    *,
    base: Number = 10.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """log_b q_i = (x_i − ln Σ_j exp x_j) / ln b, never as the logarithm of a rounded probability.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats.
        axis: the class axis of `logits`, or a tuple of axes that hold the classes together.
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
    if isinstance(axis, (tuple, list)):
        return _of_several_axes(partial(log_softmax, base=base), logits, axis, where, axis_name)
    logits, axis = checks.logits(logits, axis)
    base, exist = options.base(base), checks.where(where, logits)
    return _over_devices(_Static(axis, split_of_logits(axis_name, None, logits, axis), base), logits, exist)


def log_probabilities(
    logits: ArrayLike,
    ids: ArrayLike,
    *,
    base: Number = 10.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """log_b q at k classes of each sample, exact for confident rows, without an array of all log-probabilities.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        ids: integer class ids `[*samples, k]`, k last whatever `axis` is.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: the classes that exist.
        axis_name: as in `softmax`; ids stay global.

    Returns:
        `[*samples, k]`, float32, or float64 if `logits` are; NaN with gradient 0 for an id out of range, −inf with
        gradient 0 for a class that `where` leaves out.

    Raises:
        TypeError: `logits` that are not real floating, `ids` that are not integer, `where` not boolean.
        ValueError: a shape, an axis or a `base` that does not fit.

    Source: the gradient is that of the DeepLibs softmax document, summed over the k classes.

    >>> import jax.numpy as jnp, softjax
    >>> print(softjax.log_probabilities(jnp.array([0.0, 10.0, 15.0, 18.0, 20.0]), jnp.array([4, 2])).round(4))
    [-0.0577 -2.2292]
    """
    logits, axis = checks.logits(logits, axis)
    ids = ids_of("ids", ids, checks.samples(logits.shape, axis))
    static = _Static(axis, split_of_logits(axis_name, None, logits, axis), options.base(base))
    return _at_ids(static, logits, without_mass(ids), checks.where(where, logits))


@partial(jax.jit, static_argnums=0)
def _at_ids(static, logits, asked, where):
    axis, split, base = static

    def local(logits: Array, asked: SparseLabels, where: Array | None) -> Array:
        classes, logits, target, where = split.dense(logits, asked, where, axis)
        some, exist = (None, None) if where is None else (classes.any(where), classes.nonempty(where))
        surprisals = rows(classes, block_of(classes, logits, target, exist, some)).surprisals
        surprisals = surprisals if some is None else jnp.where(some, surprisals, jnp.inf)
        return from_nats(-jnp.moveaxis(surprisals, axis, -1), base)

    return split.over(local, split.of_dense(logits, asked, where, axis), split.result)(logits, asked, where)


def _of_several_axes(function, logits, axis, where, axis_name):
    """`function` of the logits with these axes put together as their last one."""
    if axis_name is not None:
        raise ValueError(f"`axis` must be one axis where `axis_name` splits it, got {tuple(axis)}.")
    logits = checks.floating("logits", logits)
    axes, mask = checks.axes("logits", logits, axis), checks.where(where, logits)
    last = tuple(range(-len(axes), 0))

    def flat(array: Array) -> Array:
        moved = jnp.moveaxis(array, axes, last)
        return moved.reshape((*moved.shape[: -len(axes)], -1))

    exist = None if mask is None else flat(jnp.broadcast_to(mask, logits.shape))
    shape = jnp.moveaxis(logits, axes, last).shape
    return jnp.moveaxis(function(flat(logits), where=exist).reshape(shape), last, axes)


class _Static(NamedTuple):
    axis: int
    split: Split
    base: float | None = None
    """That of log_b q, None for q."""


@partial(jax.jit, static_argnums=0)
def _over_devices(static, logits, where):
    specs = [static.split.of_logits(array, static.axis) for array in (logits, where)]
    return static.split.over(partial(_local, static), specs, specs[0])(logits, where)


def _local(static, logits, where):
    axis, split, base = static
    (x, where), _ = aligned(split.classes, tuple(split.gathered(a, axis) for a in (logits, where)))
    classes = Classes(axis, split.classes)
    if where is not None:
        x = jnp.where(where, x, jnp.where(classes.any(where), -jnp.inf, jnp.zeros((), x.dtype)))
    number = _probabilities(classes, x) if base is None else from_nats(_log_probabilities(classes, x), base)
    if where is not None:
        number = jnp.where(where, number, 0 if base is None else -jnp.inf)  # a constant, to every derivative
    return split.scattered(number.astype(logits.dtype), axis)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(classes, x):
    return _softmax_forward(classes, x)[0]


def _softmax_forward(classes, x):
    s = log_sum(classes, x, None)
    return jnp.exp(below(classes, cpu.widen(x), s)) / s.mass, (x, s)


def _softmax_backward(classes, residuals, g):
    # ∂q_i/∂x_j = q_i ([i = j] − q_j)  ⇒  dx_j = q_j (g_j − Σ_i q_i g_i)
    # and for a class alone at the peak q_j (g_j (1 − q_j) − Σ_{i≠j} q_i g_i), in which nothing cancels
    x, s = residuals
    e = jnp.exp(below(classes, cpu.widen(x), s))
    q, alone = e / s.mass, s.alone(cpu.widen(x))
    apart = g * s.others(e) - classes.total(jnp.where(alone, 0, q * g))
    return ((q * jnp.where(alone, apart, g - classes.total(q * g))).astype(x.dtype),)


_softmax.defvjp(one_operation(_softmax_forward), _softmax_backward)
_probabilities = in_every_mode(_softmax)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_softmax(classes, x):
    return _log_softmax_forward(classes, x)[0]


def _log_softmax_forward(classes, x):
    s = log_sum(classes, x, None)
    return below(classes, cpu.widen(x), s) - s.log_mass, (x, s)


def _log_softmax_backward(classes, residuals, g):
    # ∂ln q_i/∂x_j = [i = j] − q_j  ⇒  dx_j = g_j − q_j Σ_i g_i
    # and for a class alone at the peak g_j (1 − q_j) − q_j Σ_{i≠j} g_i
    x, s = residuals
    e = jnp.exp(below(classes, cpu.widen(x), s))
    q, alone = e / s.mass, s.alone(cpu.widen(x))
    apart = g * s.others(e) - q * classes.total(jnp.where(alone, 0, g))
    return (jnp.where(alone, apart, g - q * classes.total(g)).astype(x.dtype),)


_log_softmax.defvjp(one_operation(_log_softmax_forward), _log_softmax_backward)
_log_probabilities = in_every_mode(_log_softmax)
