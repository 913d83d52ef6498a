"""What a row takes from its target, and the target's part of the derivative.

The target p of a row is a class id y, a distribution over all classes, or p_i at a few classes j_i. Of q = softmax(x),
with z = ln Σ_j exp x_j and P = Σ p:

    label_logit    a = x_y, Σ_j p_j x_j or Σ_i p_i x_{j_i}                      ∂a/∂x_j = p_j
    cross_entropy  h = z − x_y, Σ_j p_j (z − x_j) or Σ_i p_i (z − x_{j_i})      ∂h/∂x_j = q_j P − p_j
    surprisals   h_i = z − x_{j_i}, of the few classes                          ∂h_i/∂x_j = q_j − [j = j_i]

No array of all classes stands for the few: what a class takes from them is added to it where it is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax._args.labels import ClassIds, Distribution, FewProbabilities, TopKClasses
from softjax._args.types import Array, Bool, Float, Integer
from softjax._mesh.axes import ClassAxis, axis_size, psum, varying_like
from softjax._rows.block import Block
from softjax._rows.edges import nan_where, zero_ignored
from softjax._rows.log_sum import LogSum, below_peak, exp_below_peak, log_sum, minus_peak
from softjax._xla import one_cpu
from softjax._xla.gather import add_at_classes


class TargetStatistics(NamedTuple):
    """The numbers of a row that depend on its target."""

    label: Integer[Array, "*rows"]
    """The most probable class, the first of equals, −1 if none has mass; it keeps the class axis."""
    logit: Float[Array, "*rows"]
    cross_entropy: Float[Array, "*rows"]
    surprisals: Any = None
    """−ln q at a few classes, which keep the place of the class axis"""
    ids: Any = None
    """These classes"""


class FewClasses(NamedTuple):
    """A few classes, and what the pull-back needs of them."""

    ids: Integer[Array, "..."]
    logits: Float[Array, "..."]
    probabilities: Float[Array, "..."]
    """0 where a class does not exist, and in a row with mass at an id that is no class."""
    exist: Bool[Array, "..."]
    """False throughout such a row, too."""


class RowResiduals(NamedTuple):
    """What the pull-back needs of a row."""

    log_sum: LogSum
    """Its rest is 0 in the dropped rows; its peak is what it is there, as the sum has taken it."""
    dropped: Bool[Array, "*rows"] | None
    """The rows that are not counted and not finite, None where all are counted."""
    target: Any
    """Of a class id x_y, of a distribution P and its part beside the peak, or `Few`."""


def measure_row(classes: ClassAxis, block: Block, x: Array) -> tuple[TargetStatistics, RowResiduals]:
    s = log_sum(classes, block.logits, block.exists)
    of = {ClassIds: _measure_id, Distribution: _measure_distribution}.get(type(block.target), _measure_few)
    labelled, target = of(classes, block, x, s)
    # not counted and not finite, which shows in peak or rest
    dropped = None if block.active is None else ~block.active & ~(jnp.isfinite(s.peak) & jnp.isfinite(s.rest))
    if isinstance(target, FewClasses):
        target = target._replace(logits=_zero_dropped(dropped, target.logits))
    return labelled, RowResiduals(s._replace(rest=_zero_dropped(dropped, s.rest)), dropped, target)


def _zero_dropped(dropped: Array | None, number: Array) -> Array:
    return number if dropped is None else jnp.where(dropped, 0, number)


def target_derivatives(classes: ClassAxis, block: Block, measured: RowResiduals, q: Array) -> tuple[Any, Any]:
    """∂a/∂x_j and the document's gradient ∂h/∂x_j, None where they are added later."""
    of = {ClassIds: _id_derivatives, Distribution: _distribution_derivatives}.get(type(block.target))
    return of(classes, block, measured, q) if of else (None, None)


def target_vjp(
    classes: ClassAxis, block: Block, measured: RowResiduals, dx: Array, cotangents: tuple[Any, ...]
) -> tuple[Array, Any]:
    """dx, with all of the target's part, and the cotangents of its probabilities, from those of a, h and h_i."""
    if isinstance(block.target, ClassIds):
        return dx, None
    if isinstance(block.target, Distribution):
        dp = _distribution_vjp(classes, block, measured, cotangents)
        return dx, Distribution(dp.astype(block.target.probabilities.dtype))
    dx, dp = _few_vjp(classes, block, measured, dx, cotangents)
    if isinstance(block.target, TopKClasses):
        return dx, None
    dp = classes.divide_cotangent(dp).astype(block.target.probabilities.dtype)  # pyright: ignore[reportAttributeAccessIssue]
    return dx, FewProbabilities(None, dp)  # pyright: ignore[reportArgumentType]


# A class id.


def _measure_id(classes: ClassAxis, block: Block, _: Array, s: LogSum) -> tuple[TargetStatistics, Array]:
    ids = block.target.ids  # pyright: ignore[reportAttributeAccessIssue]
    logit = block.logits_at(classes, ids)
    outside = ids < 0 if block.active is None else (ids < 0) & block.active
    a = classes.squeeze(nan_where(outside, logit))
    peak, log_mass = classes.squeeze(s.peak), LogSum(*map(classes.squeeze, s)).log_mass
    # h = ln Σ exp(x_j − peak) + (peak − x_y), a sum of two numbers that are at least 0
    return TargetStatistics(ids, a, log_mass - minus_peak(a, peak)), logit


def _id_derivatives(classes: ClassAxis, block: Block, measured: RowResiduals, q: Array) -> tuple[Array, Array]:
    """[j = y], and q_j − [j = y], which at the label is −(1 − q_y)."""
    ids, s = block.target.ids, measured.log_sum  # pyright: ignore[reportAttributeAccessIssue]
    label = block.class_ids(classes, ids) == ids
    a, row, dropped = jax.tree.map(classes.squeeze, (measured.target, s, measured.dropped))
    others = jnp.expand_dims(row.one_minus_q(exp_below_peak(classes, a, row, dropped)), classes.axis)
    # 0 for an id that is no class, by way of a number of each row: of a constant, XLA makes an array outside of a loop
    return label.astype(q.dtype), jnp.where(label, -others, q * jnp.where(ids < 0, 0, jnp.ones_like(s.rest)))


# A distribution.


def _measure_distribution(
    classes: ClassAxis, block: Block, x: Array, s: LogSum
) -> tuple[TargetStatistics, tuple[Array, Array]]:
    p = block.wide_probabilities()
    massive = p != 0  # 0 · (−inf) = 0: a class of no mass takes no part, whatever its logit
    mass, beside = classes.sum_keepdims(p), classes.sum_keepdims(jnp.where(x == s.peak, 0, p))
    a = classes.sum(jnp.where(massive, p * jnp.where(massive, x, 0), 0))
    distance = jnp.where(massive, -minus_peak(x, s.peak), 0)
    h = classes.squeeze(mass * s.log_mass) + classes.sum(jnp.where(massive, p * distance, 0))
    most = classes.max(p)
    return TargetStatistics(jnp.where(most > 0, block.first_equal(classes, p, most), -1), a, h), (mass, beside)


def _distribution_derivatives(
    classes: ClassAxis, block: Block, measured: RowResiduals, q: Array
) -> tuple[Array, Array]:
    """p_j, and q_j P − p_j."""
    s, x, p = measured.log_sum, block.wide_logits(), block.wide_probabilities()
    # Σ_{i≠j} p_i − (1 − q_j) P, for the class at the peak, where all but the others' would cancel
    mass, beside = measured.target
    e = exp_below_peak(classes, x, s, measured.dropped)
    return p, jnp.where(s.is_dominant(x), beside - s.one_minus_q(e) * mass, q * mass - p)


def _distribution_vjp(classes: ClassAxis, block: Block, measured: RowResiduals, cotangents: tuple[Any, ...]) -> Array:
    da, dh, _ = cotangents
    p, x = block.wide_probabilities(), block.wide_logits(measured.dropped)
    return block.zero_missing(_probability_derivative(classes, p, x, measured, da, dh))


def _probability_derivative(
    classes: ClassAxis, p: Array, x: Array, measured: RowResiduals, da: Array, dh: Array
) -> Array:
    """x_j da + (z − x_j) dh; 0 where both p_j and exp x_j are, whatever p_j does there."""
    # Apart from them the x_j = −inf of ∂(a − h)/∂p_j: the cotangent of what nobody reads may be 0, and 0 · inf is NaN.
    s, gone = measured.log_sum, x == -jnp.inf
    s = s._replace(peak=_zero_dropped(measured.dropped, s.peak))
    by_h, endless = jnp.where(gone, 0, s.log_mass - below_peak(classes, x, s)), jnp.where(gone & (p != 0), x, 0)
    return jnp.where(gone, 0, x) * da + by_h * dh + endless * (da - dh)


# A few classes.


def _measure_few(classes: ClassAxis, block: Block, x: Array, s: LogSum) -> tuple[TargetStatistics, FewClasses]:
    if isinstance(block.target, TopKClasses):
        ids = _top_k_ids(classes, block, x, block.target.k)
        p = jnp.zeros_like(ids, x.dtype)
    else:
        ids, p = block.target  # pyright: ignore[reportGeneralTypeIssues, reportAssignmentType]
        p = zero_ignored(one_cpu.widen(p), block.active)
    wrong = jnp.any((ids < 0) & (p != 0), classes.axis, keepdims=True)
    exist, logits = block.exists_at(classes, ids), block.logits_at(classes, ids)
    p = jnp.where(wrong | ~exist, 0, p)
    surprisals = s.log_mass - minus_peak(logits, s.peak)

    def summed(each: Array) -> Array:
        massive = p != 0
        number = jnp.sum(jnp.where(massive, p * jnp.where(massive, each, 0), 0), classes.axis, keepdims=True)
        return classes.squeeze(nan_where(wrong, number))

    of_ids = zero_ignored(nan_where(ids < 0, surprisals), block.active), ids
    row = TargetStatistics(_most_probable_id(classes, ids, p), summed(logits), summed(surprisals), *of_ids)
    return row, FewClasses(ids, logits, p, exist & ~wrong)


def _most_probable_id(classes: ClassAxis, ids: Array, p: Array) -> Integer[Array, "*rows"]:
    before, after = classes.axis - 1, classes.axis
    equal = jnp.expand_dims(ids, before) == jnp.expand_dims(ids, after)
    mass = jnp.sum(jnp.where(equal, jnp.expand_dims(p, before), 0), after)
    most, nowhere = jnp.max(mass, after, keepdims=True, initial=0), jnp.iinfo(ids.dtype).max
    first = jnp.min(jnp.where(mass == most, ids, nowhere), after, keepdims=True, initial=nowhere)
    return jnp.where(most > 0, first, -1)


def _top_k_ids(classes: ClassAxis, block: Block, x: Array, k: int) -> Integer[Array, "..."]:
    """The classes of the k largest logits, sorted as `jax.lax.top_k` sorts.

    Of classes that are split each device gives its own k, and nothing larger goes from one to another.
    """
    rows = jnp.moveaxis(lax.stop_gradient(x), classes.axis, -1)
    logits, ids = lax.top_k(rows, min(k, rows.shape[-1]))
    if classes.names:
        ids = ids + block.first_id  # pyright: ignore[reportOperatorIssue]
        logits, ids = (_all_gather(classes, part) for part in (logits, ids))
        ids = jnp.take_along_axis(ids, lax.top_k(logits, k)[1], -1)
    return jnp.moveaxis(ids, -1, classes.axis)


def _all_gather(classes: ClassAxis, part: Array) -> Array:
    """The parts of all devices, the same on each of them: as a sum, of which types know that."""
    length = part.shape[-1]
    every = varying_like(jnp.zeros((*part.shape[:-1], length * axis_size(classes.names)), part.dtype), part)
    here = lax.axis_index(classes.names) * length
    return psum(lax.dynamic_update_slice_in_dim(every, part, here, -1), classes.names)


def _few_vjp(
    classes: ClassAxis, block: Block, measured: RowResiduals, dx: Array, cotangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    da, dh, each = cotangents
    s, (ids, logits, p, exist), x = measured.log_sum, measured.target, block.wide_logits()
    e = exp_below_peak(classes, x, s, measured.dropped)
    c = jnp.where(exist, p * dh + each, 0)
    mass, beside = (jnp.sum(a, classes.axis, keepdims=True) for a in (c, jnp.where(logits == s.peak, 0, c)))
    # q_j Σ_i c_i − Σ_{i: j_i = j} c_i, and for a class alone at the peak Σ_{i: j_i ≠ j} c_i − (1 − q_j) Σ_i c_i
    alone = s.is_dominant(x)
    dx = dx + jnp.where(alone, -s.one_minus_q(e), e / s.mass) * mass + alone.astype(x.dtype) * beside
    dx = add_at_classes(dx, block.local_ids(ids), classes.axis, p * da - jnp.where(s.is_dominant(logits), 0, c))
    return dx, jnp.where(exist, _probability_derivative(classes, p, logits, measured, da, dh), 0)
