"""The class axis: where it lies, and sums and maxima over it and over the mesh axes that share it.

The mesh axes are bound by a `shard_map`: the caller's, or that of `_split`. `()` means that nothing is split.
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
"""Stands for a class that is none of a row."""


@jax.tree_util.register_static
class ClassAxis(NamedTuple):
    """The class axis, counted from the end, and the mesh axes over which the classes are split."""

    axis: int
    names: AxisNames = ()

    def sum_keepdims(self, x: Array) -> Array:
        """Σ_j, the class axis kept at length 1."""
        here = one_cpu.count_true(x, self.axis) if x.dtype == jnp.bool_ else jnp.sum(x, self.axis, keepdims=True)
        return psum(here, self.names)

    def squeeze(self, x: Array) -> Array:
        """A number of each row, without the class axis."""
        return jnp.squeeze(x, self.axis)

    def keepdims_shape(self, x: Array) -> Shape:
        """Of a number of each row, with the class axis."""
        shape = list(x.shape)
        shape[self.axis] = 1
        return tuple(shape)

    def sum(self, x: Array) -> Array:
        """Σ_j, without the class axis. A CPU takes four times as long for a logarithm of what ends in an axis of 1."""
        return self.squeeze(self.sum_keepdims(x))

    def max(self, x: Array) -> Array:
        """max_j; over devices a constant to every derivative."""
        x = jnp.max(x, self.axis, keepdims=True, initial=-jnp.inf)
        return lax.pmax(lax.stop_gradient(x), self.names) if self.names else x

    def min(self, ids: Integer[Array, "..."]) -> Array:
        """min_j of class ids."""
        ids = jnp.min(ids, self.axis, keepdims=True, initial=NO_CLASS)
        return lax.pmin(ids, self.names) if self.names else ids

    def any(self, condition: Bool[Array, "..."]) -> Array:
        found = jnp.any(condition, self.axis, keepdims=True)
        return psum(found.astype(jnp.int32), self.names) > 0 if self.names else found

    def exists_or_all(self, exists: Bool[Array, "..."]) -> Array:
        """The classes that exist; all in a row that has none, which is not counted: its numbers are numbers then."""
        return exists | ~self.any(exists)

    def num_classes(self, x: Array) -> Length:
        """How many classes there are, on all devices."""
        return x.shape[self.axis] * axis_size(self.names)

    def first_id(self, x: Array) -> Array | None:
        """The id of the first class that this device holds, None for 0."""
        return lax.axis_index(self.names) * x.shape[self.axis] if self.names else None

    def ids(self, x: Array, beside: Array, first: Array | None = None) -> Integer[Array, "..."]:
        """The id of each class, to be used beside these numbers of the rows; `first` is that of the first one here."""
        ids, first = class_iota(x, self.axis, beside), self.first_id(x) if first is None else first
        return ids if first is None else ids + first

    def first_equal(
        self, x: Array, most: Array, exists: Array | None = None, first: Array | None = None
    ) -> Integer[Array, "*rows"]:
        """The first of the classes that exist whose `x` is `most`, −1 if there is none."""
        found = x == most if exists is None else (x == most) & exists
        found_first = self.min(jnp.where(found, self.ids(x, most, first), NO_CLASS))
        return jnp.where(found_first == NO_CLASS, -1, found_first)

    def psum_cotangents(self, cotangents: Any) -> Any:
        """The cotangents of numbers that are the same on all devices that share the classes."""
        return psum_cotangents(cotangents, self.names)

    def divide_cotangent(self, cotangent: Array) -> Array:
        """A device's share of what `whole` gives back."""
        return cotangent / axis_size(tuple(name for name in self.names if name not in _typed_names(self.names)))


def existing_logits(x: Array, exists: Bool[Array, "..."] | None) -> Array:
    """The logits in the type that they are accumulated in, −inf for the classes that do not exist."""
    return one_cpu.widen(x) if exists is None else jnp.where(exists, one_cpu.widen(x), -jnp.inf)


def psum(x: Any, names: AxisNames) -> Any:
    """The sum over the devices."""
    return lax.psum(x, names) if names else x


def axis_size(names: AxisNames) -> int:
    """How many devices share."""
    return math.prod(lax.axis_size(name) for name in names)


def manual_names(names: AxisNames) -> AxisNames:
    """Those that a `shard_map` binds, not a `vmap`, whose sums must stand outside of custom derivatives."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in names if name in manual)


def vmap_names(names: AxisNames) -> AxisNames:
    """The others."""
    return tuple(name for name in names if name not in manual_names(names))


def psum_cotangents(cotangents: Any, names: AxisNames) -> Any:
    """The cotangents of numbers that are the same on all devices.

    Where JAX types what varies over the devices (`check_vma=True`), a number that does not has one cotangent. Elsewhere
    each device has a share of it, as the transpose of `psum` has it.
    """
    typed = _typed_names(names)

    def one(cotangent: Array) -> Array:
        if cotangent.dtype == jax.dtypes.float0:
            return cotangent
        varies = varying_axes(cotangent)
        return psum(cotangent, tuple(name for name in names if name not in typed or name in varies))

    return jax.tree.map(one, cotangents)


def with_same_varying_axes(names: AxisNames, split: Any, shared: Any = ()) -> tuple[Any, Any]:
    """Two pytrees of arrays, varying over the same mesh axes inside a `shard_map` that types what varies.

    Those that are `split` over the classes vary over `names`, too; what is `shared` by all classes does not, unless it
    comes so. Done outside the custom derivative, so that it is JAX that sums the cotangent of what was the same on each
    device.
    """
    common = _union_of_varying(shared)
    every = _union_of_varying(split) | common
    rows, columns = (every - set(names)) | common, every | _typed_names(names)
    return jax.tree.map(lambda a: cast_to_varying(columns, a), split), jax.tree.map(
        lambda a: cast_to_varying(rows, a), shared
    )


def varying_like(array: Array, *others: Any) -> Array:
    """`array`, varying over every mesh axis that one of the others varies over."""
    return cast_to_varying(_union_of_varying(others), array)


def invariant_names(array: Array, names: AxisNames) -> AxisNames:
    """Those of the bound axes of several devices on all of which the type of the array says that it is the same."""
    return tuple(
        name for name in names if name in _typed_names(names) - varying_axes(array) and lax.axis_size(name) > 1
    )


def _typed_names(names: Iterable[Hashable]) -> set[Hashable]:
    """Those of the bound axes over which JAX types what varies, which it does not under `vmap` or `check_vma=False`."""
    return {name for name in names if name in varying_axes(lax.axis_index(name))}


def _union_of_varying(arrays: Any) -> frozenset[Hashable]:
    return frozenset().union(*(varying_axes(array) for array in jax.tree.leaves(arrays)))


def cast_to_varying(axes: Set[Hashable], array: Array) -> Array:
    """`array`, varying over these mesh axes, too."""
    missing = tuple(axes - varying_axes(array))
    return lax.pcast(array, missing, to="varying") if missing else array
