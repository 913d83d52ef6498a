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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax import _cpu as cpu
from softjax._block import Block, no_number
from softjax._classes import Classes
from softjax._every_mode import in_every_mode, one_operation
from softjax._labels import Distribution, Ids
from softjax._log_sum import LogSum, below, exponentials, log_sum
from softjax._types import Array, Bool, Float, Integer


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
    def of(cls, number: Any, integer: Any) -> "Statistics":
        """The same in every field: a number, or an integer where no derivative is."""
        return cls(**{name: integer if name in ("prediction", "label_rank") else number for name in cls._fields})


_NONE: Any = None
"""Where no derivative is."""


class Row(NamedTuple):
    statistics: Statistics
    uniform: Float[Array, "*rows"]


class Sums(NamedTuple):
    """What the slopes need of a row beside its block."""

    log_sum: LogSum
    """Its rest is 0 in the absent rows; its peak is what it is there, as the sum has taken it."""
    absent: Bool[Array, "*rows"] | None
    """The rows that are not counted and not finite, None where all are counted."""
    spread: Float[Array, "*rows"]
    """Σ_j q_j (peak − x_j)"""
    squares: Float[Array, "*rows"]
    """Σ_j exp(2 (x_j − peak)) over all classes but one at the peak"""
    target: Any
    """Of a class id x_y; of a distribution P and its part beside the peak"""
    prediction: Integer[Array, "*rows"]
    class_count: Float[Array, "*rows"]
    """C, at least 1"""


def values(classes: Classes, block: Block) -> tuple[Row, Sums]:
    s, x = log_sum(classes, block.logits, block.exists), block.wide_logits()
    of = _of_ids if isinstance(block.target, Ids) else _of_distribution
    label, a, h, target = of(classes, block, x, s)
    s = s._replace(rest=_without(absent := _absent(block, s), s.rest))
    row = LogSum(*map(classes.number, s))
    d, e, count = below(classes, x, s), exponentials(classes, x, s, absent), block.class_count(classes)
    prediction = block.first_equal(classes, x, s.peak)
    spread = classes.total(-e * jnp.where(e == 0, 0, d)) / s.mass  # 0 · ln 0 = 0
    squares = jnp.where(s.rest < 1, classes.total(e * e - jnp.floor(e)), classes.total(e * e) - 1)
    statistics = Statistics(
        log_normalizer=row.peak + row.log_mass,
        label_logit=a,
        mean_logit=classes.sum(block.existing(x)) / classes.number(count),
        entropy=row.log_mass + classes.number(spread),
        cross_entropy=h,
        collision=(1 + classes.number(squares)) / row.mass**2,
        max_logit=row.peak,
        peak_entropy=row.log_mass,
        prediction=classes.number(prediction),
        label_rank=classes.number(block.rank(classes, x, label)),
    )
    distance = classes.sum(block.existing(cpu.apart(s.peak) - x)) / classes.number(count)
    uniform = jnp.where(row.peak == jnp.inf, jnp.inf, row.log_mass + distance)  # not inf − inf
    sums = Sums(s, absent, spread, squares, target, prediction, count)
    return block.finite(classes, Row(statistics, uniform)), sums


def _absent(block: Block, s: LogSum) -> Bool[Array, "*rows"] | None:
    """The rows that are not counted and not finite, which shows in peak or rest; None where all are counted."""
    return None if block.counted is None else ~block.counted & ~(jnp.isfinite(s.peak) & jnp.isfinite(s.rest))


def _without(absent: Array | None, number: Array) -> Array:
    return number if absent is None else jnp.where(absent, 0, number)


def _of_ids(classes: Classes, block: Block, x: Array, s: LogSum) -> tuple[Any, ...]:
    """The label, a, h, and what the slopes need."""
    (ids,) = block.target
    logit = block.at(classes, ids)
    outside = ids < 0 if block.counted is None else (ids < 0) & block.counted
    a = classes.number(no_number(outside, logit))
    peak, log_mass = classes.number(s.peak), LogSum(*map(classes.number, s)).log_mass
    # h = ln Σ exp(x_j − peak) + (peak − x_y), a sum of two numbers that are at least 0
    return ids, a, log_mass + (peak - a), logit


def _of_distribution(classes: Classes, block: Block, x: Array, s: LogSum) -> tuple[Any, ...]:
    """The most probable class, a, h, and what the slopes need."""
    p = block.wide_probabilities()
    massive = p != 0  # 0 · (−inf) = 0: a class of no mass takes no part, whatever its logit
    mass, beside = classes.total(p), classes.total(jnp.where(x == s.peak, 0, p))
    a = classes.sum(jnp.where(massive, p * jnp.where(massive, x, 0), 0))
    distance = jnp.where(massive, s.peak - x, 0)
    h = classes.number(mass * s.log_mass) + classes.sum(jnp.where(massive, p * distance, 0))
    most = classes.most(p)
    return jnp.where(most > 0, block.first_equal(classes, p, most), -1), a, h, (mass, beside)


def slopes(classes: Classes, block: Block, sums: Sums) -> Row:
    """∂number/∂x_j of each number, in the shape of the logits. None is a NaN where q_j is 0 or x_j is −inf."""
    s, x, share = sums.log_sum, block.wide_logits(), 1 / sums.class_count
    d, e = below(classes, x, s), exponentials(classes, x, s, sums.absent)
    q, others = e * jnp.expand_dims(1 / classes.number(s.mass), classes.axis), s.others(e)
    predicted = block.class_ids(classes, sums.prediction) == sums.prediction
    target = _slopes_of_ids if isinstance(block.target, Ids) else _slopes_of_distribution
    p, document = target(classes, block, sums, q)
    return Row(
        Statistics(
            log_normalizer=q,
            label_logit=p,
            mean_logit=jnp.broadcast_to(share, x.shape),
            entropy=q * (jnp.where(e == 0, 0, -d) - sums.spread),  # q_j (z − x_j − H)
            cross_entropy=document,
            # q_j − S = (e_j Σ e − Σ e²) / mass², without the 1 of the peak in either sum
            collision=2 * q * ((e - 1) + e * s.rest - sums.squares) / s.mass**2,
            max_logit=predicted.astype(x.dtype),
            peak_entropy=jnp.where(predicted, -others, q),
            prediction=_NONE,
            label_rank=_NONE,
        ),
        uniform=q - share,
    )


def _slopes_of_ids(classes: Classes, block: Block, sums: Sums, q: Array) -> tuple[Array, Array]:
    """∂a/∂x_j = [j = y] and the document's gradient ∂h/∂x_j = q_j − [j = y], which at the label is −(1 − q_y)."""
    (ids,), s = block.target, sums.log_sum
    label = block.class_ids(classes, ids) == ids
    a, row, absent = jax.tree.map(classes.number, (sums.target, s, sums.absent))
    others = jnp.expand_dims(row.others(exponentials(classes, a, row, absent)), classes.axis)
    # 0 for an id that is no class, by way of a number of each row: of a constant, XLA makes an array outside of a loop
    return label.astype(q.dtype), jnp.where(label, -others, q * jnp.where(ids < 0, 0, jnp.ones_like(s.rest)))


def _slopes_of_distribution(classes: Classes, block: Block, sums: Sums, q: Array) -> tuple[Array, Array]:
    """∂a/∂x_j = p_j and the document's gradient ∂h/∂x_j = q_j P − p_j."""
    s, x, p = sums.log_sum, block.wide_logits(), block.wide_probabilities()
    # Σ_{i≠j} p_i − (1 − q_j) P, for the class at the peak, where all but the others' would cancel
    mass, beside = sums.target
    return p, jnp.where(s.alone(x), beside - s.others(exponentials(classes, x, s, sums.absent)) * mass, q * mass - p)


def _target_slopes(classes: Classes, block: Block, sums: Sums) -> tuple[Array, Array, Array]:
    """∂a/∂p_j = x_j and ∂h/∂p_j = z − x_j; 0 where both p_j and exp x_j are, whatever p_j does there."""
    # Apart from them the x_j = −inf of ∂(a − h)/∂p_j: the cotangent of what nobody reads may be 0, and 0 · inf is NaN.
    s, x, p = sums.log_sum, block.wide_logits(sums.absent), block.wide_probabilities()
    absent, s = x == -jnp.inf, s._replace(peak=_without(sums.absent, s.peak))
    dh = jnp.where(absent, 0, s.log_mass - below(classes, x, s))
    return jnp.where(absent, 0, x), dh, jnp.where(absent & (p != 0), x, 0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(classes: Classes, block: Block) -> Row:
    return values(classes, block)[0]


def _forward(classes: Classes, block: Block) -> tuple[Row, tuple[Block, Sums]]:
    row, sums = values(classes, block)
    return row, (block, sums)


def _backward(classes: Classes, residuals: tuple[Block, Sums], cotangents: Row) -> tuple[Block]:
    cotangents = jax.tree.map(lambda ds: jnp.expand_dims(ds, classes.axis), classes.whole(cotangents))
    return (pulled_back(classes, *residuals, cotangents),)


_rows.defvjp(one_operation(_forward), _backward)
rows = in_every_mode(_rows)
"""`rows(classes, block)`: the numbers of each row."""


def pulled_back(classes: Classes, block: Block, sums: Sums, cotangents: Row) -> Block:
    """The cotangents of the block from those of its numbers."""
    # dx_j = Σ_s ∂s/∂x_j ds, the sum over the numbers s; for the cross-entropy alone (q_j P − p_j) dh
    terms = jax.tree.map(_times, slopes(classes, block, sums), cotangents, is_leaf=lambda slope: slope is None)
    dx = block.existing(reduce(jnp.add, jax.tree.leaves(terms))).astype(block.logits.dtype)
    gradients = Block(dx, _NONE, None, None, None)
    if isinstance(block.target, Ids):
        return gradients
    (da, dh, endless), ds = _target_slopes(classes, block, sums), cotangents.statistics
    dp = block.existing(da * ds.label_logit + dh * ds.cross_entropy + endless * (ds.label_logit - ds.cross_entropy))
    return gradients._replace(target=Distribution(dp.astype(block.target.probabilities.dtype)))


def _times(slope: Array | None, cotangent: Array) -> Array | None:
    return None if slope is None else slope * cotangent


def without_classes(row: Statistics, absent: Bool[Array, "*rows"]) -> Statistics:
    """The numbers of the rows in which no class exists are constants."""
    constants = Statistics.of(0, -1)._replace(log_normalizer=-jnp.inf, max_logit=-jnp.inf)
    return jax.tree.map(lambda number, constant: jnp.where(absent, constant, number), row, constants)
