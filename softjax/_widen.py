"""The type that numbers are accumulated in, and the way there."""

from typing import Any

import jax
import jax.numpy as jnp

from softjax import _placement as placement
from softjax._types import Array


def wide(*arrays: Array) -> Any:
    """float64 if any of the arrays is, else float32."""
    return jnp.float64 if any(a.dtype == jnp.float64 for a in arrays) else jnp.float32


@jax.custom_jvp
def widen(x: Array) -> Array:
    """`x` in the type that it is accumulated in, exactly.

    bfloat16 is the upper half of float32. On a CPU without bfloat16 instructions XLA widens a bfloat16 array as a
    whole before it computes anything with it, also one that a loop reads piece by piece; bits shifted into place by
    integer arithmetic stay within the loop or fusion that needs them.
    """
    if x.dtype == jnp.bfloat16 and placement.on_one_cpu(x):
        return from_bits(bits(x))
    return x.astype(wide(x))


@widen.defjvp
def _widen_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return widen(*primals), tangents[0].astype(wide(*primals))


def bits(x: Array) -> Array:
    """The bits of a bfloat16 array."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def from_bits(x: Array) -> Array:
    """The float32 numbers whose upper halves are given."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)
