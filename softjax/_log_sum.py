"""Σ_j exp x_j of each row, kept as a pair that cannot overflow: the peak, and the mass Σ_j exp(x_j − peak)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax import _mesh as mesh
from softjax import _placement as placement
from softjax._types import Array, Bool, Float
from softjax._widen import bits, from_bits, wide, widen


class LogSum(NamedTuple):
    """ln Σ exp = peak + ln mass. The peak is a constant to every derivative: what it adds, the mass takes off."""

    peak: Float[Array, "*rows"]
    mass: Float[Array, "*rows"]

    @property
    def log_mass(self) -> Float[Array, "*rows"]:
        """ln Σ_j exp(x_j − peak), which keeps the digits that peak + ln mass rounds away."""
        return jnp.log(self.mass)

    @property
    def log(self) -> Float[Array, "*rows"]:
        """ln Σ_j exp x_j."""
        return self.peak + self.log_mass


def shifted_exp(x: Float[Array, "..."], peak: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(x_j − peak), of logits that are wide already."""
    return jnp.exp(x - origin(peak))


def origin(peak: Array) -> Array:
    """What a row is measured from: its peak, or 0 if the peak is −inf, so that a row of −inf has mass 0, not NaN."""
    return jnp.where(peak == -jnp.inf, 0, peak)


def existing(x: Array, where: Bool[Array, "..."] | None) -> Array:
    """The widened logits, −inf for the classes that `where` leaves out."""
    return widen(x) if where is None else jnp.where(where, widen(x), -jnp.inf)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def log_sum(x: Array, where: Bool[Array, "..."] | None, axis: int, names: mesh.Names, kept: bool) -> LogSum:
    """The pair of each row, in the wide type, the class axis kept at length 1.

    `kept` says that the pull-back will follow in the same program: then exp(x − peak) is written so that XLA can
    share it between the passes. The classes may be split over the mesh axes `names`.
    """
    block = None if names else _rows_in_cache(x, axis)
    if where is not None or block is None or (kept and x.dtype.itemsize > 2):
        return _of(existing(x, where), axis, names)
    return _of_blocks(x, block)


@log_sum.defjvp
def _log_sum_jvp(axis, names, kept, primals, tangents):
    # ∂mass/∂x_j = exp(x_j − peak), the peak held constant
    x, where = primals
    pair = log_sum(x, where, axis, names, kept)
    e = shifted_exp(existing(x, where), pair.peak)
    e = jnp.where(jnp.isnan(e), 0, e)  # a NaN would survive multiplication by the tangent 0 of a row of weight 0
    mass = mesh.total(jnp.sum(e * tangents[0].astype(e.dtype), axis, keepdims=True), names)
    return pair, LogSum(jnp.zeros_like(pair.peak), mass)


def _of(x: Float[Array, "..."], axis: int, names: mesh.Names = ()) -> LogSum:
    peak = mesh.most(jnp.max(x, axis, keepdims=True, initial=-jnp.inf), names)
    mass = mesh.total(jnp.sum(shifted_exp(x, peak), axis, keepdims=True), names)
    # exp(inf − inf) is NaN, but a row with a +inf has peak +inf and ln Σ exp = +inf: any finite mass says so.
    return LogSum(peak, jnp.where(peak == jnp.inf, 1, mass))


_BLOCK = 2**20  # bytes of logits taken at a time; widened they stay in cache


def _rows_in_cache(x: Array, axis: int) -> int | None:
    """How many rows to take at a time, or None to take all at once.

    XLA on a CPU makes a float32 copy of a 16-bit array as a whole before it reduces it, and its reduction of a row of
    more than 32768 classes is five times slower. Blocks of a few rows have neither fault; `examples/benchmark.py`
    measures what is gained.
    """
    fixed = all(isinstance(length, int) for length in x.shape)  # jax.export may leave a length open
    if not (fixed and axis == -1 and placement.on_one_cpu(x)):
        return None
    rows = max(1, _BLOCK // max(x.shape[-1] * x.dtype.itemsize, 1))
    long = x.dtype.itemsize <= 2 or x.shape[-1] > 32768
    return rows if long and x.size >= max(4 * rows * x.shape[-1], 1) else None


def _of_blocks(x: Array, rows: int) -> LogSum:
    flat = x.reshape(-1, x.shape[-1])
    samples, bfloat16 = flat.shape[0], x.dtype == jnp.bfloat16
    flat = bits(flat) if bfloat16 else flat

    def step(pair: LogSum, start: Array) -> tuple[LogSum, None]:
        start = jnp.minimum(start, samples - rows)  # the last block is shifted back over rows already done
        # The barrier keeps the conversion of the whole array from being moved out of the loop.
        block = lax.optimization_barrier(lax.dynamic_slice_in_dim(flat, start, rows))
        part = _of(from_bits(block) if bfloat16 else widen(block), -1)
        return LogSum(*(lax.dynamic_update_slice_in_dim(a, b, start, 0) for a, b in zip(pair, part, strict=True))), None

    empty = jnp.zeros((samples, 1), wide(x))
    pair, _ = lax.scan(step, LogSum(empty, empty), jnp.arange(0, samples, rows))
    return LogSum(*(a.reshape((*x.shape[:-1], 1)) for a in pair))
