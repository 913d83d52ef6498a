"""The part of a row rule that depends on the target: values and derivatives.

The target p of a row is a class id y, a distribution over all classes, or p_i at a few classes j_i. With
q = softmax(x), z = ln Σ_j exp x_j and P = Σ p:

    label_logit    a = x_y, Σ_j p_j x_j or Σ_i p_i x_{j_i}                      ∂a/∂x_j = p_j
    cross_entropy  h = z − x_y, Σ_j p_j (z − x_j) or Σ_i p_i (z − x_{j_i})      ∂h/∂x_j = q_j P − p_j
    surprisals   h_i = z − x_{j_i}, at the few classes                          ∂h_i/∂x_j = q_j − [j = j_i]

A few classes never become an array over all classes: their gradient is added at their ids.
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
from softjax._rows.log_sum import LogSum, below_peak, exp_below_peak, minus_peak
from softjax._xla import one_cpu
from softjax._xla.gather import add_at_classes


class TargetStatistics(NamedTuple):
    """The values of a row that depend on its target. They have no class axis, unless a field says so."""

    label: Integer[Array, "*rows"]
    """The most probable class, the first of equals, −1 if none has mass. It keeps the class axis, at length 1."""
    logit: Float[Array, "*rows"]
    cross_entropy: Float[Array, "*rows"]
    surprisals: Any = None
    """−ln q at the few classes, along the class axis."""
    ids: Any = None
    """The few classes, along the class axis."""


class FewClasses(NamedTuple):
    """A few classes of each row, along the class axis, with what the backward pass needs of them."""

    ids: Integer[Array, "..."]
    logits: Float[Array, "..."]
    probabilities: Float[Array, "..."]
    """0 for a masked class, and in a row with mass at an id out of range."""
    exists: Bool[Array, "..."]
    """False for a masked class, and throughout a row with mass at an id out of range."""


class RowResiduals(NamedTuple):
    """What the backward pass needs of a row."""

    log_sum: LogSum
    """Its rest is 0 in dropped rows. Its peak stays as it is, since `exp_below_peak` subtracts that peak again."""
    dropped: Bool[Array, "*rows"] | None
    """Ignored rows with non-finite logits, None where all rows are active."""
    target: Any
    """x_y of a class id; (P, P without the peak's classes) of a distribution; or `FewClasses`."""


def measure_row(block: Block, x: Array, s: LogSum) -> tuple[TargetStatistics, RowResiduals]:
    """The values that depend on the target, and the residuals of the row; `x` are the block's wide logits."""
    measure = {ClassIds: _measure_id, Distribution: _measure_distribution}.get(type(block.target), _measure_few)
    statistics, target = measure(block, x, s)
    # A non-finite logit shows in the peak or in the rest.
    dropped = None if block.active is None else ~block.active & ~(jnp.isfinite(s.peak) & jnp.isfinite(s.rest))
    if isinstance(target, FewClasses):
        target = target._replace(logits=_zero_dropped(dropped, target.logits))
    return statistics, RowResiduals(s._replace(rest=_zero_dropped(dropped, s.rest)), dropped, target)


def _zero_dropped(dropped: Array | None, value: Array) -> Array:
    return value if dropped is None else jnp.where(dropped, 0, value)


def target_derivatives(block: Block, row: RowResiduals, q: Array) -> tuple[Any, Any]:
    """∂a/∂x_j and the document's gradient ∂h/∂x_j; None for a few classes, whose `target_vjp` adds them."""
    derivatives = {ClassIds: _id_derivatives, Distribution: _distribution_derivatives}.get(type(block.target))
    return derivatives(block, row, q) if derivatives else (None, None)


def target_vjp(block: Block, row: RowResiduals, dx: Array, cotangents: tuple[Any, ...]) -> tuple[Array, Any]:
    """dx with all of the target's part, and the cotangent of the target, from the cotangents of a, h and h_i."""
    if isinstance(block.target, ClassIds):
        return dx, None
    if isinstance(block.target, Distribution):
        dp = _distribution_vjp(block, row, cotangents)
        return dx, Distribution(dp.astype(block.target.probabilities.dtype))
    dx, dp = _few_vjp(block, row, dx, cotangents)
    if isinstance(block.target, TopKClasses):
        return dx, None
    dp = block.classes.divide_cotangent(dp).astype(block.target.probabilities.dtype)  # pyright: ignore[reportAttributeAccessIssue]
    return dx, FewProbabilities(None, dp)  # pyright: ignore[reportArgumentType]


# A class id.


def _measure_id(block: Block, _: Array, s: LogSum) -> tuple[TargetStatistics, Array]:
    classes, ids = block.classes, block.target.ids  # pyright: ignore[reportAttributeAccessIssue]
    logit = block.logits_at(ids)
    out_of_range = ids < 0 if block.active is None else (ids < 0) & block.active
    a = classes.squeeze(nan_where(out_of_range, logit))
    peak, log_mass = classes.squeeze(s.peak), LogSum(*map(classes.squeeze, s)).log_mass
    # h = ln Σ exp(x_j − peak) + (peak − x_y): both terms are at least 0, so nothing cancels
    return TargetStatistics(ids, a, log_mass - minus_peak(a, peak)), logit


def _id_derivatives(block: Block, row: RowResiduals, q: Array) -> tuple[Array, Array]:
    """[j = y], and q_j − [j = y], which at the label is −(1 − q_y)."""
    classes, ids = block.classes, block.target.ids  # pyright: ignore[reportAttributeAccessIssue]
    is_label = block.class_ids(ids) == ids
    a, s, dropped = jax.tree.map(classes.squeeze, (row.target, row.log_sum, row.dropped))
    one_minus_q = jnp.expand_dims(s.one_minus_q(exp_below_peak(classes, a, s, dropped)), classes.axis)
    # 0 for an id out of range. A per-row 0 or 1 on purpose: XLA would hoist a constant and materialise a full array.
    in_range = jnp.where(ids < 0, 0, jnp.ones_like(row.log_sum.rest))
    return is_label.astype(q.dtype), jnp.where(is_label, -one_minus_q, q * in_range)


# A distribution.


def _measure_distribution(block: Block, x: Array, s: LogSum) -> tuple[TargetStatistics, tuple[Array, Array]]:
    classes, p = block.classes, block.wide_probabilities()
    has_mass = p != 0  # 0 · (−inf) = 0: a class without mass does not count, whatever its logit
    mass, mass_beside_peak = classes.sum_keepdims(p), classes.sum_keepdims(jnp.where(x == s.peak, 0, p))
    a = classes.sum(jnp.where(has_mass, p * jnp.where(has_mass, x, 0), 0))
    distance = jnp.where(has_mass, -minus_peak(x, s.peak), 0)
    h = classes.squeeze(mass * s.log_mass) + classes.sum(jnp.where(has_mass, p * distance, 0))
    largest = classes.max(p)
    label = jnp.where(largest > 0, block.first_equal(p, largest), -1)
    return TargetStatistics(label, a, h), (mass, mass_beside_peak)


def _distribution_derivatives(block: Block, row: RowResiduals, q: Array) -> tuple[Array, Array]:
    """p_j, and q_j P − p_j; for a dominant class Σ_{i≠j} p_i − (1 − q_j) P, where the first form would cancel."""
    s, x, p = row.log_sum, block.wide_logits(), block.wide_probabilities()
    mass, mass_beside_peak = row.target
    e = exp_below_peak(block.classes, x, s, row.dropped)
    return p, jnp.where(s.is_dominant(x), mass_beside_peak - s.one_minus_q(e) * mass, q * mass - p)


def _distribution_vjp(block: Block, row: RowResiduals, cotangents: tuple[Any, ...]) -> Array:
    da, dh, _ = cotangents
    p, x = block.wide_probabilities(), block.wide_logits(row.dropped)
    return block.zero_masked(_probability_vjp(block.classes, p, x, row, (da, dh)))


def _probability_vjp(classes: ClassAxis, p: Array, x: Array, row: RowResiduals, cotangents: tuple[Any, Any]) -> Array:
    """x_j da + (z − x_j) dh; 0 where p_j = 0 and exp x_j = 0, whatever p_j does there."""
    # x_j = −inf has a term of its own: the cotangent of an unread value may be 0, and 0 · inf is NaN.
    (da, dh), s, no_logit = cotangents, row.log_sum, x == -jnp.inf
    s = s._replace(peak=_zero_dropped(row.dropped, s.peak))
    surprisal = jnp.where(no_logit, 0, s.log_mass - below_peak(classes, x, s))
    infinite = jnp.where(no_logit & (p != 0), x, 0)
    return jnp.where(no_logit, 0, x) * da + surprisal * dh + infinite * (da - dh)


# A few classes.


def _measure_few(block: Block, x: Array, s: LogSum) -> tuple[TargetStatistics, FewClasses]:
    classes = block.classes
    if isinstance(block.target, TopKClasses):
        ids = _top_k_ids(block, x, block.target.k)
        p = jnp.zeros_like(ids, x.dtype)
    else:
        ids, p = block.target  # pyright: ignore[reportGeneralTypeIssues, reportAssignmentType]
        p = zero_ignored(one_cpu.widen(p), block.active)
    invalid = jnp.any((ids < 0) & (p != 0), classes.axis, keepdims=True)
    exists, logits = block.exists_at(ids), block.logits_at(ids)
    p = jnp.where(invalid | ~exists, 0, p)
    surprisals = s.log_mass - minus_peak(logits, s.peak)

    def expectation(values: Array) -> Array:
        has_mass = p != 0
        terms = jnp.where(has_mass, p * jnp.where(has_mass, values, 0), 0)
        return classes.squeeze(nan_where(invalid, jnp.sum(terms, classes.axis, keepdims=True)))

    label = _most_probable_id(classes, ids, p)
    asked = zero_ignored(nan_where(ids < 0, surprisals), block.active)
    statistics = TargetStatistics(label, expectation(logits), expectation(surprisals), asked, ids)
    return statistics, FewClasses(ids, logits, p, exists & ~invalid)


def _most_probable_id(classes: ClassAxis, ids: Array, p: Array) -> Integer[Array, "*rows"]:
    """The id with the largest Σ p, the smallest of equals; −1 if no id has mass."""
    before, after = classes.axis - 1, classes.axis
    equal = jnp.expand_dims(ids, before) == jnp.expand_dims(ids, after)
    mass = jnp.sum(jnp.where(equal, jnp.expand_dims(p, before), 0), after)
    largest, no_id = jnp.max(mass, after, keepdims=True, initial=0), jnp.iinfo(ids.dtype).max
    first = jnp.min(jnp.where(mass == largest, ids, no_id), after, keepdims=True, initial=no_id)
    return jnp.where(largest > 0, first, -1)


def _top_k_ids(block: Block, x: Array, k: int) -> Integer[Array, "..."]:
    """The ids of the k largest logits, in the order of `jax.lax.top_k`.

    With sharded classes each device contributes its own k, and nothing larger is communicated.
    """
    classes = block.classes
    rows = jnp.moveaxis(lax.stop_gradient(x), classes.axis, -1)
    logits, ids = lax.top_k(rows, min(k, rows.shape[-1]))
    if classes.names:
        ids = ids + block.first_id  # pyright: ignore[reportOperatorIssue]
        bits = lax.bitcast_convert_type(logits, jnp.dtype(f"int{8 * logits.dtype.itemsize}"))  # a sum loses −0
        bits, ids = (_all_gather(classes, local) for local in (bits, ids))
        ids = jnp.take_along_axis(ids, lax.top_k(lax.bitcast_convert_type(bits, logits.dtype), k)[1], -1)
    return jnp.moveaxis(ids, -1, classes.axis)


def _all_gather(classes: ClassAxis, local: Array) -> Array:
    """Concatenates the last axis over devices. It is a psum, which types as invariant where an all-gather does not."""
    length = local.shape[-1]
    zeros = varying_like(jnp.zeros((*local.shape[:-1], length * axis_size(classes.names)), local.dtype), local)
    start = lax.axis_index(classes.names) * length
    return psum(lax.dynamic_update_slice_in_dim(zeros, local, start, -1), classes.names)


def _few_vjp(block: Block, row: RowResiduals, dx: Array, cotangents: tuple[Any, ...]) -> tuple[Array, Array]:
    da, dh, dsurprisals = cotangents
    classes, s, (ids, logits, p, exists), x = block.classes, row.log_sum, row.target, block.wide_logits()
    e = exp_below_peak(classes, x, s, row.dropped)
    c = jnp.where(exists, p * dh + dsurprisals, 0)
    beside_peak = jnp.where(logits == s.peak, 0, c)
    total, total_beside_peak = (jnp.sum(terms, classes.axis, keepdims=True) for terms in (c, beside_peak))
    # q_j Σ_i c_i − Σ_{i: j_i = j} c_i, and for a dominant class Σ_{i: j_i ≠ j} c_i − (1 − q_j) Σ_i c_i
    dominant = s.is_dominant(x)
    dx = dx + jnp.where(dominant, -s.one_minus_q(e), e / s.mass) * total + dominant.astype(x.dtype) * total_beside_peak
    at_ids = p * da - jnp.where(s.is_dominant(logits), 0, c)
    dx = add_at_classes(dx, block.local_ids(ids), classes.axis, at_ids)
    return dx, jnp.where(exists, _probability_vjp(classes, p, logits, row, (da, dh)), 0)
