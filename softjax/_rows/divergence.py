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

from softjax._args.labels import Teacher
from softjax._args.types import Array, Bool, Float
from softjax._mesh.axes import ClassAxis
from softjax._rows.block import Block, RowRule
from softjax._rows.edges import scale_or_zero, zero_infinite
from softjax._rows.log_sum import LogSum, below_peak, exp_below_peak, log_sum
from softjax._xla import one_cpu
from softjax._xla.barrier import barrier_unless_one_cpu


class RowSoftmax(NamedTuple):
    """The distribution of one of the two rows of logits."""

    x: Float[Array, "..."]
    """The logits over T."""
    below_peak: Float[Array, "..."]
    """x_j − peak"""
    e: Float[Array, "..."]
    """exp(x_j − peak)"""
    s: LogSum

    @property
    def probability(self) -> Float[Array, "..."]:
        return self.e / self.s.mass

    @property
    def log_probability(self) -> Float[Array, "..."]:
        return self.below_peak - self.s.log_mass

    @property
    def is_dominant(self) -> Bool[Array, "..."]:
        """The class at the peak where it has more than half of all."""
        return self.s.is_dominant(self.x)

    def expected(self, f: Float[Array, "..."]) -> Float[Array, "..."]:
        """q_j f_j, 0 for a class that has no probability or no finite f."""
        return self.probability * zero_infinite(f)


class DivergenceResiduals(NamedTuple):
    """What the slopes need of a row beside its block."""

    logs: tuple[LogSum, LogSum]
    shifts: Any
    """What each row of logits is measured from before it is divided by T."""
    dropped: Bool[Array, "*rows"] | None
    """The rows that are not counted and not finite, None where all are counted."""
    means: Any
    """Of the student and of the teacher Σ q f, and the part of it beside the peak; None where there is no f."""
    by_beta: Any


class ClassTerms(NamedTuple):
    """Of each class."""

    divergence: Float[Array, "..."]
    student: Float[Array, "..."] | None = None
    """f_j, for a slope q_j (f_j − Σ q f) along x / T; None for q_j − p_j."""
    teacher: Float[Array, "..."] | None = None
    """Likewise along y / T; None for p_j − q_j."""
    by_beta: Float[Array, "..."] | None = None
    """∂/∂β"""


def forward_kl(student: RowSoftmax, teacher: RowSoftmax, _: Any) -> ClassTerms:
    p, q, u = teacher.probability, student.probability, log_ratio(student, teacher)
    return ClassTerms(excess(p, q, u), teacher=-u)


def reverse_kl(student: RowSoftmax, teacher: RowSoftmax, _: Any) -> ClassTerms:
    p, q, u = teacher.probability, student.probability, log_ratio(student, teacher)
    return ClassTerms(excess(q, p, -u), student=u)


def jensen_shannon(student: RowSoftmax, teacher: RowSoftmax, beta: Float[Array, "*rows"]) -> ClassTerms:
    p, q, u = teacher.probability, student.probability, log_ratio(student, teacher)
    # from the one with the larger share of m: ln(m / p) = ln(1 + (1 − β)(e^u − 1)), where nothing cancels if β ≥ 1/2
    mostly_teacher = beta >= 0.5
    near, far = log_mixture_ratios(jnp.where(mostly_teacher, 1 - beta, beta), jnp.where(mostly_teacher, u, -u))
    a, b = jnp.where(mostly_teacher, near, far), jnp.where(mostly_teacher, far, near)
    m = beta * p + (1 - beta) * q
    of_teacher, of_student = excess(p, m, a), excess(q, m, b)
    divergence = scale_or_zero(beta, of_teacher) + scale_or_zero(1 - beta, of_student)
    # what is endless has no part in a mean: not in that of its derivative by β either, where 0 · inf would be NaN
    return ClassTerms(divergence, (beta - 1) * zero_infinite(b), -beta * zero_infinite(a), of_teacher - of_student)


def log_ratio(student: RowSoftmax, teacher: RowSoftmax) -> Float[Array, "..."]:
    """u_j = ln(q_j / p_j), 0 for a class that neither has."""
    neither = (student.x == -jnp.inf) & (teacher.x == -jnp.inf)
    return jnp.where(neither, 0, student.log_probability) - jnp.where(neither, 0, teacher.log_probability)


def log_mixture_ratios(
    share: Float[Array, "*rows"], u: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
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
    return excess(p, m, a), dm - dp - zero_infinite(a) * dp - p * jnp.where(jnp.isinf(a), 0, da)


def both_softmaxes(classes: ClassAxis, block: Block, sums: DivergenceResiduals) -> tuple[RowSoftmax, RowSoftmax]:
    """The student's and the teacher's."""

    def side(logits: Array, s: LogSum, shift: Any) -> RowSoftmax:
        x = divide_by_temperature(block._replace(logits=logits).wide_logits(sums.dropped), shift, temperature)
        return RowSoftmax(x, below_peak(classes, x, s), exp_below_peak(classes, x, s, sums.dropped), s)

    teacher, temperature, _ = teacher_target(block)
    (student, shift), (of_teacher, other) = zip(sums.logs, sums.shifts, strict=True)
    return side(block.logits, student, shift), side(teacher, of_teacher, other)


def teacher_target(block: Block) -> Teacher:
    assert isinstance(block.target, Teacher)
    return block.target


def divide_by_temperature(x: Float[Array, "..."], shift: Any, temperature: Any) -> Float[Array, "..."]:
    """(x_j − shift) / T: what is subtracted first costs no digits. −inf has no derivative by T, which would be inf."""
    gone = x == -jnp.inf
    return x if temperature is None else jnp.where(gone, x, (jnp.where(gone, shift, x) - shift) / temperature)


def both_log_sums(classes: ClassAxis, block: Block) -> DivergenceResiduals:
    """What there is to know of the two rows, before their divergence."""
    teacher, temperature, _ = teacher_target(block)

    def logs(logits: Array) -> tuple[LogSum, Any]:
        if temperature is None:
            return log_sum(classes, logits, block.exists), None
        x = block._replace(logits=logits).wide_logits()
        shift = classes.max(jax.lax.stop_gradient(x))
        shift = jnp.where(jnp.isfinite(shift), shift, 0)
        return log_sum(classes, divide_by_temperature(x, shift, temperature), None), shift

    each, shifts = zip(logs(block.logits), logs(teacher), strict=True)
    dropped = None
    if block.active is not None:
        finite = [jnp.isfinite(number) for s in each for number in s]
        dropped = ~block.active & ~(finite[0] & finite[1] & finite[2] & finite[3])
        each = jax.tree.map(lambda number: jnp.where(dropped, 0, number), each)
    return DivergenceResiduals(each, shifts, dropped, None, None)


def divergence_forward(
    kind: Callable[..., ClassTerms], classes: ClassAxis, block: Block
) -> tuple[Float[Array, "*rows"], DivergenceResiduals]:
    return one_cpu.in_cache(partial(_forward, kind), classes, block)


def _forward(
    kind: Callable[..., ClassTerms], classes: ClassAxis, block: Block
) -> tuple[Float[Array, "*rows"], DivergenceResiduals]:
    sums = barrier_unless_one_cpu(both_log_sums(classes, block), block.logits)
    student, teacher = both_softmaxes(classes, block, sums)
    terms = kind(student, teacher, teacher_target(block).beta)

    def means(side: RowSoftmax, f: Array | None) -> Any:
        if f is None:
            return None
        expected = side.expected(f)
        return classes.sum_keepdims(expected), classes.sum_keepdims(jnp.where(side.is_dominant, 0, expected))

    by_beta = None if terms.by_beta is None else classes.sum_keepdims(terms.by_beta)
    divergence = block.zero_ignored(classes, classes.sum(terms.divergence))
    means_of_both = means(student, terms.student), means(teacher, terms.teacher)
    return divergence, sums._replace(means=means_of_both, by_beta=by_beta)


def class_derivative(side: RowSoftmax, other: RowSoftmax, f: Array | None, means: Any) -> Float[Array, "..."]:
    """q_j (f_j − Σ q f), or q_j − p_j; for the class that is alone at the peak, of what is beside it."""
    q, others = side.probability, side.s.one_minus_q(side.e)
    if f is None:
        apart = other.s.one_minus_q(other.e) - others  # (1 − p_j) − (1 − q_j)
        return jnp.where(side.is_dominant | other.is_dominant, apart, q - other.probability)
    mean, beside = means
    expected = side.expected(f)  # q_j (f_j − q_j f_j − Σ_{i≠j} q_i f_i)
    return jnp.where(side.is_dominant, expected * others - q * beside, expected - q * mean)


class ParameterDerivatives(NamedTuple):
    """Those by the numbers of a row."""

    temperature: Float[Array, "*rows"] | None
    beta: Float[Array, "*rows"] | None


def divergence_derivatives(
    kind: Callable[..., ClassTerms], classes: ClassAxis, x: Array, block: Block, sums: DivergenceResiduals
) -> tuple[Float[Array, "..."], ParameterDerivatives]:
    """Along the student's logits, and by the numbers of a row."""
    student, teacher = both_softmaxes(classes, block._replace(logits=x), sums)
    _, temperature, beta = teacher_target(block)
    terms = kind(student, teacher, beta)
    dx = class_derivative(student, teacher, terms.student, sums.means[0])
    if temperature is None:
        return dx, ParameterDerivatives(None, sums.by_beta)
    dy = class_derivative(teacher, student, terms.teacher, sums.means[1])
    along = [dz * jnp.where(side.x == -jnp.inf, 0, side.below_peak) for side, dz in ((student, dx), (teacher, dy))]
    # ∂(x / T)/∂T = −(x / T) / T
    return dx / temperature, ParameterDerivatives(
        -classes.sum_keepdims(along[0] + along[1]) / temperature, sums.by_beta
    )


def divergence_backward(
    kind: Callable[..., ClassTerms],
    classes: ClassAxis,
    block: Block,
    sums: DivergenceResiduals,
    cotangent: Float[Array, "*rows"],
) -> Block:
    d = jnp.expand_dims(cotangent, classes.axis)
    dx, by = one_cpu.scan_rows(classes, partial(divergence_derivatives, kind, classes), block, sums)
    by = Teacher(None, *jax.tree.map(lambda slope: classes.divide_cotangent(d * slope), by))
    return Block(block.zero_missing(dx * d).astype(block.logits.dtype), by, None, None, None)


DIVERGENCES = {
    kind.__name__: RowRule.from_vjp(partial(divergence_forward, kind), partial(divergence_backward, kind))
    for kind in (forward_kl, reverse_kl, jensen_shannon)
}
"""`numbers(classes, block)`: the divergence of each row."""
