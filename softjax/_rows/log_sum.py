"""ln Σ_j exp x_j of each row, exact also where one logit stands far above the others.

Let peak be the largest logit, and mass = Σ_j exp(x_j − peak) = 1 + rest. The rest sums over all classes but one at the
peak. In float32 1 + rest rounds to 1 once rest < 6e-8, and every value computed from the mass is lost. So a row keeps
(peak, rest): ln mass = log1p(rest), and 1 − q of the peak is rest / mass.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax._args.types import Array, Bool, Float
from softjax._mesh.axes import ClassAxis, existing_logits
from softjax._xla import one_cpu
from softjax._xla.barrier import barrier


class LogSum(NamedTuple):
    """ln Σ_j exp x_j = peak + log1p(rest)."""

    peak: Float[Array, "*rows"]
    """The largest logit."""
    rest: Float[Array, "*rows"]
    """Σ_j exp(x_j − peak) over all classes but one at the peak."""

    @property
    def mass(self) -> Float[Array, "*rows"]:
        """Σ_j exp(x_j − peak)"""
        return 1 + self.rest

    @property
    def log_mass(self) -> Float[Array, "*rows"]:
        """ln Σ_j exp(x_j − peak), with the digits that peak + ln mass would round away."""
        return jnp.log1p(self.rest)

    @property
    def one_minus_q_peak(self) -> Float[Array, "*rows"]:
        """1 − q of a class at the peak: rest / mass."""
        return _rest_over_mass(self.rest)

    def one_minus_q(self, e: Float[Array, "..."]) -> Float[Array, "..."]:
        """1 − q_j from e_j = exp(x_j − peak). At the peak it is rest / mass, exact where q_j rounds to 1."""
        # If rest < 1/2, only the peak has e > 1/2, and there e is 1 up to rounding.
        at_peak = (e >= 1) | ((e > 0.5) & (self.rest < 0.5))
        return jnp.where(at_peak, self.one_minus_q_peak - (e - lax.stop_gradient(e)) / self.mass, 1 - e / self.mass)

    def is_dominant(self, x: Float[Array, "..."]) -> Bool[Array, "..."]:
        """Whether x_j is the only class at the peak and q_j > 1/2, where q_j − 1 would cancel."""
        return (x == self.peak) & (self.rest < 1)


@jax.custom_jvp
def _rest_over_mass(rest: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
    """rest / (1 + rest) = 1 − 1 / mass"""
    return rest / (1 + rest)


# The two terms of the quotient rule cancel where the rest is large.
_rest_over_mass.defjvps(lambda step, _, rest: step / (1 + rest) ** 2)


# Three ways to write x_j − peak and its exponential, each for a compiler that rounds or fuses differently.


def minus_peak(x: Float[Array, "..."], peak: Float[Array, "..."]) -> Float[Array, "..."]:
    """x_j − peak, exactly 0 at the peak.

    For logits a · b made in the same loop, XLA may fuse a_j b_j − peak into one operation without rounding the product.
    Then it is not 0 at the peak. A value that is used twice, as x here, is rounded first.
    """
    return x - jnp.where(x > peak, x, peak)


def drop_peak(e: Float[Array, "..."]) -> Float[Array, "..."]:
    """e_j = exp(x_j − peak), 0 where it is 1/2 or more. It is arithmetic, which XLA on a CPU fuses into a sum."""
    return e - e * jnp.floor(e + 0.5)


def exp_beside_peak(x: Float[Array, "..."], peak: Float[Array, "..."], e: Float[Array, "..."]) -> Float[Array, "..."]:
    """e_j = exp(x_j − peak), 0 at the peak, for rows with mass < 3/2.

    On one CPU it is a second exponential, which XLA fuses into the sum: of a maximum instead of the `where` of
    `minus_peak`. Long rows have a peak of their own, since XLA would share its broadcast, and keep it as an array.
    """
    if one_cpu.on_one_cpu(x):
        peak = barrier(peak) if one_cpu.has_static_shape(x) and x.shape[-1] >= 1024 else peak
        return drop_peak(jnp.exp(x - jnp.maximum(x, peak)))
    return jnp.where(x < peak, e, 0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_sum(classes: ClassAxis, logits: Float[Array, "..."], exists: Bool[Array, "..."] | None) -> LogSum:
    """(peak, rest) of each row; the class axis stays, at length 1."""
    if exists is None and (rows := one_cpu.rows_per_reduction(logits, classes.axis)):
        return one_cpu.reduce_in_steps(lambda x: log_sum(classes, x, None), rows, logits)
    x = existing_logits(logits, exists)
    peak = classes.max(x)
    e = jnp.exp(x - peak)
    mass = classes.sum_keepdims(e)

    def exact_rest() -> Array:
        # If mass < 3/2, a single class has e > 1/2. A larger mass loses next to nothing to the 1.
        return jnp.where(mass < 1.5, classes.sum_keepdims(exp_beside_peak(x, peak, e)), mass - 1)

    rest = one_cpu.cond_any(mass < 1.5, exact_rest, mass - 1, 0 if classes.names else x.size)
    return LogSum(peak, jnp.where(peak == jnp.inf, 0, rest))  # exp(inf − inf) is NaN, but ln Σ exp is +inf


@log_sum.defjvp
def _log_sum_jvp(classes, primals, tangents):
    # drest = Σ_j exp(x_j − peak) (dx_j − dpeak). The term of a dominant peak is 0 and left out: reverse mode would
    # split it into values that cancel. Over devices the peak is a constant, since what it adds to one part of a
    # derivative it takes off another.
    s, x = log_sum(classes, *primals), existing_logits(*primals)
    dx, e = tangents[0].astype(x.dtype), jnp.exp(x - s.peak)
    e = jnp.where(jnp.isnan(e), 0, e)  # NaN times the tangent 0 of an ignored row would be NaN
    if classes.names:
        return s, LogSum(jnp.zeros_like(s.peak), classes.sum_keepdims(e * dx))
    at_peak = (x == s.peak).astype(x.dtype)
    dpeak = classes.sum_keepdims(at_peak * dx) / jnp.maximum(classes.sum_keepdims(at_peak), 1)
    return s, LogSum(dpeak, classes.sum_keepdims(jnp.where(s.is_dominant(x), 0, e) * (dx - dpeak)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def below_peak(classes: ClassAxis, x: Float[Array, "..."], s: LogSum) -> Float[Array, "..."]:
    """x_j − peak"""
    return minus_peak(x, s.peak)


@below_peak.defjvp
def _below_peak_jvp(classes, primals, tangents):
    # 0 for a dominant peak, instead of dx_j − dx_j.
    (x, s), (dx, ds) = primals, tangents
    difference = dx - ds.peak
    return below_peak(classes, x, s), difference if classes.names else jnp.where(s.is_dominant(x), 0, difference)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def exp_below_peak(
    classes: ClassAxis, x: Float[Array, "..."], s: LogSum, dropped: Bool[Array, "*rows"] | None
) -> Float[Array, "..."]:
    """exp(x_j − peak), 0 in `dropped` rows, which may hold anything.

    It is the exponential of `log_sum` with the same operands, so XLA computes it once for both.
    """
    e = jnp.exp(x - s.peak)
    # A per-row 0 on purpose: XLA would hoist a constant out of the loop and materialise a full array.
    return e if dropped is None else jnp.where(dropped, jnp.zeros_like(s.rest), e)


@exp_below_peak.defjvp
def _exp_below_peak_jvp(classes, primals, tangents):
    (x, s, dropped), (dx, ds, _) = primals, tangents
    e, difference = exp_below_peak(classes, x, s, dropped), _below_peak_jvp(classes, (x, s), (dx, ds))[1]
    return e, e * (difference if dropped is None else jnp.where(dropped, 0, difference))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def mean_distance_to_peak(
    classes: ClassAxis, x: Float[Array, "..."], s: LogSum, dropped: Bool[Array, "*rows"] | None
) -> Float[Array, "*rows"]:
    """Σ_j q_j (peak − x_j), which is the entropy minus ln mass; 0 in `dropped` rows.

    It uses maxima instead of `where`, and a peak of its own. XLA on a CPU fuses all of it into the sum, and keeps no
    array of exponentials.
    """
    d = jnp.maximum(x - jnp.maximum(x, barrier(s.peak)), _UNDERFLOW)
    mean = -classes.sum_keepdims(jnp.exp(d) * d) / s.mass
    return mean if dropped is None else jnp.where(dropped, 0, mean)


_UNDERFLOW = -1000
"""exp of it is 0 in every dtype. It replaces −inf, since 0 · inf is NaN."""


@mean_distance_to_peak.defjvp
def _mean_distance_to_peak_jvp(classes, primals, tangents):
    x, s, dropped = primals

    def by_definition(x: Array, s: LogSum) -> Array:
        d, e = below_peak(classes, x, s), exp_below_peak(classes, x, s, dropped)
        return classes.sum_keepdims(-e * jnp.where(e == 0, 0, d)) / s.mass

    return mean_distance_to_peak(classes, x, s, dropped), jax.jvp(by_definition, (x, s), tangents[:2])[1]
