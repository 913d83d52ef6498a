"""Divergences of two rows of logits: a student's x from its teacher's y.

With q = softmax(x / T), p = softmax(y / T), u_j = ln(q_j / p_j), the mixture m = β p + (1 − β) q, a_j = ln(m_j / p_j)
and b_j = ln(m_j / q_j), the derivatives along x / T and y / T are:

    forward_kl      Σ_j p_j ln(p_j / q_j)        q_j − p_j                     −p_j (u_j − Σ p u)
    reverse_kl      Σ_j q_j ln(q_j / p_j)        q_j (u_j − Σ q u)             p_j − q_j
    jensen_shannon  −β Σ p a − (1 − β) Σ q b     −(1 − β) q_j (b_j − Σ q b)    −β p_j (a_j − Σ p a)

since a function f of ln q_j with g_j = ∂f/∂ln q_j has ∂f/∂(x_j / T) = g_j − q_j Σ g. The derivative of the last one
with respect to β is −Σ p a + Σ q b.

The terms of these sums have both signs, and cancel where p and q are close. Since Σ m − Σ p = 0, such a sum is also the
sum of m_j − p_j − p_j a_j = p_j (e^a_j − 1 − a_j), the excess of e^a over its tangent. Every term of it is at least 0.

Where p and q are far apart, b_j is nearly the constant ln(1 − β) at all classes that q prefers, and a_j nearly ln β at
those that p prefers. Then b_j − Σ q b would cancel. A constant does not change this difference, so such rows use the
distance to the constant:

    b_j − ln(1 − β) = ln(1 + e^v_j)    a_j − ln β = ln(1 + e^−v_j)    with v_j = ln(β / (1 − β)) − u_j

A row is apart if its divergence is above half of the largest one, −β ln β − (1 − β) ln(1 − β).

To add a divergence: a function like `forward_kl`, its name in `DIVERGENCES`, and its formula in `tests/exact.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax._args.labels import Teacher
from softjax._args.types import Array, Bool, Float
from softjax._rows.block import Block, RowRule
from softjax._rows.edges import scale_or_zero, zero_infinite
from softjax._rows.log_sum import LogSum, below_peak, exp_below_peak, log_sum
from softjax._xla import one_cpu


class RowSoftmax(NamedTuple):
    """softmax(x / T) of one of the two rows."""

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
        """Whether the class is the only one at the peak, with a probability above 1/2."""
        return self.s.is_dominant(self.x)

    def expectation_terms(self, f: Float[Array, "..."]) -> Float[Array, "..."]:
        """q_j f_j, 0 where q_j is 0 or f_j is infinite."""
        return self.probability * zero_infinite(f)


class ClassTerms(NamedTuple):
    """One value for each class."""

    divergence: Float[Array, "..."]
    """Its sum over the classes is the divergence."""
    student: Float[Array, "..."] | None = None
    """f_j of a derivative q_j (f_j − Σ q f) along x / T; None for q_j − p_j."""
    teacher: Float[Array, "..."] | None = None
    """f_j of a derivative p_j (f_j − Σ p f) along y / T; None for p_j − q_j."""
    by_beta: Float[Array, "..."] | None = None
    """Its sum over the classes is the derivative with respect to β."""
    largest: Float[Array, "*rows"] | None = None
    """The upper bound of the divergence; None if `apart` is."""
    apart: "ClassTerms | None" = None
    """Other terms for rows where p and q are far apart, where these would cancel; None if they never do."""

    def choose(self, is_apart: Bool[Array, "*rows"] | None) -> "ClassTerms":
        """Of each row, the terms in which nothing cancels."""
        if self.apart is None or is_apart is None:
            return self
        near = self._replace(largest=None, apart=None)
        return jax.tree.map(partial(jnp.where, is_apart), self.apart, near)


def forward_kl(student: RowSoftmax, teacher: RowSoftmax, _: Any) -> ClassTerms:
    p, q, u = teacher.probability, student.probability, log_ratio(student, teacher)
    return ClassTerms(excess(p, q, u), teacher=-u)


def reverse_kl(student: RowSoftmax, teacher: RowSoftmax, _: Any) -> ClassTerms:
    p, q, u = teacher.probability, student.probability, log_ratio(student, teacher)
    return ClassTerms(excess(q, p, -u), student=u)


def jensen_shannon(student: RowSoftmax, teacher: RowSoftmax, beta: Float[Array, "*rows"]) -> ClassTerms:
    p, q, u = teacher.probability, student.probability, log_ratio(student, teacher)
    # ln(m / p) = ln(1 + (1 − β)(e^u − 1)) does not cancel for β ≥ 1/2: start from the row with the larger part of m.
    teacher_is_larger = beta >= 0.5
    near, far = log_mixture_ratios(jnp.where(teacher_is_larger, 1 - beta, beta), jnp.where(teacher_is_larger, u, -u))
    a, b = jnp.where(teacher_is_larger, near, far), jnp.where(teacher_is_larger, far, near)
    m = beta * p + (1 - beta) * q
    kl_teacher, kl_student = excess(p, m, a), excess(q, m, b)
    divergence = scale_or_zero(beta, kl_teacher) + scale_or_zero(1 - beta, kl_student)

    # An infinite a or b is 0 in the means, and in their derivative by β, where 0 · inf would be NaN.
    def terms(a: Array, b: Array, by_beta: Array, *rest: Any) -> ClassTerms:
        return ClassTerms(divergence, (beta - 1) * zero_infinite(b), -beta * zero_infinite(a), by_beta, *rest)

    largest, log_odds = entropy_and_log_odds(beta)
    v = log_odds - u
    log_one_plus = jnp.log1p(jnp.exp(-jnp.abs(v)))
    a_apart, b_apart = (jnp.maximum(w, 0) + log_one_plus for w in (-v, v))
    by_beta_apart = student.expectation_terms(b_apart) - teacher.expectation_terms(a_apart + log_odds)
    return terms(a, b, kl_teacher - kl_student, largest, terms(a_apart, b_apart, by_beta_apart))


def entropy_and_log_odds(beta: Float[Array, "*rows"]) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
    """−β ln β − (1 − β) ln(1 − β) and ln(β / (1 − β)); for β = 0 or 1 the entropy 0, and any finite log odds."""
    is_mixed = (beta > 0) & (beta < 1)
    inside = jnp.where(is_mixed, beta, 0.5)
    log_beta, log_rest = jnp.log(inside), jnp.log1p(-inside)
    return jnp.where(is_mixed, -inside * log_beta - (1 - inside) * log_rest, 0), log_beta - log_rest


def log_ratio(student: RowSoftmax, teacher: RowSoftmax) -> Float[Array, "..."]:
    """u_j = ln(q_j / p_j), 0 for a class that has logit −inf in both rows."""
    neither = (student.x == -jnp.inf) & (teacher.x == -jnp.inf)
    return jnp.where(neither, 0, student.log_probability) - jnp.where(neither, 0, teacher.log_probability)


def log_mixture_ratios(
    fraction: Float[Array, "*rows"], u: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """ln(m / p) and ln(m / q) for m = (1 − fraction) p + fraction · q, fraction ≤ 1/2, and u = ln(q / p)."""
    low, above_80 = jnp.minimum(u, 80.0), jnp.maximum(u - 80.0, 0)  # e^80 does not overflow
    a, is_zero = jnp.log1p(fraction * jnp.expm1(low)), fraction == 0
    return a + jnp.where(is_zero, 0, above_80), a - low - jnp.where(is_zero, above_80, 0)


@jax.custom_jvp
def excess(p: Float[Array, "..."], m: Float[Array, "..."], a: Float[Array, "..."]) -> Float[Array, "..."]:
    """m − p − p a for a = ln(m / p): m where p is 0, +inf where m is 0."""
    is_small = jnp.abs(a) <= 0.5
    series, small = jnp.ones_like(a), jnp.where(is_small, a, 0)
    for n in range(17 if a.dtype == jnp.float64 else 10, 2, -1):
        series = 1 + series * small / n  # (e^a − 1 − a) / (a² / 2) = 1 + a/3 (1 + a/4 (1 + …))
    return jnp.where(is_small, p * (small * small / 2) * series, m - p - p * jnp.where(p == 0, 0, a))


@excess.defjvp
def _excess_jvp(primals, tangents):
    (p, m, a), (dp, dm, da) = primals, tangents
    return excess(p, m, a), dm - dp - zero_infinite(a) * dp - p * jnp.where(jnp.isinf(a), 0, da)


class DivergenceResiduals(NamedTuple):
    """What the derivatives need of a row beside its block; a pair is (student, teacher)."""

    log_sums: tuple[LogSum, LogSum]
    shifts: Any
    """The logit that each row subtracts before it divides by T; None without a temperature."""
    dropped: Bool[Array, "*rows"] | None
    """Ignored rows with non-finite logits, None where all rows are active."""
    means: Any
    """Pair of (Σ q f, the same without a dominant class); None where there is no f."""
    by_beta: Any
    is_apart: Bool[Array, "*rows"] | None
    """Rows where p and q are far apart; None for a kind whose terms do not depend on it."""


def divergence_forward(
    kind: Callable[..., ClassTerms], block: Block
) -> tuple[Float[Array, "*rows"], DivergenceResiduals]:
    classes = block.classes
    residuals = one_cpu.barrier_unless_one_cpu(_log_sums(block), block.logits)
    student, teacher = _softmaxes(block, residuals)
    terms = kind(student, teacher, teacher_target(block).beta)
    divergence = classes.sum_keepdims(terms.divergence)
    is_apart = None if terms.largest is None else divergence > terms.largest / 2
    terms = terms.choose(is_apart)

    def means(row: RowSoftmax, f: Array | None) -> Any:
        if f is None:
            return None
        expectation = row.expectation_terms(f)
        return classes.sum_keepdims(expectation), classes.sum_keepdims(jnp.where(row.is_dominant, 0, expectation))

    by_beta = None if terms.by_beta is None else classes.sum_keepdims(terms.by_beta)
    both_means = means(student, terms.student), means(teacher, terms.teacher)
    residuals = residuals._replace(means=both_means, by_beta=by_beta, is_apart=is_apart)
    return block.zero_ignored(classes.squeeze(divergence)), residuals


def teacher_target(block: Block) -> Teacher:
    assert isinstance(block.target, Teacher)
    return block.target


def _log_sums(block: Block) -> DivergenceResiduals:
    """The residuals that do not depend on the kind of divergence."""
    classes, (teacher, temperature, _) = block.classes, teacher_target(block)

    def log_sum_and_shift(logits: Array) -> tuple[LogSum, Any]:
        if temperature is None:
            return log_sum(classes, logits, block.exists), None
        x = block._replace(logits=logits).wide_logits()
        shift = classes.max(jax.lax.stop_gradient(x))
        shift = jnp.where(jnp.isfinite(shift), shift, 0)
        return log_sum(classes, divide_by_temperature(x, shift, temperature), None), shift

    both, shifts = zip(log_sum_and_shift(block.logits), log_sum_and_shift(teacher), strict=True)
    dropped = None
    if block.active is not None:
        finite = [jnp.isfinite(value) for s in both for value in s]
        dropped = ~block.active & ~(finite[0] & finite[1] & finite[2] & finite[3])
        both = jax.tree.map(lambda value: jnp.where(dropped, 0, value), both)
    return DivergenceResiduals(both, shifts, dropped, None, None, None)


def divide_by_temperature(x: Float[Array, "..."], shift: Any, temperature: Any) -> Float[Array, "..."]:
    """(x_j − shift) / T, which keeps the digits of large logits. −inf stays, with derivative 0 with respect to T."""
    no_logit = x == -jnp.inf
    return x if temperature is None else jnp.where(no_logit, x, (jnp.where(no_logit, shift, x) - shift) / temperature)


def _softmaxes(block: Block, residuals: DivergenceResiduals) -> tuple[RowSoftmax, RowSoftmax]:
    """The student's and the teacher's."""
    classes, (teacher, temperature, _) = block.classes, teacher_target(block)

    def row_softmax(logits: Array, s: LogSum, shift: Any) -> RowSoftmax:
        wide = block._replace(logits=logits).wide_logits(residuals.dropped)
        x = divide_by_temperature(wide, shift, temperature)
        return RowSoftmax(x, below_peak(classes, x, s), exp_below_peak(classes, x, s, residuals.dropped), s)

    (student_sum, shift), (teacher_sum, teacher_shift) = zip(residuals.log_sums, residuals.shifts, strict=True)
    return row_softmax(block.logits, student_sum, shift), row_softmax(teacher, teacher_sum, teacher_shift)


class ParameterDerivatives(NamedTuple):
    """The derivatives with respect to the parameters of a row."""

    temperature: Float[Array, "*rows"] | None
    beta: Float[Array, "*rows"] | None


def divergence_backward(
    kind: Callable[..., ClassTerms], block: Block, residuals: DivergenceResiduals, cotangent: Float[Array, "*rows"]
) -> Block:
    classes = block.classes
    d = jnp.expand_dims(cotangent, classes.axis)
    dx, parameters = one_cpu.scan_rows(partial(divergence_derivatives, kind), block, residuals)
    dparameters = jax.tree.map(lambda derivative: classes.divide_cotangent(d * derivative), parameters)
    return block.cotangent(dx * d, Teacher(None, *dparameters))


def divergence_derivatives(
    kind: Callable[..., ClassTerms], x: Array, block: Block, residuals: DivergenceResiduals
) -> tuple[Float[Array, "..."], ParameterDerivatives]:
    """The derivatives with respect to the student's logits x, and to the parameters of a row."""
    student, teacher = _softmaxes(block._replace(logits=x), residuals)
    _, temperature, beta = teacher_target(block)
    terms = kind(student, teacher, beta).choose(residuals.is_apart)
    student_means, teacher_means = residuals.means
    dx = class_derivative(student, teacher, terms.student, student_means)
    if temperature is None:
        return dx, ParameterDerivatives(None, residuals.by_beta)
    dy = class_derivative(teacher, student, terms.teacher, teacher_means)
    # ∂(x / T)/∂T = −(x / T) / T
    by_x, by_y = (dz * jnp.where(row.x == -jnp.inf, 0, row.below_peak) for row, dz in ((student, dx), (teacher, dy)))
    by_temperature = -block.classes.sum_keepdims(by_x + by_y) / temperature
    return dx / temperature, ParameterDerivatives(by_temperature, residuals.by_beta)


def class_derivative(row: RowSoftmax, other: RowSoftmax, f: Array | None, means: Any) -> Float[Array, "..."]:
    """q_j (f_j − Σ q f), or q_j − p_j if f is None. For a dominant class it sums over the other classes only."""
    q, one_minus_q = row.probability, row.s.one_minus_q(row.e)
    if f is None:
        difference = other.s.one_minus_q(other.e) - one_minus_q  # (1 − p_j) − (1 − q_j)
        return jnp.where(row.is_dominant | other.is_dominant, difference, q - other.probability)
    mean, mean_beside_peak = means
    expectation = row.expectation_terms(f)  # q_j (f_j − q_j f_j − Σ_{i≠j} q_i f_i)
    return jnp.where(row.is_dominant, expectation * one_minus_q - q * mean_beside_peak, expectation - q * mean)


DIVERGENCES = {
    kind.__name__: RowRule(
        partial(one_cpu.in_cache, partial(divergence_forward, kind)), partial(divergence_backward, kind)
    )
    for kind in (forward_kl, reverse_kl, jensen_shannon)
}
"""The row rule of each kind."""
