"""The few numbers of a row that every loss is made of, and their analytic pull-back to a block of logits."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax import _checks as checks
from softjax import _labels, _log_sum
from softjax import _mesh as mesh
from softjax import _placement as placement
from softjax._differentiable import differentiable
from softjax._split import Split, split_of_logits
from softjax._types import Array, ArrayLike, Axis, AxisName, Bool, Float
from softjax._widen import wide, widen


class Statistics(NamedTuple):
    """What every loss here is made of: one number for each sample, in nats, float32 or wider.

    With logits x, label y (or a distribution p) and q = softmax(x):
    """

    log_normalizer: Float[Array, "*samples"]
    """z = ln Σ_j exp x_j"""
    label_logit: Float[Array, "*samples"]
    """a = x_y, or Σ_j p_j x_j"""
    mean_logit: Float[Array, "*samples"]
    """m = (1/C) Σ_j x_j over the C classes that exist"""
    entropy: Float[Array, "*samples"]
    """H = −Σ_j q_j ln q_j"""


def statistics(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Statistics:
    """The statistics of each sample: ln Σ exp x, x_y, the mean of x, and the entropy of softmax(x).

    The losses of this package are arithmetic on these; a − z is the log-probability of the label. What is not used
    costs nothing under `jit`, forward or backward.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        labels: integer class ids `[*samples]`, or a floating distribution of the shape of `logits`.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: the classes that exist.
        axis_name: the mesh axis, or axes, over which the classes are split: bound by a `shard_map` or `vmap` around
            the call, else of the mesh in context. Class ids stay global.

    Returns:
        `Statistics`, each `[*samples]`, in float32, or float64 if `logits` or a distribution are float64. The
        `label_logit` is NaN for a class id out of range and −inf for a class that `where` leaves out.

    Raises:
        TypeError: `logits` that are not real floating, labels neither integer nor floating, `where` not boolean.
        ValueError: a shape or an axis that does not fit.

    Source: the gradients are those of the DeepLibs softmax document, ∂z/∂x_j = q_j and ∂a/∂x_j = [j = y], with
    ∂m/∂x_j = 1/C and ∂H/∂x_j = −q_j (x_j − z + H).

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([0.0, 10.0, 15.0, 18.0, 20.0]), jnp.array(4))
    >>> print(f"{s.label_logit - s.log_normalizer:.4f} {s.mean_logit:.1f} {s.entropy:.4f}")
    -0.1329 12.6 0.3998
    """
    logits, axis = checks.logits(logits, axis)
    labels = checks.labels(labels, logits.shape, axis)
    return _public(logits, labels, checks.where(where, logits), axis, split_of_logits(axis_name, None, logits, axis))


@partial(jax.jit, static_argnums=(3, 4))
def _public(logits: Array, labels: Array, where: Array | None, axis: int, split: Split) -> Statistics:
    def local(logits: Array, labels: Array, where: Array | None) -> Statistics:
        logits, where = split.gathered(logits, axis), split.gathered(where, axis)
        labels = labels if _labels.is_ids(labels) else split.gathered(labels, axis)
        wanted = Wanted(axis, relative=False, label=True, mean=True, entropy=True, names=split.classes)
        return Statistics(*row_statistics(wanted, logits, labels, where)[:4])

    specs = [split.of_logits(logits, axis), split.of_labels(labels, axis), split.of_logits(where, axis)]
    return split.over(local, (logits, labels, where), specs, split.result)


class Wanted(NamedTuple):
    """Which numbers to compute: a static choice, so that what is not wanted costs nothing.

    `relative` measures logits from the peak of their row: z − peak, a − peak and m − peak. Losses are differences of
    these, and at a peak of 1e4 the differences of the absolute numbers would keep three digits.
    """

    axis: int
    relative: bool = True
    label: bool = True
    mean: bool = False
    entropy: bool = False
    names: mesh.Names = ()
    """The mesh axes over which the classes are split."""


class Rows(NamedTuple):
    """The statistics of a block of logits, None (`Any`) where not wanted, and the origin they are measured from."""

    log_normalizer: Float[Array, "..."]
    label_logit: Any
    mean_logit: Any
    entropy: Any
    label_mass: Any
    """P = Σ_j p_j over the classes that exist; None for a class id, whose mass is 1."""
    origin: Float[Array, "..."]


class Residuals(NamedTuple):
    """What the pull-back of a block of logits needs: its arguments and a few numbers a row."""

    logits: Array
    labels: Array
    where: Bool[Array, "..."] | None
    log_sum: _log_sum.LogSum
    entropy: Float[Array, "*rows"] | None
    absent: Bool[Array, "*rows"] | None
    weighted: Bool[Array, "*rows"] | None


def row_statistics(
    wanted: Wanted,
    logits: Array,
    labels: Array,
    where: Bool[Array, "..."] | None,
    weighted: Bool[Array, "*samples"] | None = None,
) -> Rows:
    """The wanted statistics. A row that is not `weighted` may hold anything: where they are not finite, they are 0."""
    if _labels.is_ids(labels):
        (logits, where), (labels, weighted) = placement.aligned(wanted.names, (logits, where), (labels, weighted))
        labels = _labels.canonical(labels, logits.shape[wanted.axis] * mesh.size(wanted.names))
        labels = jnp.expand_dims(labels, wanted.axis)
    else:
        split = (logits, labels, where)
        (logits, labels, where), (weighted,) = placement.aligned(wanted.names, split, (weighted,))
        if wide(logits) != wide(labels):
            logits, labels = logits.astype(jnp.float64), labels.astype(jnp.float64)
    if weighted is not None:
        weighted = jnp.expand_dims(weighted, wanted.axis)
    rows = _rows(wanted, logits, labels, where, weighted)
    return jax.tree.map(lambda number: jnp.squeeze(number, wanted.axis), rows)


def forward(wanted, logits, labels, where, weighted, *, moving):
    """The wanted numbers of each row, the class axis kept at length 1. Ids are canonical and have that axis, too."""
    axis, names = wanted.axis, wanted.names
    pair = _log_sum.log_sum(logits, where, axis, names, bool(moving))
    origin = _log_sum.origin(pair.peak) if wanted.relative else jnp.zeros_like(pair.peak)
    rows = Rows(
        log_normalizer=pair.log_mass if wanted.relative else pair.log,
        label_logit=_label_logit(logits, labels, where, origin, axis, names) if wanted.label else None,
        mean_logit=_mean_logit(logits, where, origin, axis, names) if wanted.mean else None,
        entropy=_entropy(logits, where, pair, axis, names) if wanted.entropy else None,
        label_mass=_label_mass(labels, where, axis, names) if wanted.relative else None,
        origin=origin,
    )
    absent = _absent(rows, where, weighted, axis, names)
    if absent is not None:
        pair = _log_sum.LogSum(jnp.where(absent, 0, pair.peak), jnp.where(absent, 1, pair.mass))
        if wanted.relative or weighted is not None:
            rows = jax.tree.map(lambda number: jnp.where(absent, 0, number), rows)
    return rows, Residuals(logits, labels, where, pair, rows.entropy, absent, weighted)


def _absent(rows, where, weighted, axis, names):
    """The rows without a class that exists, and those of weight 0 that are not finite: their numbers and slopes are 0.

    Anything in a row that is not a number makes one of its statistics not finite. A finite row of weight 0 stays: it
    keeps its derivatives with respect to its weight.
    """
    absent = None if where is None else ~exists(where, axis, names)
    if weighted is not None:
        void = ~weighted & ~jnp.isfinite(sum(number for number in rows if number is not None))
        absent = void if absent is None else absent | void
    return absent


def backward(wanted, residuals, cotangents, *, moving=(0, 1)):
    """The cotangents of the logits and of the labels, from those of the numbers that something depends on."""
    x, labels, where, pair, entropy, absent, _ = residuals
    dz, da, dm, dh, dmass, _ = cotangents  # the origin is a constant: what it adds to one number it takes off another
    xs = _present(_log_sum.existing(x, where), absent, -jnp.inf)
    e = _log_sum.shifted_exp(xs, pair.peak)
    dx = placement.like(jnp.zeros((), e.dtype), x)
    if dz is not None:
        # ∂z/∂x_j = q_j = exp(x_j − peak) / mass
        dx = e * (dz / pair.mass)
    if dh is not None:
        # ∂H/∂x_j = −q_j (x_j − z + H), and 0 where q_j is 0
        surprise = _measured(e, xs, _log_sum.origin(pair.peak)) - pair.log_mass + _present(entropy, absent)
        dx = dx - e * jnp.where(e == 0, 0, surprise) * (dh / pair.mass)
    ids = _labels.is_ids(labels)
    if da is not None:
        # ∂a/∂x_j = p_j, with p_j = [j = y] for a class id
        if ids:
            dx = jnp.where(_labels.matches(labels, x, wanted.axis, wanted.names), dx + da, dx)
        else:
            dx = dx + _present(widen(labels), absent) * da
    if dm is not None:
        # ∂m/∂x_j = 1/C
        dx = dx + dm / _classes(x, where, wanted.axis, wanted.names)
    dx = jnp.broadcast_to(dx, x.shape)
    dp = None if ids or 1 not in moving else _labels_backward(wanted, residuals, da, dmass)
    return _only(dx, where, absent).astype(x.dtype), dp, None, None


def _labels_backward(wanted, residuals, da, dmass):
    # ∂a/∂p_j = x_j, measured as a is    ∂P/∂p_j = 1
    x, labels, where, pair, _, absent, weighted = residuals
    dp = jnp.zeros(labels.shape, pair.mass.dtype)
    if da is not None:
        measured = widen(x) - _log_sum.origin(pair.peak) if wanted.relative else widen(x)
        if weighted is not None:
            measured = jnp.where(weighted | jnp.isfinite(measured), measured, 0)
        dp = dp + _present(measured, absent) * da
    if dmass is not None:
        dp = dp + dmass
    return _only(dp, where, absent).astype(labels.dtype)


def _present(number: Array, absent: Array | None, instead: float = 0) -> Array:
    """`number`, `instead` in absent rows: a NaN there would survive multiplication by a cotangent or tangent of 0."""
    # by way of a number of each row: of a constant, XLA makes an array outside the loop that it stands in
    return number if absent is None else jnp.where(absent, jnp.where(absent, instead, 1), number)


def _only(gradient: Array, where: Array | None, absent: Array | None) -> Array:
    """The gradient, exactly 0 at classes that do not exist and in absent rows."""
    return _present(gradient if where is None else jnp.where(where, gradient, 0), absent)


def _label_logit(x, labels, where, origin, axis, names):
    if _labels.is_ids(labels):
        there = x if where is None else jnp.where(where, x, -jnp.inf)
        return _labels.pick(there, labels, axis, where is None, names) - origin
    # 0 · (−inf) = 0: a class of no mass takes no part, whatever its logit
    p = widen(labels)
    massive = (p != 0) if where is None else (p != 0) & where
    return mesh.total(jnp.sum(jnp.where(massive, p * (widen(x) - origin), 0), axis, keepdims=True), names)


def _label_mass(labels, where, axis, names):
    if _labels.is_ids(labels):
        return None
    return mesh.total(jnp.sum(widen(labels), axis, keepdims=True, where=where), names)


def _mean_logit(x, where, origin, axis, names):
    # Apart from the x − peak of the exponentials, which XLA would otherwise keep as an array to serve both sums.
    apart = jax.lax.optimization_barrier(origin)
    sums = mesh.total(jnp.sum(widen(x) - apart, axis, keepdims=True, where=where), names)
    mean = sums / _classes(x, where, axis, names)
    return jnp.where(origin == jnp.inf, -jnp.inf, mean)  # the +inf itself would be measured as inf − inf


def _entropy(x, where, pair, axis, names):
    # H = ln mass − Σ_j q_j (x_j − peak)
    xs = _log_sum.existing(x, where)
    e = _log_sum.shifted_exp(xs, pair.peak)
    spread = mesh.total(jnp.sum(e * _measured(e, xs, _log_sum.origin(pair.peak)), axis, keepdims=True), names)
    entropy = pair.log_mass - spread / pair.mass
    return entropy if where is None else jnp.where(exists(where, axis, names), entropy, 0)


def _measured(e, x, origin):
    """x_j − origin, 0 where q_j is 0: 0 · ln 0 = 0."""
    return jnp.where(e == 0, 0, x - origin)


def _classes(x, where, axis, names):
    """The number of classes that exist, at least 1."""
    if where is None:
        return max(x.shape[axis] * mesh.size(names), 1)
    count = jnp.sum(where, axis, keepdims=True, dtype=jnp.int32)
    if where.shape[axis] == 1:
        count = count * x.shape[axis]
    count = mesh.total(count, names)
    return jnp.maximum(count, 1).astype(wide(x))


def exists(where: Bool[Array, "..."], axis: int, names: mesh.Names = ()) -> Bool[Array, "..."]:
    """Whether a row has any class that exists."""
    return mesh.exists(jnp.any(where, axis, keepdims=True), names)


def _backward(wanted, residuals, cotangents, *, moving):
    return backward(wanted, residuals, mesh.whole(cotangents, wanted.names), moving=moving)


_rows = differentiable(forward, _backward)
