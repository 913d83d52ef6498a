"""Rows and entries that are not finite."""

import jax.numpy as jnp

from softjax._args.types import Array, Bool, Float


def to_float64(array: Array) -> Array:
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def zero_ignored(array: Array, counted: Bool[Array, "..."] | None) -> Array:
    """`array`, with 0 for what is not finite in a row that is not counted: 0 · NaN and 0 · inf would be NaN.

    What is finite there stays, so that a row keeps its derivative by its weight.
    """
    if counted is None or not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return jnp.where(counted | jnp.isfinite(array), array, 0)


def nan_where(condition: Bool[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x`, NaN where the condition holds. A NaN that is written down would stop `jax.debug_nans` everywhere."""
    endless = jnp.where(condition, jnp.inf, jnp.zeros_like(x))
    return (x + endless) - endless


def scale_or_zero(coefficient: Array, number: Array) -> Array:
    """The product, where 0 · inf is 0: at a coefficient of 0 the number takes no part, but moves as it changes."""
    return coefficient * jnp.where((coefficient == 0) & jnp.isinf(number), 0, number)


def zero_infinite(f: Float[Array, "..."]) -> Float[Array, "..."]:
    """`f`, 0 where it is endless."""
    return jnp.where(jnp.isinf(f), 0, f)
