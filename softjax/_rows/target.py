"""The part of a row rule that depends on the target: values and derivatives.

The target p of a row is a class id y, a distribution over all classes, or p_i at a few classes j_i. With
q = softmax(x), z = ln Σ_j exp x_j and P = Σ p:

    label_logit    a = x_y, Σ_j p_j x_j or Σ_i p_i x_{j_i}                      ∂a/∂x_j = p_j
    cross_entropy  h = z − x_y, Σ_j p_j (z − x_j) or Σ_i p_i (z − x_{j_i})      ∂h/∂x_j = q_j P − p_j
    surprisals   h_i = z − x_{j_i}, at the few classes                          ∂h_i/∂x_j = q_j − [j = j_i]

Two values are functions of q and p. With d_j = q_j − p_j, A = Σ_j p_j q_j and D = Σ_j q_j d_j = Σ_j q_j² − A:

    label_miss     Σ_j p_j (1 − q_j)                                            ∂/∂x_j = q_j (A − p_j)
    brier_score    Σ_j d_j²                                                     ∂/∂x_j = 2 q_j (d_j − D)

For a dominant class k these differences would cancel. There d_k = (1 − p_k) − (1 − q_k), and the derivatives are
Σ_{i≠k} p_i q_i − (1 − q_k) A and 2 q_k ((1 − q_k) d_k − Σ_{i≠k} q_i d_i).

A few classes never become an array over all classes: their gradient is added at their ids.
"""

from functools import partial
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
    miss: Float[Array, "*rows"]
    brier_score: Float[Array, "*rows"]
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
    valid: Float[Array, "*rows"]
    """0 for a row with mass at an id out of range, else 1. It keeps the class axis, at length 1."""


class TargetCotangents(NamedTuple):
    """The cotangents of the values that depend on the target."""

    logit: Any
    cross_entropy: Any
    miss: Any
    brier_score: Any
    surprisals: Any


class Expectations(NamedTuple):
    """Sums of a row that the derivatives of `label_miss` and `brier_score` need."""

    probability: Float[Array, "*rows"]
    """A = Σ_j p_j q_j"""
    probability_beside: Float[Array, "*rows"]
    """The same without a dominant class."""
    dominant_mass: Float[Array, "*rows"]
    """p of a dominant class, 0 without one."""
    difference: Float[Array, "*rows"]
    """D = Σ_j q_j (q_j − p_j)"""
    difference_beside: Float[Array, "*rows"]
    """The same without a dominant class."""
    valid: Float[Array, "*rows"] | None
    """0 for a row with an id out of range, else 1; None for a distribution."""


class RowResiduals(NamedTuple):
    """What the backward pass needs of a row."""

    log_sum: LogSum
    """Its rest is 0 in dropped rows. Its peak stays as it is, since `exp_below_peak` subtracts that peak again."""
    dropped: Bool[Array, "*rows"] | None
    """Ignored rows with non-finite logits, None where all rows are active."""
    target: Any
    """x_y of a class id; (P, P without the peak's classes) of a distribution; or `FewClasses`."""
    expectations: Expectations


def measure_row(block: Block, x: Array, s: LogSum) -> tuple[TargetStatistics, RowResiduals]:
    """The values that depend on the target, and the residuals of the row; `x` are the block's wide logits."""
    measure = {ClassIds: _measure_id, Distribution: _measure_distribution}.get(type(block.target), _measure_few)
    statistics, target = measure(block, x, s)
    # A non-finite logit shows in the peak or in the rest.
    dropped = None if block.active is None else ~block.active & ~(jnp.isfinite(s.peak) & jnp.isfinite(s.rest))
    if isinstance(target, FewClasses):
        target = target._replace(logits=_zero_dropped(dropped, target.logits))
    s = s._replace(rest=_zero_dropped(dropped, s.rest))
    return statistics, RowResiduals(s, dropped, target, _expectations(block, x, s, dropped, target))


def drop_rows(row: RowResiduals, dropped: Bool[Array, "*rows"]) -> RowResiduals:
    """The residuals with these rows dropped; none was before."""
    target = row.target
    if isinstance(target, FewClasses):
        target = target._replace(logits=_zero_dropped(dropped, target.logits))
    elif isinstance(target, tuple):
        target = jax.tree.map(lambda sums: jnp.where(dropped, 0, sums), target)
    expectations = jax.tree.map(lambda sums: jnp.where(dropped, 0, sums), row.expectations)
    return RowResiduals(
        row.log_sum._replace(rest=_zero_dropped(dropped, row.log_sum.rest)), dropped, target, expectations
    )


def _zero_dropped(dropped: Array | None, value: Array) -> Array:
    return value if dropped is None else jnp.where(dropped, 0, value)


def _expectations(block: Block, x: Array, s: LogSum, dropped: Array | None, target: Any) -> Expectations:
    classes, dominant, e = block.classes, s.is_dominant(x), exp_below_peak(block.classes, x, s, dropped)
    valid = None
    if isinstance(block.target, Distribution):
        p = block.wide_probabilities()
        at_dominant, terms, total = dominant, p * e / s.mass, classes.sum_keepdims
    else:
        if isinstance(target, FewClasses):
            logits, p, valid = target.logits, target.probabilities, target.valid
        else:
            logits, p = target, (block.target.ids >= 0).astype(x.dtype)  # pyright: ignore[reportAttributeAccessIssue]
            valid = p
        at_dominant, terms = s.is_dominant(logits), p * exp_below_peak(classes, logits, s, dropped) / s.mass
        total = partial(jnp.sum, axis=classes.axis, keepdims=True)
    beside, dominant_mass = total(jnp.where(at_dominant, 0, terms)), total(jnp.where(at_dominant, p, 0))
    # The dominant class has q d = q ((1 − p) − (1 − q)), another class q². All p q beside it are in `beside`.
    of_dominant = e / s.mass * ((1 - dominant_mass) - s.one_minus_q(e))
    squares = (e / s.mass) ** 2
    return Expectations(
        total(terms),
        beside,
        dominant_mass,
        classes.sum_keepdims(jnp.where(dominant, of_dominant, squares)) - beside,
        classes.sum_keepdims(jnp.where(dominant, 0, squares)) - beside,
        valid,
    )


def target_derivatives(block: Block, row: RowResiduals, q: Array) -> tuple[Any, Any]:
    """∂a/∂x_j and the document's gradient ∂h/∂x_j; None for a few classes, whose `target_vjp` adds them."""
    derivatives = {ClassIds: _id_derivatives, Distribution: _distribution_derivatives}.get(type(block.target))
    return derivatives(block, row, q) if derivatives else (None, None)


def score_derivatives(block: Block, row: RowResiduals, q: Array, p: Array | None) -> tuple[Array, Array]:
    """The derivatives of `label_miss` and `brier_score` by x_j; without p_j for a few classes (`p` is None)."""
    s, x, t = row.log_sum, block.wide_logits(), row.expectations
    dominant, one_minus_q = s.is_dominant(x), s.one_minus_q(exp_below_peak(block.classes, x, s, row.dropped))
    q_minus_p, a_minus_p = (q, t.probability) if p is None else (q - p, t.probability - p)
    miss = jnp.where(dominant, t.probability_beside - one_minus_q * t.probability, q * a_minus_p)
    of_dominant = one_minus_q * ((1 - t.dominant_mass) - one_minus_q) - t.difference_beside
    brier_score = 2 * q * jnp.where(dominant, of_dominant, q_minus_p - t.difference)
    return miss, brier_score if t.valid is None else brier_score * t.valid


def target_vjp(block: Block, row: RowResiduals, dx: Array, cotangents: TargetCotangents) -> tuple[Array, Any]:
    """dx with all of the target's part, and the cotangent of the target."""
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
    scores = s.one_minus_q(exp_below_peak(classes, logit, s, None)), _brier_score_at(block, s, ids, logit)
    scores = (classes.squeeze(nan_where(out_of_range, score)) for score in scores)
    return TargetStatistics(ids, a, log_mass - minus_peak(a, peak), *scores), logit


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
    e = exp_below_peak(classes, x, s, None)
    one_minus_q = s.one_minus_q(e)
    miss = classes.sum(jnp.where(has_mass, p * one_minus_q, 0))
    difference = jnp.where(s.is_dominant(x), (1 - p) - one_minus_q, e / s.mass - p)
    return TargetStatistics(label, a, h, miss, classes.sum(difference**2)), (mass, mass_beside_peak)


def _distribution_derivatives(block: Block, row: RowResiduals, q: Array) -> tuple[Array, Array]:
    """p_j, and q_j P − p_j; for a dominant class Σ_{i≠j} p_i − (1 − q_j) P, where the first form would cancel."""
    s, x, p = row.log_sum, block.wide_logits(), block.wide_probabilities()
    mass, mass_beside_peak = row.target
    e = exp_below_peak(block.classes, x, s, row.dropped)
    return p, jnp.where(s.is_dominant(x), mass_beside_peak - s.one_minus_q(e) * mass, q * mass - p)


def _distribution_vjp(block: Block, row: RowResiduals, cotangents: TargetCotangents) -> Array:
    p, x = block.wide_probabilities(), block.wide_logits(row.dropped)
    dp = _probability_vjp(block.classes, p, p, x, row, cotangents)
    return block.zero_masked(dp if block.class_weights is None else block.class_weights * dp)


def _probability_vjp(
    classes: ClassAxis, p: Array, mass: Array, x: Array, row: RowResiduals, cotangents: TargetCotangents
) -> Array:
    """x_j da + (z − x_j) dh + (1 − q_j) dmiss − 2 (q_j − mass_j) dbrier, where `mass` is Σ p at the class.

    The first two are 0 where p_j = 0 and exp x_j = 0, whatever p_j does there.
    """
    # x_j = −inf has a term of its own: the cotangent of an unread value may be 0, and 0 · inf is NaN.
    da, dh, dmiss, dbrier, _ = cotangents
    s, no_logit, e = row.log_sum, x == -jnp.inf, exp_below_peak(classes, x, row.log_sum, row.dropped)
    one_minus_q = s.one_minus_q(e)
    difference = jnp.where(s.is_dominant(x), (1 - mass) - one_minus_q, e / s.mass - mass)
    of_scores = one_minus_q * dmiss - 2 * difference * dbrier
    s = s._replace(peak=_zero_dropped(row.dropped, s.peak))
    surprisal = jnp.where(no_logit, 0, s.log_mass - below_peak(classes, x, s))
    infinite = jnp.where(no_logit & (p != 0), x, 0)
    return jnp.where(no_logit, 0, x) * da + surprisal * dh + infinite * (da - dh) + of_scores


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
    statistics = TargetStatistics(
        label,
        expectation(logits),
        expectation(surprisals),
        expectation(s.one_minus_q(exp_below_peak(classes, logits, s, None))),
        classes.squeeze(nan_where(invalid, _brier_score_at(block, s, ids, logits, p))),
        asked,
        ids,
    )
    return statistics, FewClasses(ids, logits, p, exists & ~invalid, 1 - invalid.astype(p.dtype))


def _brier_score_at(block: Block, s: LogSum, ids: Array, logits: Array, p: Array | None = None) -> Array:
    """Σ_j (q_j − p_j)² with p at these ids, 1 for None. Equal ids add up. The class axis stays, at length 1."""
    classes, x, p = block.classes, block.wide_logits(), jnp.ones_like(logits) if p is None else p
    e, dominant = exp_below_peak(classes, logits, s, None), s.is_dominant(logits)
    mass, is_first = _mass_of_equal_ids(classes, ids, p)
    difference = jnp.where(dominant, (1 - mass) - s.one_minus_q(e), e / s.mass - mass)
    at_ids = jnp.sum(jnp.where(is_first, difference**2, 0), classes.axis, keepdims=True)
    # The other classes have Σ q_j². The sum leaves out a dominant class, whose square is 1 before the division by mass.
    all_e = exp_below_peak(classes, x, s, None)
    squares = classes.sum_keepdims(jnp.where(s.is_dominant(x), 0, all_e * all_e))
    asked = jnp.sum(jnp.where(is_first & ~dominant, e * e, 0), classes.axis, keepdims=True)
    asks_dominant = jnp.any(dominant, classes.axis, keepdims=True)
    of_dominant = jnp.where((s.rest < 1) & ~asks_dominant, jnp.ones_like(s.rest), 0)
    return at_ids + jnp.maximum(of_dominant + (squares - asked), 0) / s.mass**2


def _mass_of_equal_ids(classes: ClassAxis, ids: Array, p: Array) -> tuple[Array, Array]:
    """Σ p over the places with the same id, and whether a place is the first of them."""
    if ids.shape[classes.axis] == 1:
        return p, jnp.ones_like(ids, bool)
    before, after = classes.axis - 1, classes.axis
    equal = jnp.expand_dims(ids, before) == jnp.expand_dims(ids, after)
    mass = jnp.sum(jnp.where(equal, jnp.expand_dims(p, before), 0), after)
    place = lax.broadcasted_iota(jnp.int32, ids.shape, classes.axis % ids.ndim)
    is_earlier = jnp.expand_dims(place, before) < jnp.expand_dims(place, after)
    return mass, ~jnp.any(equal & is_earlier, after)


def _most_probable_id(classes: ClassAxis, ids: Array, p: Array) -> Integer[Array, "*rows"]:
    """The id with the largest Σ p, the smallest of equals; −1 if no id has mass."""
    mass, _ = _mass_of_equal_ids(classes, ids, p)
    largest, no_id = jnp.max(mass, classes.axis, keepdims=True, initial=0), jnp.iinfo(ids.dtype).max
    first = jnp.min(jnp.where(mass == largest, ids, no_id), classes.axis, keepdims=True, initial=no_id)
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


def _few_vjp(block: Block, row: RowResiduals, dx: Array, cotangents: TargetCotangents) -> tuple[Array, Array]:
    da, dh, dmiss, dbrier, dsurprisals = cotangents
    classes, s, (ids, logits, p, exists, _), x = block.classes, row.log_sum, row.target, block.wide_logits()
    e = exp_below_peak(classes, x, s, row.dropped)
    c = jnp.where(exists, p * dh + dsurprisals, 0)
    beside_peak = jnp.where(logits == s.peak, 0, c)
    total, total_beside_peak = (jnp.sum(terms, classes.axis, keepdims=True) for terms in (c, beside_peak))
    # q_j Σ_i c_i − Σ_{i: j_i = j} c_i, and for a dominant class Σ_{i: j_i ≠ j} c_i − (1 − q_j) Σ_i c_i
    dominant = s.is_dominant(x)
    dx = dx + jnp.where(dominant, -s.one_minus_q(e), e / s.mass) * total + dominant.astype(x.dtype) * total_beside_peak
    # `score_derivatives` gives the derivatives of both scores without the terms −q p and −2 q p
    q = exp_below_peak(classes, logits, s, row.dropped) / s.mass
    at_ids = p * da - jnp.where(s.is_dominant(logits), 0, c + q * p * (dmiss + 2 * dbrier))
    dx = add_at_classes(dx, block.local_ids(ids), classes.axis, at_ids)
    mass, _ = _mass_of_equal_ids(classes, ids, p)
    return dx, jnp.where(exists, _probability_vjp(classes, p, mass, logits, row, cotangents), 0)
