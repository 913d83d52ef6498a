"""Entries of a row at a few classes: read, and added to."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Integer

from softjax._xla import one_cpu


def take_classes(x: Float[Array, "..."], local: Integer[Array, "..."], axis: int) -> Array:
    """x at the classes `local` of each row, 0 where one lies elsewhere. A gather reads one entry of a row for each."""
    if _use_gather(x, local, axis) or (one_cpu.on_one_gpu(x) and x.shape[axis] > 0):
        inside = (local >= 0) & (local < x.shape[axis])
        entry = jnp.take_along_axis(x, jnp.clip(local, 0, x.shape[axis] - 1), axis, mode="clip")
        return jnp.where(inside, entry, 0)
    return jnp.sum(jnp.where(_matches(x, local, axis), jnp.expand_dims(x, axis - 1), 0), axis)


def add_at_classes(
    x: Float[Array, "..."], local: Integer[Array, "..."], axis: int, number: Float[Array, "..."]
) -> Float[Array, "..."]:
    """x, with `number` added at the classes `local` of each row, that of equal ones together."""
    if not _use_gather(x, local, axis):
        return x + jnp.sum(jnp.where(_matches(x, local, axis), jnp.expand_dims(number, axis), 0), axis - 1)
    outside = x.shape[axis]  # where a negative index would count from the end
    ordered = [jnp.moveaxis(a, axis, -1) for a in (x, jnp.where(local < 0, outside, local), number)]
    rows = math.prod(ordered[0].shape[:-1])
    flat = [a.reshape((rows, a.shape[-1])) for a in ordered]
    added = jax.vmap(lambda row, ids, numbers: row.at[ids].add(numbers, mode="drop"))(*flat)
    return jnp.moveaxis(added.reshape(ordered[0].shape), -1, axis)


_MAX_COMPARED = 8


def _use_gather(x: Array, local: Array, axis: int) -> bool:
    """Whether to gather and scatter. Elsewhere classes are compared: it fuses, and stays local where they are split."""
    many = local.shape[axis] > _MAX_COMPARED and AxisType.Explicit not in jax.typeof(x).sharding.mesh.axis_types
    return x.shape[axis] > 0 and (one_cpu.on_one_cpu(x) or many)


def _matches(x: Array, local: Array, axis: int) -> Bool[Array, "..."]:
    """Which class is which of the `local` ones, these along an axis before that of the classes."""
    return jnp.expand_dims(class_iota(x, axis, local), axis - 1) == jnp.expand_dims(local, axis)


def class_iota(x: Array, axis: int, tied: Array) -> Integer[Array, "..."]:
    """0, 1, 2 … along `axis`, to be used beside `tied`; under Explicit axes in the sharding of `x`.

    XLA takes what is constant out of the loop that it stands in, and would keep an array of the size of the logits for
    it. So on one CPU it is a vector, which a barrier ties to `tied`.
    """
    if one_cpu.on_one_cpu(x):
        vector, _ = lax.optimization_barrier((jnp.arange(x.shape[axis], dtype=jnp.int32), tied))
        return jnp.expand_dims(vector, [i for i in range(x.ndim) if i != axis % x.ndim])
    sharding = jax.typeof(x).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim, out_sharding=sharding if explicit else None)
