"""Values that are not finite: replaced in ignored rows, and written without a NaN constant."""

import jax.numpy as jnp

from softjax._args.types import Array, Bool, Float


def to_float64(array: Array) -> Array:
    """A floating array in float64; any other array as it is."""
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def zero_ignored(array: Array, active: Bool[Array, "..."] | None) -> Array:
    """Replaces non-finite values in ignored rows by 0, since 0 · NaN and 0 · inf are NaN.

    Finite values stay, so that the loss keeps its derivative with respect to the weight of the row.
    """
    if active is None or not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return jnp.where(active | jnp.isfinite(array), array, 0)


def zero_nonfinite(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x`, 0 where it is not finite."""
    return jnp.where(jnp.isfinite(x), x, 0)


def nan_where(condition: Bool[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x`, NaN where the condition holds. A NaN constant would stop `jax.debug_nans` even where it is not selected."""
    infinite = jnp.where(condition, jnp.inf, jnp.zeros_like(x))
    return (x + infinite) - infinite


def scale_or_zero(coefficient: Array, value: Array) -> Array:
    """coefficient · value with 0 · inf = 0. At coefficient 0 the derivative with respect to it stays."""
    return coefficient * jnp.where((coefficient == 0) & jnp.isinf(value), 0, value)


def zero_infinite(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x`, 0 where it is infinite."""
    return jnp.where(jnp.isinf(x), 0, x)
