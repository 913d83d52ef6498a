"""Reading and updating the entries of a row at a few classes."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Integer

from softjax._xla import one_cpu


def take_classes(x: Float[Array, "..."], local: Integer[Array, "..."], axis: int) -> Array:
    """x at the classes `local` of each row, 0 for an index that is out of range.

    Equals: `jnp.where(in_range, jnp.take_along_axis(x, local, axis), 0)`.

    A gather reads one entry for each class, but XLA does not fuse it with the operations that make `x`. If the classes
    are sharded, XLA may gather them from all devices. `_use_gather` decides; the alternative is to compare each class
    with `local`, which fuses, and needs no communication.
    """
    if _use_gather(x, local, axis) or (one_cpu.on_one_gpu(x) and x.shape[axis] > 0):
        in_range = (local >= 0) & (local < x.shape[axis])
        entries = jnp.take_along_axis(x, jnp.clip(local, 0, x.shape[axis] - 1), axis, mode="clip")
        return jnp.where(in_range, entries, 0)
    return jnp.sum(jnp.where(_matches(x, local, axis), jnp.expand_dims(x, axis - 1), 0), axis)


def take_from_shared(x: Float[Array, "..."], local: Integer[Array, "..."], axis: int) -> Array:
    """`take_classes` of an array x that all rows share: each of its axes but the class axis has length 1.

    Equals: `take_classes(x, local, axis)`.

    A gather from a vector needs no pass over all classes for each row. Under Explicit axes JAX would ask for the
    sharding of its result.
    """
    if x.size == 0 or any(AxisType.Explicit in jax.typeof(a).sharding.mesh.axis_types for a in (x, local)):
        return take_classes(x, local, axis)
    in_range = (local >= 0) & (local < x.size)
    return jnp.where(in_range, x.reshape(-1)[jnp.clip(local, 0, x.size - 1)], 0)


def add_at_classes(
    x: Float[Array, "..."], local: Integer[Array, "..."], axis: int, values: Float[Array, "..."]
) -> Float[Array, "..."]:
    """x with `values` added at the classes `local` of each row. Repeated classes add up.
    An index out of range adds nothing.

    Equals: `x.at[row, local].add(values, mode="drop")` for each row.
    """
    if not _use_gather(x, local, axis):
        return x + jnp.sum(jnp.where(_matches(x, local, axis), jnp.expand_dims(values, axis), 0), axis - 1)
    out_of_range = x.shape[axis]  # JAX counts a negative index from the end
    classes_last = [jnp.moveaxis(a, axis, -1) for a in (x, jnp.where(local < 0, out_of_range, local), values)]
    rows = math.prod(classes_last[0].shape[:-1])
    flat = [a.reshape((rows, a.shape[-1])) for a in classes_last]
    added = jax.vmap(lambda row, ids, values: row.at[ids].add(values, mode="drop"))(*flat)
    return jnp.moveaxis(added.reshape(classes_last[0].shape), -1, axis)


_MAX_COMPARED = 8
"""The most classes of a row that are found by comparison. Each one compares all classes of the row."""


def _use_gather(x: Array, local: Array, axis: int) -> bool:
    """Whether to gather and scatter: on one CPU always, elsewhere for many classes, unless axes are Explicit."""
    many = local.shape[axis] > _MAX_COMPARED and AxisType.Explicit not in jax.typeof(x).sharding.mesh.axis_types
    return x.shape[axis] > 0 and (one_cpu.on_one_cpu(x) or many)


def _matches(x: Array, local: Array, axis: int) -> Bool[Array, "..."]:
    """Whether class j of x is the k-th of the `local` ones; k counts along a new axis before the class axis."""
    return jnp.expand_dims(class_iota(x, axis, local), axis - 1) == jnp.expand_dims(local, axis)


def class_iota(x: Array, axis: int, tied: Array) -> Integer[Array, "..."]:
    """0, 1, 2 … along the class axis, to be compared with `tied`. It broadcasts against x.

    Equals: `lax.broadcasted_iota(jnp.int32, x.shape, axis)`.

    XLA on a CPU hoists a constant out of the loop over the chunks, and would keep an integer array of the size of a
    chunk's logits. On one CPU the result is one vector instead. A barrier ties it to `tied`, which changes in the loop,
    so that it stays in the loop. Elsewhere the result has the sharding of x (Explicit axes).
    """
    if one_cpu.on_one_cpu(x):
        vector, _ = lax.optimization_barrier((jnp.arange(x.shape[axis], dtype=jnp.int32), tied))
        return jnp.expand_dims(vector, [i for i in range(x.ndim) if i != axis % x.ndim])
    sharding = jax.typeof(x).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim, out_sharding=sharding if explicit else None)
