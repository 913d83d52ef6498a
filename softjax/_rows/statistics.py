"""The row statistics: the values of one row of logits x that every loss is made of, and their derivatives.

With q = softmax(x), target p ([j = y] for a class id y) and P = Σ_j p_j:

    log_normalizer  z = ln Σ_j exp x_j        ∂z/∂x_j = q_j
    label_logit     a = Σ_j p_j x_j           ∂a/∂x_j = p_j
    mean_logit      m = Σ_j x_j / C           ∂m/∂x_j = 1/C
    entropy         H = Σ_j q_j (z − x_j)     ∂H/∂x_j = q_j (z − x_j − H)
    cross_entropy   h = Σ_j p_j (z − x_j)     ∂h/∂x_j = q_j P − p_j               the document's gradient
    collision       S = Σ_j q_j²              ∂S/∂x_j = 2 q_j (q_j − S)
    max_logit       the largest x_j           ∂/∂x_j = [j = prediction]
    peak_entropy    −ln q of the prediction   ∂/∂x_j = q_j − [j = prediction]
    uniform         u = Σ_j (z − x_j) / C     ∂u/∂x_j = q_j − 1/C                 for label smoothing
                with class weights w and W = Σ w:  u = Σ_j w_j (z − x_j) / C    ∂u/∂x_j = (q_j W − w_j) / C
    prediction, label_rank                    integers, without a derivative
    brier_score     B = Σ_j (q_j − p_j)²      ∂B/∂x_j = 2 q_j (q_j − p_j − D)     with D = Σ_j q_j (q_j − p_j)
    label_miss      Σ_j p_j (1 − q_j)         ∂/∂x_j = q_j (A − p_j)              with A = Σ_j p_j q_j

To add a statistic: a field of `Statistics`, its value in `statistics_forward`, its derivative in
`statistics_derivatives`, and its formula in `tests/oracle.py`.
"""

from functools import partial, reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax._args.types import Array, Bool, Float, Integer
from softjax._rows.block import Block, RowRule
from softjax._rows.edges import nan_where
from softjax._rows.log_sum import LogSum, below_peak, drop_peak, exp_below_peak, log_sum, mean_distance_to_peak
from softjax._rows.target import (
    RowResiduals,
    TargetCotangents,
    drop_rows,
    measure_row,
    score_derivatives,
    target_derivatives,
    target_vjp,
)
from softjax._xla import one_cpu
from softjax._xla.barrier import barrier
from softjax._xla.transpose import with_transpose


class Statistics(NamedTuple):
    """The row statistics, one value per sample: all losses and metrics of this package are functions of them.

    Logarithms are natural, so entropies are in nats. `prediction` and `label_rank` are int32, the other fields float32
    or wider. Read them by name. The formulas use logits x, a class id y or a distribution p, q = softmax(x), and the C
    classes that exist.

    Attributes:
        log_normalizer: z = ln Σ_j exp x_j.
        label_logit: a = x_y, or Σ_j p_j x_j.
        mean_logit: m = Σ_j x_j / C.
        entropy: H = −Σ_j q_j ln q_j.
        cross_entropy: h = −ln q_y, or Σ_j p_j (z − x_j). NaN for a class id out of range.
        collision: The collision probability, S = Σ_j q_j².
        max_logit: The largest x_j. −inf if no class exists.
        peak_entropy: The min-entropy, −ln max_j q_j.
        prediction: The class of the largest x_j, the first of equals. −1 if no class exists.
        label_rank: The number of classes that come before the label when logits are sorted in descending order, equal
            logits by class id. 0 where the label is the prediction. The label of a distribution is its most probable
            class, the first of equals. 2³¹ − 1 for a masked label. −1 for a class id out of range, and in a row that
            holds NaN or has no mass.
        brier_score: Σ_j (q_j − p_j)², where p_j is [j = y] for a class id. NaN for a class id out of range.
        label_miss: 1 − q_y, or Σ_j p_j (1 − q_j). NaN for a class id out of range.
    """

    log_normalizer: Float[Array, "*samples"]
    label_logit: Float[Array, "*samples"]
    mean_logit: Float[Array, "*samples"]
    entropy: Float[Array, "*samples"]
    cross_entropy: Float[Array, "*samples"]
    collision: Float[Array, "*samples"]
    max_logit: Float[Array, "*samples"]
    peak_entropy: Float[Array, "*samples"]
    prediction: Integer[Array, "*samples"]
    label_rank: Integer[Array, "*samples"]
    brier_score: Float[Array, "*samples"]
    label_miss: Float[Array, "*samples"]

    @classmethod
    def fill(cls, real: Any, integer: Any) -> "Statistics":
        """`real` in every field that has a derivative, `integer` in the others."""
        return cls(**{name: integer if name in INTEGER_STATISTICS else real for name in cls._fields})


INTEGER_STATISTICS = ("prediction", "label_rank")
_NO_DERIVATIVE: Any = None


class RowValues(NamedTuple):
    """What the row rule of the statistics gives: the public statistics, and what losses need besides."""

    statistics: Statistics
    uniform: Float[Array, "*rows"]
    """u = Σ_j w_j (z − x_j) / C, the cross-entropy of the uniform distribution, which label smoothing mixes in."""
    surprisals: Any = None
    """−ln q at the few classes of the target, along the class axis; None for another target."""
    ids: Any = None
    """These classes."""

    def with_class_axis(self, axis: int) -> "RowValues":
        """The values with a class axis of length 1; the few classes have theirs."""
        row = jax.tree.map(lambda value: jnp.expand_dims(value, axis), self._replace(surprisals=None, ids=None))
        return row._replace(surprisals=self.surprisals)


class Residuals(NamedTuple):
    """What the derivatives need of a row beside its block."""

    row: RowResiduals
    mean_distance_to_peak: Float[Array, "*rows"]
    """Σ_j q_j (peak − x_j)"""
    squares: Float[Array, "*rows"]
    """Σ_j exp(2 (x_j − peak)) over all classes but one at the peak."""
    prediction: Integer[Array, "*rows"]
    num_classes: Float[Array, "*rows"]
    """C, at least 1."""
    class_weights: tuple[Float[Array, "*rows"], Float[Array, "*rows"]] | None
    """W = Σ_j w_j, and the same sum without the classes at the peak; None without class weights."""


def statistics_forward(block: Block) -> tuple[RowValues, Residuals]:
    classes, x = block.classes, block.wide_logits()
    target, row = measure_row(block, x, log_sum(classes, block.logits, block.exists))
    s = one_cpu.barrier_unless_one_cpu(row.log_sum, x)
    squeezed = LogSum(*map(classes.squeeze, s))
    e, count = exp_below_peak(classes, x, s, row.dropped), block.num_classes()
    # Sums show a NaN of any device. The maximum may not: under Explicit axes it is an all-reduce of XLA's partitioner,
    # which drops NaN on CPU devices. The rest is NaN if a logit is NaN, or if all are −inf: then their sum is −inf.
    no_mass, total = jnp.isnan(s.rest), classes.sum_keepdims(block.zero_masked(x))
    prediction = jnp.where(no_mass & jnp.isnan(total), -1, block.first_equal(x, s.peak))
    mean_distance = mean_distance_to_peak(classes, x, s, row.dropped)
    squares = jnp.where(s.rest < 0.5, classes.sum_keepdims(e * drop_peak(e)), classes.sum_keepdims(e * e) - 1)
    statistics = Statistics(
        log_normalizer=squeezed.peak + squeezed.log_mass,
        label_logit=target.logit,
        mean_logit=classes.squeeze(total) / classes.squeeze(count),
        entropy=squeezed.log_mass + classes.squeeze(mean_distance),
        cross_entropy=target.cross_entropy,
        collision=(1 + classes.squeeze(squares)) / squeezed.mass**2,
        max_logit=jnp.where(classes.squeeze(no_mass), classes.squeeze(total), squeezed.peak),
        peak_entropy=squeezed.log_mass,
        prediction=classes.squeeze(prediction),
        label_rank=classes.squeeze(jnp.where(no_mass, -1, block.rank(x, target.label))),
        brier_score=target.brier_score,
        label_miss=target.miss,
    )
    uniform, class_weights = _measure_uniform(block, x, s, count)
    statistics, uniform = block.zero_ignored((statistics, uniform))
    values = RowValues(statistics, uniform, target.surprisals, target.ids)
    return values, Residuals(row, mean_distance, squares, prediction, count, class_weights)


def _measure_uniform(block: Block, x: Array, s: LogSum, count: Array) -> tuple[Array, Any]:
    """u, and the sums of the class weights that its derivative needs."""
    classes, distance, sums = block.classes, block.zero_masked(barrier(s.peak) - x), None
    log_mass, infinite = classes.squeeze(s.log_mass), classes.squeeze(s.peak) == jnp.inf
    if block.class_weights is not None:
        w, at_peak = block.zero_masked(block.class_weights), x == s.peak
        distance = w * jnp.where(w == 0, 0, distance)  # a class of weight 0 is ignored, whatever its logit
        beside_peak = classes.sum_keepdims(jnp.where(at_peak, 0, w))
        sums = beside_peak + classes.sum_keepdims(jnp.where(at_peak, w, 0)), beside_peak
        mean_weight = classes.squeeze(sums[0]) / classes.squeeze(count)
        log_mass, infinite = mean_weight * log_mass, infinite & (mean_weight != 0)
    return jnp.where(
        infinite, jnp.inf, log_mass + classes.sum(distance) / classes.squeeze(count)
    ), sums  # not inf − inf


def statistics_derivatives(block: Block, residuals: Residuals) -> RowValues:
    """The derivative of each value by x_j, in the shape of the logits; never NaN where q_j = 0 or x_j = −inf."""
    classes, s, dropped = block.classes, residuals.row.log_sum, residuals.row.dropped
    x, one_in_c = block.wide_logits(), 1 / residuals.num_classes
    d, e = below_peak(classes, x, s), exp_below_peak(classes, x, s, dropped)
    q, one_minus_q = e * jnp.expand_dims(1 / classes.squeeze(s.mass), classes.axis), s.one_minus_q(e)
    is_prediction = block.class_ids(residuals.prediction) == residuals.prediction
    p, cross_entropy = target_derivatives(block, residuals.row, q)
    label_miss, brier_score = score_derivatives(block, residuals.row, q, p)
    return RowValues(
        Statistics(
            log_normalizer=q,
            label_logit=p,
            mean_logit=jnp.broadcast_to(one_in_c, x.shape),
            entropy=q * (jnp.where(e == 0, 0, -d) - residuals.mean_distance_to_peak),  # q_j (z − x_j − H)
            cross_entropy=cross_entropy,
            # q_j − S = (e_j Σ e − Σ e²) / mass², without the 1 of the peak in either sum
            collision=2 * q * ((e - 1) + e * s.rest - residuals.squares) / s.mass**2,
            max_logit=is_prediction.astype(x.dtype),
            peak_entropy=jnp.where(is_prediction, -one_minus_q, q),
            prediction=_NO_DERIVATIVE,
            label_rank=_NO_DERIVATIVE,
            brier_score=brier_score,
            label_miss=label_miss,
        ),
        uniform=_uniform_derivative(block, residuals, q),
    )


def _uniform_derivative(block: Block, residuals: Residuals, q: Array) -> Array:
    """(q_j W − w_j) / C; for a dominant class Σ_{i≠j} w_i − (1 − q_j) W, where the first form would cancel."""
    if residuals.class_weights is None or block.class_weights is None:
        return q - 1 / residuals.num_classes
    s, x, (total, beside_peak) = residuals.row.log_sum, block.wide_logits(), residuals.class_weights
    e = exp_below_peak(block.classes, x, s, residuals.row.dropped)
    w = block.zero_masked(block.class_weights)
    return jnp.where(s.is_dominant(x), beside_peak - s.one_minus_q(e) * total, q * total - w) / residuals.num_classes


def statistics_backward(block: Block, residuals: Residuals, cotangents: RowValues) -> Block:
    cotangents = cotangents.with_class_axis(block.classes.axis)
    # dx_j = Σ_s ∂s/∂x_j ds, the sum over the values s; for the cross-entropy alone (q_j P − p_j) dh
    derivatives = statistics_derivatives(block, residuals)
    terms = jax.tree.map(_product_or_none, derivatives, cotangents, is_leaf=lambda leaf: leaf is None)
    s = cotangents.statistics
    target_cotangents = TargetCotangents(
        s.label_logit, s.cross_entropy, s.label_miss, s.brier_score, cotangents.surprisals
    )
    dx, target = target_vjp(block, residuals.row, reduce(jnp.add, jax.tree.leaves(terms)), target_cotangents)
    return block.cotangent(dx, target)


def statistics_backward_if_read(block: Block, residuals: Residuals, cotangents: RowValues) -> Block:
    """`statistics_backward`, with gradient 0 in a row whose cotangents are all 0, whatever the row holds.

    The caller's weights are unknown here. A weighted mean gives a sample of weight 0 the cotangent 0. Its derivative
    may be NaN, and 0 · NaN is NaN.
    """
    residuals, nan = _drop_non_finite(block, residuals, cotangents.with_class_axis(block.classes.axis))
    gradient = statistics_backward(block, residuals, cotangents)
    # NaN at a class with logit +inf, and throughout a row whose peak is NaN or −inf
    dx = gradient.logits + jnp.where(block.wide_logits() < nan.peak, 0, nan.value).astype(gradient.logits.dtype)
    target = jax.tree.map(lambda dp: dp + nan.value.astype(dp.dtype), gradient.target)
    return gradient._replace(logits=dx, target=target)


class _Nan(NamedTuple):
    """What makes the gradient of a row with non-finite logits NaN again, after the row was dropped."""

    value: Float[Array, "*rows"]
    """NaN in such a row if a cotangent is not 0, else 0."""
    peak: Float[Array, "*rows"]
    """The peak; NaN if every class gets the value."""


def _drop_non_finite(block: Block, residuals: Residuals, cotangents: RowValues) -> tuple[Residuals, _Nan]:
    """Residuals in which rows with non-finite logits are dropped, and the NaN of those whose cotangents are not 0."""
    row = residuals.row
    peak, rest = row.log_sum
    dropped = ~(jnp.isfinite(peak) & jnp.isfinite(rest))
    kept = residuals._replace(
        row=drop_rows(row, dropped),
        mean_distance_to_peak=jnp.where(dropped, 0, residuals.mean_distance_to_peak),
        squares=jnp.where(dropped, 0, residuals.squares),
    )
    statistics = cotangents.statistics._replace(label_logit=None, mean_logit=None, max_logit=None)
    statistics = statistics._replace(prediction=None, label_rank=None)
    read = [cotangents.uniform, *jax.tree.leaves(statistics)]
    if cotangents.surprisals is not None:
        read.append(jnp.sum(cotangents.surprisals, block.classes.axis, keepdims=True))

    def nan_if_read(cotangent: Array) -> Array:
        return nan_where(dropped & (cotangent != 0), jnp.zeros_like(cotangent))

    # A linear function to JAX, which transposes the backward pass for forward mode: NaN is NaN either way.
    read = [jnp.broadcast_to(cotangent, dropped.shape) for cotangent in read]
    value = reduce(jnp.add, [with_transpose(nan_if_read, nan_if_read, cotangent) for cotangent in read])
    return kept, _Nan(value, jnp.where(jnp.isnan(rest), rest, peak))


def _product_or_none(derivative: Array | None, cotangent: Array | None) -> Array | None:
    return None if derivative is None or cotangent is None else derivative * cotangent


STATISTICS = RowRule(statistics_forward, statistics_backward)
"""The rule of a loss, which knows the weights of the rows."""
STATISTICS_IN_CACHE = STATISTICS._replace(forward=partial(one_cpu.in_cache, statistics_forward))
"""The same, a few rows at a time on one CPU. It is faster where many values are read, each in a pass of its own: in
chunks of a linear layer, and in eager calls."""
STATISTICS_IF_READ = STATISTICS._replace(backward=statistics_backward_if_read)
"""The rule of values that a caller reads, with weights of the caller's own."""
STATISTICS_IF_READ_IN_CACHE = STATISTICS_IN_CACHE._replace(backward=statistics_backward_if_read)


if TYPE_CHECKING:
    StatisticsArgument = Statistics
else:
    from softjax._args.types import any_value

    StatisticsArgument = any_value("Statistics")  # `check_statistics` refuses anything else


def check_statistics(value: Any) -> Statistics:
    """`Statistics`; anything else, such as logits, is refused."""
    if not isinstance(value, Statistics):
        raise TypeError(
            "`s` must be `Statistics`, as `softjax.statistics(logits, labels)` and `softjax.linear_statistics` give; "
            f"got {type(value).__name__}."
        )
    return value


def fill_empty_rows(statistics: Statistics, is_empty: Bool[Array, "*rows"]) -> Statistics:
    """The statistics, with constants in the rows where `where` masks every class."""
    constants = Statistics.fill(0, -1)._replace(log_normalizer=-jnp.inf, max_logit=-jnp.inf)
    return jax.tree.map(lambda value, constant: jnp.where(is_empty, constant, value), statistics, constants)
