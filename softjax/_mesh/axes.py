"""The class axis, sums and maxima over it, and the mesh axes that shard it.

A mesh axis is bound inside a `shard_map`: the caller's, or the one that `Split.shard_map` makes. A `vmap` with an
`axis_name` binds an axis, too. In every function here the names `()` mean that nothing is sharded.

An array is varying over a mesh axis if it may differ between the devices of that axis, and invariant if it may not.
With `shard_map(check_vma=True)`, the default, JAX tracks this in the type of each array ("vma"). It does not under
`vmap` or `check_vma=False`.
"""

import math
from collections.abc import Hashable, Iterable, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax._args.types import Array, Bool, Integer, Length, Shape
from softjax._xla import one_cpu
from softjax._xla.barrier import varying_axes
from softjax._xla.gather import class_iota

AxisNames = tuple[Hashable, ...]


NO_CLASS = 2**31 - 1
"""Larger than every class id: the id that stands for "no class" in a minimum, and the rank of a masked label."""


@jax.tree_util.register_static
class ClassAxis(NamedTuple):
    """The class axis of an array, and the mesh axes that shard it. Its reductions are over all devices of these."""

    axis: int
    """The index of the class axis, counted from the end: −1 for the last."""
    names: AxisNames = ()
    """The mesh axes that shard the classes."""

    def sum_keepdims(self, x: Array) -> Array:
        """Σ_j x_j, with the class axis kept at length 1. For booleans it is an integer count."""
        local_sum = one_cpu.count_true(x, self.axis) if x.dtype == jnp.bool_ else jnp.sum(x, self.axis, keepdims=True)
        return psum(local_sum, self.names)

    def squeeze(self, x: Array) -> Array:
        """Row values without their class axis, which has length 1."""
        return jnp.squeeze(x, self.axis)

    def keepdims_shape(self, x: Array) -> Shape:
        """The shape of row values of `x`, with the class axis kept at length 1."""
        shape = list(x.shape)
        shape[self.axis] = 1
        return tuple(shape)

    def sum(self, x: Array) -> Array:
        """Σ_j x_j, without the class axis.

        XLA on a CPU (jaxlib 0.10.2) takes four times as long for the logarithm of an array whose last axis has length
        1. So take logarithms of this sum rather than of `sum_keepdims`.
        """
        return self.squeeze(self.sum_keepdims(x))

    def max(self, x: Array) -> Array:
        """max_j x_j, keepdims. If the classes are sharded, it is a constant to every derivative."""
        x = jnp.max(x, self.axis, keepdims=True, initial=-jnp.inf)
        return pmax(lax.stop_gradient(x), self.names) if self.names else x

    def min(self, ids: Integer[Array, "..."]) -> Array:
        """The smallest of the class ids, keepdims; `NO_CLASS` if there are none."""
        ids = jnp.min(ids, self.axis, keepdims=True, initial=NO_CLASS)
        return lax.pmin(ids, self.names) if self.names else ids

    def any(self, condition: Bool[Array, "..."]) -> Array:
        """Whether the condition holds for any class, keepdims."""
        found = jnp.any(condition, self.axis, keepdims=True)
        return psum(found.astype(jnp.int32), self.names) > 0 if self.names else found

    def exists_or_all(self, exists: Bool[Array, "..."]) -> Array:
        """The mask of classes, all True in a row whose classes are all masked.

        Such a row is ignored. With all its classes its values are finite, so that 0 times a value is 0.
        """
        return exists | ~self.any(exists)

    def num_classes(self, x: Array) -> Length:
        """The number of classes on all devices; `x` is the local shard."""
        return x.shape[self.axis] * axis_size(self.names)

    def first_id(self, x: Array) -> Array | None:
        """The id of the first class on this device; None for 0, if the classes are not sharded."""
        return lax.axis_index(self.names) * x.shape[self.axis] if self.names else None

    def ids(self, x: Array, tied: Array, first: Array | None = None) -> Integer[Array, "..."]:
        """The global id of each class of `x` on this device.

        Args:
            tied: the row values with which the ids will be compared; see `class_iota`.
            first: the id of the first class on this device; None to compute it.
        """
        ids, first = class_iota(x, self.axis, tied), self.first_id(x) if first is None else first
        return ids if first is None else ids + first

    def first_equal(
        self, x: Array, row_value: Array, exists: Array | None = None, first: Array | None = None
    ) -> Integer[Array, "*rows"]:
        """The id of the first unmasked class with x_j = row_value, −1 if there is none; `first` is as in `ids`.

        Of equal zeros, 0 comes before −0, as in `jax.lax.top_k`.
        """
        found = x == row_value if exists is None else (x == row_value) & exists
        ids = negative_zeros_last(self.ids(x, row_value, first), jnp.signbit(x))
        found_first = self.min(jnp.where(found, ids, NO_CLASS)) & NO_CLASS
        return jnp.where(found_first == NO_CLASS, -1, found_first)

    def psum_cotangents(self, cotangents: Any) -> Any:
        """The complete cotangents of row values, which are equal on all devices that shard the classes."""
        return psum_cotangents(cotangents, self.names)

    def divide_cotangent(self, cotangent: Array) -> Array:
        """This device's part of the complete cotangent of a value that is equal on all devices.

        Where JAX does not track varying axes, it adds the parts of all devices: each is divided by the axis size. Where
        it does, an invariant value has one cotangent, which stays as it is.
        """
        return cotangent / axis_size(tuple(name for name in self.names if name not in _tracked_names(self.names)))


def negative_zeros_last(ids: Integer[Array, "..."], negative: Bool[Array, "..."]) -> Integer[Array, "..."]:
    """Integers in the order of the ids, but with the ids of −0 after those of 0. `& NO_CLASS` gives the ids again.

    All other equal logits have the same sign, so only zeros change their order. The highest bit, set where the sign is
    not, makes an id negative.
    """
    # Not a `where` of ids: under Explicit axes it would refuse labels that are not sharded as the logits are.
    return ids | jnp.where(negative, 0, jnp.iinfo(jnp.int32).min)


def existing_logits(x: Array, exists: Bool[Array, "..."] | None) -> Array:
    """The logits in the dtype in which they are accumulated, −inf for masked classes."""
    return one_cpu.widen(x) if exists is None else jnp.where(exists, one_cpu.widen(x), -jnp.inf)


def psum(x: Any, names: AxisNames) -> Any:
    """The sum of a pytree over the devices of these axes."""
    return lax.psum(x, names) if names else x


def pmax(x: Array, names: AxisNames) -> Array:
    """`lax.pmax`, which is NaN where any device has NaN.

    On CPU devices (jaxlib 0.10.2) the collective drops NaN. So it compares integers in the order of the floating
    numbers, in which NaN is the largest.
    """
    return _from_ordered_integers(lax.pmax(_ordered_integers(x), names), x.dtype)


def _ordered_integers(x: Array) -> Array:
    """Integers with the order −inf < … < −0 < 0 < … < inf < NaN."""
    bits = lax.bitcast_convert_type(jnp.where(jnp.isnan(x), jnp.abs(x), x), jnp.dtype(f"int{8 * x.dtype.itemsize}"))
    return _flip_negative(bits)


def _from_ordered_integers(integers: Array, dtype: Any) -> Array:
    return lax.bitcast_convert_type(_flip_negative(integers), dtype)


def _flip_negative(bits: Array) -> Array:
    """Negative numbers with all bits flipped but the sign: their order reversed. Its own inverse."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def axis_size(names: AxisNames) -> int:
    """The number of devices along these axes together."""
    return math.prod(lax.axis_size(name) for name in names)


def manual_names(names: AxisNames) -> AxisNames:
    """The axes that a `shard_map` binds. The others are bound by a `vmap`."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in names if name in manual)


def vmap_names(names: AxisNames) -> AxisNames:
    """The axes that a `vmap` binds. A sum over them must stand outside of a custom derivative."""
    return tuple(name for name in names if name not in manual_names(names))


def psum_cotangents(cotangents: Any, names: AxisNames) -> Any:
    """The complete cotangents of values that are equal on all devices along these axes.

    - Where JAX tracks varying axes, an invariant cotangent is complete already. A varying one is this device's part.
    - Elsewhere each device has a part of the cotangent, because the transpose of a `psum` there is a `psum`.

    The parts are added over the devices.
    """
    tracked = _tracked_names(names)

    def complete(cotangent: Array) -> Array:
        if cotangent.dtype == jax.dtypes.float0:
            return cotangent
        varies_over = varying_axes(cotangent)
        return psum(cotangent, tuple(name for name in names if name not in tracked or name in varies_over))

    return jax.tree.map(complete, cotangents)


def with_same_varying_axes(names: AxisNames, sharded: Any, shared: Any = ()) -> tuple[Any, Any]:
    """Two pytrees of arrays, cast so that all arrays of a pytree vary over the same mesh axes.

    Call it on the inputs of a custom derivative, outside of it. Then JAX sums the cotangent of each array that was
    invariant, as the transpose of the cast.

    Args:
        names: the mesh axes that shard the classes.
        sharded: arrays with a class axis. They vary over `names`, too.
        shared: arrays of the rows or for all rows, without a class axis. They do not vary over `names`, unless one of
            them does already.
    """
    varying_shared = _union_of_varying(shared)
    varying = _union_of_varying(sharded) | varying_shared
    shared_axes, sharded_axes = (varying - set(names)) | varying_shared, varying | _tracked_names(names)
    return jax.tree.map(lambda a: cast_to_varying(sharded_axes, a), sharded), jax.tree.map(
        lambda a: cast_to_varying(shared_axes, a), shared
    )


def varying_like(array: Array, *others: Any) -> Array:
    """`array`, cast to vary over every mesh axis that one of the others varies over."""
    return cast_to_varying(_union_of_varying(others), array)


def invariant_names(array: Array, names: AxisNames) -> AxisNames:
    """Those of the mesh axes, of more than one device each, along which the array is invariant by its type."""
    return tuple(
        name for name in names if name in _tracked_names(names) - varying_axes(array) and lax.axis_size(name) > 1
    )


def _tracked_names(names: Iterable[Hashable]) -> set[Hashable]:
    """The bound axes over which JAX tracks varying arrays: not under `vmap`, nor with `check_vma=False`."""
    return {name for name in names if name in varying_axes(lax.axis_index(name))}


def _union_of_varying(arrays: Any) -> frozenset[Hashable]:
    """The mesh axes over which at least one array of the pytree varies."""
    return frozenset().union(*(varying_axes(array) for array in jax.tree.leaves(arrays)))


def cast_to_varying(axes: Set[Hashable], array: Array) -> Array:
    """`array`, cast to vary over these mesh axes in addition to its own."""
    missing = tuple(axes - varying_axes(array))
    return lax.pcast(array, missing, to="varying") if missing else array
