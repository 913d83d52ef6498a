"""ln Σ_j exp x_j of each row, exact also where one logit stands far above the others.

A row is measured from its peak, and what stands beside the peak is kept apart from it: the mass Σ_j exp(x_j − peak) is
1 + rest, where the rest is that of all classes but one at the peak. In float32 1 + rest is 1 as soon as the rest is
below 6e-8, and everything that depends on it is lost; here ln mass is log1p(rest), and 1 − q of the peak rest / mass.
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
    """ln Σ_j exp x_j = peak + log1p(rest)"""

    peak: Float[Array, "*rows"]
    rest: Float[Array, "*rows"]
    """Σ_j exp(x_j − peak) over all classes but one at the peak"""

    @property
    def mass(self) -> Float[Array, "*rows"]:
        """Σ_j exp(x_j − peak)"""
        return 1 + self.rest

    @property
    def log_mass(self) -> Float[Array, "*rows"]:
        """ln Σ_j exp(x_j − peak), which keeps the digits that peak + ln mass rounds away."""
        return jnp.log1p(self.rest)

    def one_minus_q(self, e: Float[Array, "..."]) -> Float[Array, "..."]:
        """1 − q_j of e_j = exp(x_j − peak): rest / mass at the peak, exact where q_j rounds to 1."""
        # where the rest is below 1/2, only the peak has an e above it, 1 but for a rounding
        at_peak = (e >= 1) | ((e > 0.5) & (self.rest < 0.5))
        return jnp.where(at_peak, (self.rest - (e - lax.stop_gradient(e))) / self.mass, 1 - e / self.mass)

    def is_dominant(self, x: Float[Array, "..."]) -> Bool[Array, "..."]:
        """Whether x_j is the peak, no other class is, and q_j is above 1/2: there q_j − 1 would cancel."""
        return (x == self.peak) & (self.rest < 1)


def minus_peak(x: Float[Array, "..."], peak: Float[Array, "..."]) -> Float[Array, "..."]:
    """x_j − peak, exactly 0 for what is the peak.

    A compiler may compute a product and a difference as one operation, without the rounding in between: of logits
    a · b that are made within the same loop, a_j b_j − peak would not be 0. A number that is used twice it rounds.
    """
    return x - jnp.where(x > peak, x, peak)


def drop_peak(e: Float[Array, "..."]) -> Float[Array, "..."]:
    """e_j = exp(x_j − peak), and 0 for what is above 1/2: a product, which XLA on a CPU takes into a sum."""
    return e - e * jnp.floor(e + 0.5)


def exp_beside_peak(x: Float[Array, "..."], peak: Float[Array, "..."], e: Float[Array, "..."]) -> Float[Array, "..."]:
    """e_j = exp(x_j − peak) of rows whose mass is below 3/2, and 0 for what is the peak, which has no part in it."""
    if one_cpu.on_one_cpu(x):  # exponentials of its own, of a maximum for the selection of `gap`, go into the sum
        return drop_peak(jnp.exp(x - jnp.maximum(x, peak)))
    return jnp.where(x < peak, e, 0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_sum(classes: ClassAxis, logits: Float[Array, "..."], exists: Bool[Array, "..."] | None) -> LogSum:
    """Of each row, the class axis kept at length 1."""
    if exists is None and (rows := one_cpu.rows_per_reduction(logits, classes.axis)):
        return one_cpu.reduce_in_steps(lambda x: log_sum(classes, x, None), rows, logits)
    x = existing_logits(logits, exists)
    peak = classes.max(x)
    e = jnp.exp(x - peak)
    mass = classes.sum_keepdims(e)

    def exact() -> Array:
        # A mass below 3/2 has one class whose e is above 1/2; any other mass loses next to nothing to the 1.
        return jnp.where(mass < 1.5, classes.sum_keepdims(exp_beside_peak(x, peak, e)), mass - 1)

    rest = one_cpu.cond_any(mass < 1.5, exact, mass - 1, 0 if classes.names else x.size)
    return LogSum(peak, jnp.where(peak == jnp.inf, 0, rest))  # exp(inf − inf) is NaN, but ln Σ exp is +inf


@log_sum.defjvp
def _log_sum_jvp(classes, primals, tangents):
    # drest = Σ_j exp(x_j − peak) (dx_j − dpeak). The term of a peak that stands alone is 0 and left out, so that no
    # reverse mode takes it apart into numbers that cancel: all that moves stands beside the peak. Over devices the
    # peak is a constant: what it would add to one part of a slope, it would take off another.
    s, x = log_sum(classes, *primals), existing_logits(*primals)
    step, e = tangents[0].astype(x.dtype), jnp.exp(x - s.peak)
    e = jnp.where(jnp.isnan(e), 0, e)  # it would survive multiplication by the tangent 0 of a row that weighs nothing
    if classes.names:
        return s, LogSum(jnp.zeros_like(s.peak), classes.sum_keepdims(e * step))
    at_peak = (x == s.peak).astype(x.dtype)
    peak = classes.sum_keepdims(at_peak * step) / jnp.maximum(classes.sum_keepdims(at_peak), 1)
    return s, LogSum(peak, classes.sum_keepdims(jnp.where(s.is_dominant(x), 0, e) * (step - peak)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def below_peak(classes: ClassAxis, x: Float[Array, "..."], s: LogSum) -> Float[Array, "..."]:
    """x_j − peak"""
    return minus_peak(x, s.peak)


@below_peak.defjvp
def _below_peak_jvp(classes, primals, tangents):
    # 0 for a peak that stands alone, not dx_j − dx_j.
    (x, s), (dx, ds) = primals, tangents
    moved = dx - ds.peak
    return below_peak(classes, x, s), moved if classes.names else jnp.where(s.is_dominant(x), 0, moved)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def exp_below_peak(
    classes: ClassAxis, x: Float[Array, "..."], s: LogSum, dropped: Bool[Array, "*rows"] | None
) -> Float[Array, "..."]:
    """exp(x_j − peak), and 0 in the dropped rows, which may hold anything.

    The exponential is that of `log_sum`, on the same numbers: a program that takes both takes it once.
    """
    e = jnp.exp(x - s.peak)
    # by way of a number of each row: of a constant, XLA makes an array outside of the loop that it stands in
    return e if dropped is None else jnp.where(dropped, jnp.zeros_like(s.rest), e)


@exp_below_peak.defjvp
def _exp_below_peak_jvp(classes, primals, tangents):
    (x, s, dropped), (dx, ds, _) = primals, tangents
    e, moved = exp_below_peak(classes, x, s, dropped), _below_peak_jvp(classes, (x, s), (dx, ds))[1]
    return e, e * (moved if dropped is None else jnp.where(dropped, 0, moved))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def mean_below_peak(
    classes: ClassAxis, x: Float[Array, "..."], s: LogSum, dropped: Bool[Array, "*rows"] | None
) -> Float[Array, "*rows"]:
    """Σ_j q_j (peak − x_j), the entropy but for ln Σ_j exp(x_j − peak); 0 in the dropped rows.

    Maxima for selections, and a peak of its own: XLA on a CPU takes all of it into the sum, and keeps no exponentials.
    """
    d = jnp.maximum(x - jnp.maximum(x, barrier(s.peak)), _UNDERFLOW)
    number = -classes.sum_keepdims(jnp.exp(d) * d) / s.mass
    return number if dropped is None else jnp.where(dropped, 0, number)


_UNDERFLOW = -1000
"""What is so far below the peak has no part in any type: its exponential is 0, also beside the −inf that it may be."""


@mean_below_peak.defjvp
def _mean_below_peak_jvp(classes, primals, tangents):
    x, s, dropped = primals

    def plain(x: Array, s: LogSum) -> Array:
        d, e = below_peak(classes, x, s), exp_below_peak(classes, x, s, dropped)
        return classes.sum_keepdims(-e * jnp.where(e == 0, 0, d)) / s.mass

    return mean_below_peak(classes, x, s, dropped), jax.jvp(plain, (x, s), tangents[:2])[1]
