"""The numbers of a row (a sample) of logits x that every loss here is made of: their values and their slopes.

With q = softmax(x), target p ([j = y] for a class id y) and P = Σ_j p_j:

    log_normalizer  z = ln Σ_j exp x_j        ∂z/∂x_j = q_j
    label_logit     a = Σ_j p_j x_j           ∂a/∂x_j = p_j
    mean_logit      m = Σ_j x_j / C           ∂m/∂x_j = 1/C
    entropy         H = Σ_j q_j (z − x_j)     ∂H/∂x_j = q_j (z − x_j − H)
    cross_entropy   h = Σ_j p_j (z − x_j)     ∂h/∂x_j = q_j P − p_j               the document's gradient
    collision       S = Σ_j q_j²              ∂S/∂x_j = 2 q_j (q_j − S)
    max_logit       the largest x_j           ∂/∂x_j = [j = prediction]
    peak_entropy    −ln q of the prediction   ∂/∂x_j = q_j − [j = prediction]
    uniform         u = Σ_j (z − x_j) / C     ∂u/∂x_j = q_j − 1/C                 what label smoothing mixes in
    prediction, label_rank                    integers, no slope

To add a number: a field, a value, a slope.
"""

from functools import partial, reduce
from typing import TYPE_CHECKING, Any, NamedTuple, NewType

import jax
import jax.numpy as jnp

from softjax._args.types import Array, Bool, Float, Integer
from softjax._mesh.axes import ClassAxis
from softjax._rows.block import Block, RowRule
from softjax._rows.log_sum import LogSum, below_peak, drop_peak, exp_below_peak, mean_below_peak
from softjax._rows.target import RowResiduals, measure_row, target_derivatives, target_vjp
from softjax._xla import one_cpu
from softjax._xla.barrier import barrier, barrier_unless_one_cpu


class Statistics(NamedTuple):
    """What every loss here is made of: one number for each sample, in nats, float32 or wider. Read them by name.

    With logits x, label y (or a distribution p) and q = softmax(x), over the C classes that exist:
    """

    log_normalizer: Float[Array, "*samples"]
    """z = ln Σ_j exp x_j"""
    label_logit: Float[Array, "*samples"]
    """a = x_y, or Σ_j p_j x_j"""
    mean_logit: Float[Array, "*samples"]
    """m = Σ_j x_j / C"""
    entropy: Float[Array, "*samples"]
    """H = −Σ_j q_j ln q_j"""
    cross_entropy: Float[Array, "*samples"]
    """h = −ln q_y, or Σ_j p_j (z − x_j); NaN for a class id out of range"""
    collision: Float[Array, "*samples"]
    """S = Σ_j q_j²"""
    max_logit: Float[Array, "*samples"]
    """The largest x_j; −inf if no class exists"""
    peak_entropy: Float[Array, "*samples"]
    """−ln q of the prediction"""
    prediction: Integer[Array, "*samples"]
    """The class of the largest x_j, the first of equals; −1 if there is none"""
    label_rank: Integer[Array, "*samples"]
    """How many classes come before the label's when logits are sorted downwards, equal ones by class: 0 where the label
    is the prediction. Of a distribution, its most probable class's. −1 for an id out of range and in a row that holds
    NaN or has no mass; 2³¹ − 1 for a label that `where` leaves out"""

    @classmethod
    def fill(cls, number: Any, integer: Any) -> "Statistics":
        """The same in every field: a number, or an integer where no derivative is."""
        return cls(**{name: integer if name in ("prediction", "label_rank") else number for name in cls._fields})


_NO_DERIVATIVE: Any = None
"""Where no derivative is."""


class RowValues(NamedTuple):
    statistics: Statistics
    uniform: Float[Array, "*rows"]
    surprisals: Any = None
    """−ln q at each of a few classes, which keep the place of the class axis"""
    ids: Any = None
    """These classes"""

    def with_class_axis(self, axis: int) -> "RowValues":
        """The numbers with a class axis of length 1, beside which the few classes have theirs."""
        row = jax.tree.map(lambda number: jnp.expand_dims(number, axis), self._replace(surprisals=None, ids=None))
        return row._replace(surprisals=self.surprisals)


class Residuals(NamedTuple):
    """What the slopes need of a row beside its block."""

    measured: RowResiduals
    mean_below_peak: Float[Array, "*rows"]
    """Σ_j q_j (peak − x_j)"""
    squares: Float[Array, "*rows"]
    """Σ_j exp(2 (x_j − peak)) over all classes but one at the peak"""
    prediction: Integer[Array, "*rows"]
    class_count: Float[Array, "*rows"]
    """C, at least 1"""


def statistics_forward(classes: ClassAxis, block: Block) -> tuple[RowValues, Residuals]:
    x = block.wide_logits()
    labelled, measured = measure_row(classes, block, x)
    s = barrier_unless_one_cpu(measured.log_sum, x)
    of_row = LogSum(*map(classes.squeeze, s))
    e, count = exp_below_peak(classes, x, s, measured.dropped), block.num_classes(classes)
    prediction = block.first_equal(classes, x, s.peak)
    beside_peak = mean_below_peak(classes, x, s, measured.dropped)
    squares = jnp.where(s.rest < 0.5, classes.sum_keepdims(e * drop_peak(e)), classes.sum_keepdims(e * e) - 1)
    statistics = Statistics(
        log_normalizer=of_row.peak + of_row.log_mass,
        label_logit=labelled.logit,
        mean_logit=classes.sum(block.zero_missing(x)) / classes.squeeze(count),
        entropy=of_row.log_mass + classes.squeeze(beside_peak),
        cross_entropy=labelled.cross_entropy,
        collision=(1 + classes.squeeze(squares)) / of_row.mass**2,
        max_logit=of_row.peak,
        peak_entropy=of_row.log_mass,
        prediction=classes.squeeze(prediction),
        label_rank=classes.squeeze(block.rank(classes, x, labelled.label)),
    )
    distance = classes.sum(block.zero_missing(barrier(s.peak) - x)) / classes.squeeze(count)
    uniform = jnp.where(of_row.peak == jnp.inf, jnp.inf, of_row.log_mass + distance)  # not inf − inf
    statistics, uniform = block.zero_ignored(classes, (statistics, uniform))
    row = RowValues(statistics, uniform, labelled.surprisals, labelled.ids)
    return row, Residuals(measured, beside_peak, squares, prediction, count)


def statistics_derivatives(classes: ClassAxis, block: Block, sums: Residuals) -> RowValues:
    """∂number/∂x_j of each number, in the shape of the logits. None is a NaN where q_j is 0 or x_j is −inf."""
    s, x, share = sums.measured.log_sum, block.wide_logits(), 1 / sums.class_count
    d, e = below_peak(classes, x, s), exp_below_peak(classes, x, s, sums.measured.dropped)
    q, others = e * jnp.expand_dims(1 / classes.squeeze(s.mass), classes.axis), s.one_minus_q(e)
    predicted = block.class_ids(classes, sums.prediction) == sums.prediction
    p, document = target_derivatives(classes, block, sums.measured, q)
    return RowValues(
        Statistics(
            log_normalizer=q,
            label_logit=p,
            mean_logit=jnp.broadcast_to(share, x.shape),
            entropy=q * (jnp.where(e == 0, 0, -d) - sums.mean_below_peak),  # q_j (z − x_j − H)
            cross_entropy=document,
            # q_j − S = (e_j Σ e − Σ e²) / mass², without the 1 of the peak in either sum
            collision=2 * q * ((e - 1) + e * s.rest - sums.squares) / s.mass**2,
            max_logit=predicted.astype(x.dtype),
            peak_entropy=jnp.where(predicted, -others, q),
            prediction=_NO_DERIVATIVE,
            label_rank=_NO_DERIVATIVE,
        ),
        uniform=q - share,
    )


def statistics_backward(classes: ClassAxis, block: Block, sums: Residuals, cotangents: RowValues) -> Block:
    """The cotangents of the block from those of its numbers."""
    cotangents = cotangents.with_class_axis(classes.axis)
    # dx_j = Σ_s ∂s/∂x_j ds, the sum over the numbers s; for the cross-entropy alone (q_j P − p_j) dh
    terms = jax.tree.map(
        _product_or_none, statistics_derivatives(classes, block, sums), cotangents, is_leaf=lambda slope: slope is None
    )
    of_target = cotangents.statistics.label_logit, cotangents.statistics.cross_entropy, cotangents.surprisals
    dx, target = target_vjp(classes, block, sums.measured, reduce(jnp.add, jax.tree.leaves(terms)), of_target)
    return Block(block.zero_missing(dx).astype(block.logits.dtype), target, None, None, None)


def _product_or_none(slope: Array | None, cotangent: Array | None) -> Array | None:
    return None if slope is None or cotangent is None else slope * cotangent


STATISTICS = RowRule.from_vjp(statistics_forward, statistics_backward)


row_statistics = STATISTICS.apply
"""`rows(classes, block)`: the numbers of each row."""


STATISTICS_IN_CACHE = RowRule.from_vjp(partial(one_cpu.in_cache, statistics_forward), statistics_backward)
"""The same for a block of a layer, or where all the numbers are wanted: each takes a pass of its own."""


if TYPE_CHECKING:
    StatisticsArgument = Statistics
else:
    # Accepts every value at run time, so that `check_statistics` refuses a wrong one with its own message.
    StatisticsArgument = NewType("Statistics", object)


def check_statistics(value: Any) -> Statistics:
    """The numbers of the samples, not their logits."""
    if not isinstance(value, Statistics):
        raise TypeError(
            "`s` must be `Statistics`, as `softjax.statistics(logits, labels)` and `softjax.linear_statistics` give; "
            f"got {type(value).__name__}."
        )
    return value


def fill_empty_rows(row: Statistics, dropped: Bool[Array, "*rows"]) -> Statistics:
    """The numbers of the rows in which no class exists are constants."""
    constants = Statistics.fill(0, -1)._replace(log_normalizer=-jnp.inf, max_logit=-jnp.inf)
    return jax.tree.map(lambda number, constant: jnp.where(dropped, constant, number), row, constants)
