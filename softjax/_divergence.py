"""Two rows of logits, a student's x and its teacher's y: how far the one distribution is from the other.

With q = softmax(x / T), p = softmax(y / T), u_j = ln(q_j / p_j), the mixture m = β p + (1 − β) q, a_j = ln(m_j / p_j)
and b_j = ln(m_j / q_j), the slopes along x / T and y / T are:

    forward_kl      Σ_j p_j ln(p_j / q_j)        q_j − p_j                     −p_j (u_j − Σ p u)
    reverse_kl      Σ_j q_j ln(q_j / p_j)        q_j (u_j − Σ q u)             p_j − q_j
    jensen_shannon  −β Σ p a − (1 − β) Σ q b     −(1 − β) q_j (b_j − Σ q b)    −β p_j (a_j − Σ p a)

for which a function f of ln q_j with g_j = ∂f/∂ln q_j has g_j − q_j Σ g. By β the last one has −Σ p a + Σ q b.

The terms of such a sum have both signs, and where p and q are near all of it cancels. As Σ m − Σ p = 0, it is as well
the sum of m_j − p_j − p_j a_j = p_j (e^a_j − 1 − a_j), the excess of e^a over its tangent: at least 0, each of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax._block import Block, Page
from softjax._blocks import in_cache, over_rows
from softjax._classes import Classes, apart_elsewhere
from softjax._labels import Teacher
from softjax._log_sum import LogSum, below, exponentials, log_sum
from softjax._reduce import finite, times
from softjax._types import Array, Bool, Float


class Side(NamedTuple):
    """The distribution of one of the two rows of logits."""

    x: Float[Array, "..."]
    """The logits over T."""
    below: Float[Array, "..."]
    """x_j − peak"""
    e: Float[Array, "..."]
    """exp(x_j − peak)"""
    s: LogSum

    @property
    def probability(self) -> Float[Array, "..."]:
        return self.e / self.s.mass

    @property
    def log_probability(self) -> Float[Array, "..."]:
        return self.below - self.s.log_mass

    @property
    def alone(self) -> Bool[Array, "..."]:
        """The class at the peak where it has more than half of all."""
        return self.s.alone(self.x)

    def expected(self, f: Float[Array, "..."]) -> Float[Array, "..."]:
        """q_j f_j, 0 for a class that has no probability or no finite f."""
        return self.probability * finite(f)


class Sums(NamedTuple):
    """What the slopes need of a row beside its block."""

    logs: tuple[LogSum, LogSum]
    shifts: Any
    """What each row of logits is measured from before it is divided by T."""
    absent: Bool[Array, "*rows"] | None
    """The rows that are not counted and not finite, None where all are counted."""
    means: Any
    """Of the student and of the teacher Σ q f, and the part of it beside the peak; None where there is no f."""
    by_beta: Any


class Terms(NamedTuple):
    """Of each class."""

    divergence: Float[Array, "..."]
    student: Float[Array, "..."] | None = None
    """f_j, for a slope q_j (f_j − Σ q f) along x / T; None for q_j − p_j."""
    teacher: Float[Array, "..."] | None = None
    """Likewise along y / T; None for p_j − q_j."""
    by_beta: Float[Array, "..."] | None = None
    """∂/∂β"""


def forward_kl(student: Side, teacher: Side, _: Any) -> Terms:
    p, q, u = teacher.probability, student.probability, log_ratio(student, teacher)
    return Terms(excess(p, q, u), teacher=-u)


def reverse_kl(student: Side, teacher: Side, _: Any) -> Terms:
    p, q, u = teacher.probability, student.probability, log_ratio(student, teacher)
    return Terms(excess(q, p, -u), student=u)


def jensen_shannon(student: Side, teacher: Side, beta: Float[Array, "*rows"]) -> Terms:
    p, q, u = teacher.probability, student.probability, log_ratio(student, teacher)
    # from the one with the larger share of m: ln(m / p) = ln(1 + (1 − β)(e^u − 1)), where nothing cancels if β ≥ 1/2
    mostly_teacher = beta >= 0.5
    near, far = mixed(jnp.where(mostly_teacher, 1 - beta, beta), jnp.where(mostly_teacher, u, -u))
    a, b = jnp.where(mostly_teacher, near, far), jnp.where(mostly_teacher, far, near)
    m = beta * p + (1 - beta) * q
    of_teacher, of_student = excess(p, m, a), excess(q, m, b)
    divergence = times(beta, of_teacher) + times(1 - beta, of_student)
    # what is endless has no part in a mean: not in that of its derivative by β either, where 0 · inf would be NaN
    return Terms(divergence, (beta - 1) * finite(b), -beta * finite(a), of_teacher - of_student)


def log_ratio(student: Side, teacher: Side) -> Float[Array, "..."]:
    """u_j = ln(q_j / p_j), 0 for a class that neither has."""
    neither = (student.x == -jnp.inf) & (teacher.x == -jnp.inf)
    return jnp.where(neither, 0, student.log_probability) - jnp.where(neither, 0, teacher.log_probability)


def mixed(share: Float[Array, "*rows"], u: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """ln(m / p) and ln(m / q) for m = (1 − share) p + share · q, a share of at most 1/2, and u = ln(q / p)."""
    low, over = jnp.minimum(u, 80.0), jnp.maximum(u - 80.0, 0)  # e^80 is a number
    a, none = jnp.log1p(share * jnp.expm1(low)), share == 0
    return a + jnp.where(none, 0, over), a - low - jnp.where(none, over, 0)


@jax.custom_jvp
def excess(p: Float[Array, "..."], m: Float[Array, "..."], a: Float[Array, "..."]) -> Float[Array, "..."]:
    """m − p − p a for a = ln(m / p): m where p is 0, +inf where m is."""
    near = jnp.abs(a) <= 0.5
    series, low = jnp.ones_like(a), jnp.where(near, a, 0)
    for n in range(17 if a.dtype == jnp.float64 else 10, 2, -1):
        series = 1 + series * low / n  # (e^a − 1 − a) / (a² / 2) = 1 + a/3 (1 + a/4 (1 + …))
    return jnp.where(near, p * (low * low / 2) * series, m - p - p * jnp.where(p == 0, 0, a))


@excess.defjvp
def _excess_jvp(primals, tangents):
    (p, m, a), (dp, dm, da) = primals, tangents
    return excess(p, m, a), dm - dp - finite(a) * dp - p * jnp.where(jnp.isinf(a), 0, da)


def sides(classes: Classes, block: Block, sums: Sums) -> tuple[Side, Side]:
    """The student's and the teacher's."""

    def side(logits: Array, s: LogSum, shift: Any) -> Side:
        x = over_temperature(block._replace(logits=logits).wide_logits(sums.absent), shift, temperature)
        return Side(x, below(classes, x, s), exponentials(classes, x, s, sums.absent), s)

    teacher, temperature, _ = teacher_of(block)
    (student, shift), (of_teacher, other) = zip(sums.logs, sums.shifts, strict=True)
    return side(block.logits, student, shift), side(teacher, of_teacher, other)


def teacher_of(block: Block) -> Teacher:
    assert isinstance(block.target, Teacher)
    return block.target


def over_temperature(x: Float[Array, "..."], shift: Any, temperature: Any) -> Float[Array, "..."]:
    """(x_j − shift) / T: what is subtracted first costs no digits. −inf has no derivative by T, which would be inf."""
    gone = x == -jnp.inf
    return x if temperature is None else jnp.where(gone, x, (jnp.where(gone, shift, x) - shift) / temperature)


def of_block(classes: Classes, block: Block) -> Sums:
    """What there is to know of the two rows, before their divergence."""
    teacher, temperature, _ = teacher_of(block)

    def logs(logits: Array) -> tuple[LogSum, Any]:
        if temperature is None:
            return log_sum(classes, logits, block.exists), None
        x = block._replace(logits=logits).wide_logits()
        shift = classes.most(jax.lax.stop_gradient(x))
        shift = jnp.where(jnp.isfinite(shift), shift, 0)
        return log_sum(classes, over_temperature(x, shift, temperature), None), shift

    each, shifts = zip(logs(block.logits), logs(teacher), strict=True)
    absent = None
    if block.counted is not None:
        finite = [jnp.isfinite(number) for s in each for number in s]
        absent = ~block.counted & ~(finite[0] & finite[1] & finite[2] & finite[3])
        each = jax.tree.map(lambda number: jnp.where(absent, 0, number), each)
    return Sums(each, shifts, absent, None, None)


def values(kind: Callable[..., Terms], classes: Classes, block: Block) -> tuple[Float[Array, "*rows"], Sums]:
    return in_cache(partial(_values, kind), classes, block)


def _values(kind: Callable[..., Terms], classes: Classes, block: Block) -> tuple[Float[Array, "*rows"], Sums]:
    sums = apart_elsewhere(of_block(classes, block), block.logits)
    student, teacher = sides(classes, block, sums)
    terms = kind(student, teacher, teacher_of(block).beta)

    def means(side: Side, f: Array | None) -> Any:
        if f is None:
            return None
        expected = side.expected(f)
        return classes.total(expected), classes.total(jnp.where(side.alone, 0, expected))

    by_beta = None if terms.by_beta is None else classes.total(terms.by_beta)
    divergence = block.finite(classes, classes.sum(terms.divergence))
    means_of_both = means(student, terms.student), means(teacher, terms.teacher)
    return divergence, sums._replace(means=means_of_both, by_beta=by_beta)


def slope(side: Side, other: Side, f: Array | None, means: Any) -> Float[Array, "..."]:
    """q_j (f_j − Σ q f), or q_j − p_j; for the class that is alone at the peak, of what is beside it."""
    q, others = side.probability, side.s.others(side.e)
    if f is None:
        apart = other.s.others(other.e) - others  # (1 − p_j) − (1 − q_j)
        return jnp.where(side.alone | other.alone, apart, q - other.probability)
    mean, beside = means
    expected = side.expected(f)  # q_j (f_j − q_j f_j − Σ_{i≠j} q_i f_i)
    return jnp.where(side.alone, expected * others - q * beside, expected - q * mean)


class Slopes(NamedTuple):
    """Those by the numbers of a row."""

    temperature: Float[Array, "*rows"] | None
    beta: Float[Array, "*rows"] | None


def slopes(
    kind: Callable[..., Terms], classes: Classes, x: Array, block: Block, sums: Sums
) -> tuple[Float[Array, "..."], Slopes]:
    """Along the student's logits, and by the numbers of a row."""
    student, teacher = sides(classes, block._replace(logits=x), sums)
    _, temperature, beta = teacher_of(block)
    terms = kind(student, teacher, beta)
    dx = slope(student, teacher, terms.student, sums.means[0])
    if temperature is None:
        return dx, Slopes(None, sums.by_beta)
    dy = slope(teacher, student, terms.teacher, sums.means[1])
    along = [dz * jnp.where(side.x == -jnp.inf, 0, side.below) for side, dz in ((student, dx), (teacher, dy))]
    # ∂(x / T)/∂T = −(x / T) / T
    return dx / temperature, Slopes(-classes.total(along[0] + along[1]) / temperature, sums.by_beta)


def pulled_back(
    kind: Callable[..., Terms], classes: Classes, block: Block, sums: Sums, cotangent: Float[Array, "*rows"]
) -> Block:
    d = jnp.expand_dims(cotangent, classes.axis)
    dx, by = over_rows(classes, partial(slopes, kind, classes), block, sums)
    by = Teacher(None, *jax.tree.map(lambda slope: classes.share(d * slope), by))
    return Block(block.existing(dx * d).astype(block.logits.dtype), by, None, None, None)


PAGES = {
    kind.__name__: Page.of(partial(values, kind), partial(pulled_back, kind))
    for kind in (forward_kl, reverse_kl, jensen_shannon)
}
"""`numbers(classes, block)`: the divergence of each row."""
