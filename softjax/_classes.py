"""The class axis: where it lies, and sums and maxima over it and over the mesh axes that share it.

The mesh axes are bound by a `shard_map`: the caller's, or that of `_split`. `()` means that nothing is split.
"""

import math
from collections.abc import Hashable, Iterable, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax import _cpu as cpu
from softjax._types import Array, Bool, Integer, Length, Shape

Names = tuple[Hashable, ...]
NOWHERE = 2**31 - 1
"""Stands for a class that is none of a row."""


class Classes(NamedTuple):
    """The class axis, counted from the end, and the mesh axes over which the classes are split."""

    axis: int
    names: Names = ()

    def total(self, x: Array) -> Array:
        """Σ_j, the class axis kept at length 1."""
        here = cpu.count(x, self.axis) if x.dtype == jnp.bool_ else jnp.sum(x, self.axis, keepdims=True)
        return total(here, self.names)

    def number(self, x: Array) -> Array:
        """A number of each row, without the class axis."""
        return jnp.squeeze(x, self.axis)

    def number_shape(self, x: Array) -> Shape:
        """Of a number of each row, with the class axis."""
        shape = list(x.shape)
        shape[self.axis] = 1
        return tuple(shape)

    def sum(self, x: Array) -> Array:
        """Σ_j, without the class axis. A CPU takes four times as long for a logarithm of what ends in an axis of 1."""
        return self.number(self.total(x))

    def most(self, x: Array) -> Array:
        """max_j; over devices a constant to every derivative."""
        x = jnp.max(x, self.axis, keepdims=True, initial=-jnp.inf)
        return lax.pmax(lax.stop_gradient(x), self.names) if self.names else x

    def least(self, ids: Integer[Array, "..."]) -> Array:
        """min_j of class ids."""
        ids = jnp.min(ids, self.axis, keepdims=True, initial=NOWHERE)
        return lax.pmin(ids, self.names) if self.names else ids

    def any(self, condition: Bool[Array, "..."]) -> Array:
        found = jnp.any(condition, self.axis, keepdims=True)
        return total(found.astype(jnp.int32), self.names) > 0 if self.names else found

    def nonempty(self, exists: Bool[Array, "..."]) -> Array:
        """The classes that exist; all in a row that has none, which is not counted: its numbers are numbers then."""
        return exists | ~self.any(exists)

    def count(self, x: Array) -> Length:
        """How many classes there are, on all devices."""
        return x.shape[self.axis] * size(self.names)

    def first(self, x: Array) -> Array | None:
        """The id of the first class that this device holds, None for 0."""
        return lax.axis_index(self.names) * x.shape[self.axis] if self.names else None

    def ids(self, x: Array, beside: Array, first: Array | None = None) -> Integer[Array, "..."]:
        """The id of each class, to be used beside these numbers of the rows; `first` is that of the first one here."""
        ids, first = cpu.class_ids(x, self.axis, beside), self.first(x) if first is None else first
        return ids if first is None else ids + first

    def first_equal(
        self, x: Array, most: Array, exists: Array | None = None, first: Array | None = None
    ) -> Integer[Array, "*rows"]:
        """The first of the classes that exist whose `x` is `most`, −1 if there is none."""
        found = x == most if exists is None else (x == most) & exists
        found_first = self.least(jnp.where(found, self.ids(x, most, first), NOWHERE))
        return jnp.where(found_first == NOWHERE, -1, found_first)

    def whole(self, cotangents: Any) -> Any:
        """The cotangents of numbers that are the same on all devices that share the classes."""
        return whole(cotangents, self.names)

    def share(self, cotangent: Array) -> Array:
        """A device's share of what `whole` gives back."""
        return cotangent / size(tuple(name for name in self.names if name not in _typed(self.names)))


def present(x: Array, exists: Bool[Array, "..."] | None) -> Array:
    """The logits in the type that they are accumulated in, −inf for the classes that do not exist."""
    return cpu.widen(x) if exists is None else jnp.where(exists, cpu.widen(x), -jnp.inf)


def total(x: Any, names: Names) -> Any:
    """The sum over the devices."""
    return lax.psum(x, names) if names else x


def size(names: Names) -> int:
    """How many devices share."""
    return math.prod(lax.axis_size(name) for name in names)


def bound(names: Names) -> Names:
    """Those that a `shard_map` binds, not a `vmap`, whose sums must stand outside of custom derivatives."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in names if name in manual)


def unbound(names: Names) -> Names:
    """The others."""
    return tuple(name for name in names if name not in bound(names))


def whole(cotangents: Any, names: Names) -> Any:
    """The cotangents of numbers that are the same on all devices.

    Where JAX types what varies over the devices (`check_vma=True`), a number that does not has one cotangent. Elsewhere
    each device has a share of it, as the transpose of `psum` has it.
    """
    typed = _typed(names)

    def one(cotangent: Array) -> Array:
        if cotangent.dtype == jax.dtypes.float0:
            return cotangent
        varies = varying(cotangent)
        return total(cotangent, tuple(name for name in names if name not in typed or name in varies))

    return jax.tree.map(one, cotangents)


def aligned(names: Names, split: Any, shared: Any = ()) -> tuple[Any, Any]:
    """Two pytrees of arrays, varying over the same mesh axes inside a `shard_map` that types what varies.

    Those that are `split` over the classes vary over `names`, too; what is `shared` by all classes does not, unless it
    comes so. Done outside the custom derivative, so that it is JAX that sums the cotangent of what was the same on each
    device.
    """
    common = _union(shared)
    every = _union(split) | common
    rows, columns = (every - set(names)) | common, every | _typed(names)
    return jax.tree.map(lambda a: over(columns, a), split), jax.tree.map(lambda a: over(rows, a), shared)


def like(array: Array, *others: Any) -> Array:
    """`array`, varying over every mesh axis that one of the others varies over."""
    return over(_union(others), array)


def varying(array: Array) -> frozenset[Hashable]:
    """The mesh axes over which the type of the array says that it varies."""
    kind: Any = jax.typeof(array)
    return frozenset(kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying)


def same_everywhere(array: Array, names: Names) -> Names:
    """Those of the bound axes of several devices on all of which the type of the array says that it is the same."""
    return tuple(name for name in names if name in _typed(names) - varying(array) and lax.axis_size(name) > 1)


def _typed(names: Iterable[Hashable]) -> set[Hashable]:
    """Those of the bound axes over which JAX types what varies, which it does not under `vmap` or `check_vma=False`."""
    return {name for name in names if name in varying(lax.axis_index(name))}


def _union(arrays: Any) -> frozenset[Hashable]:
    return frozenset().union(*(varying(array) for array in jax.tree.leaves(arrays)))


def over(axes: Set[Hashable], array: Array) -> Array:
    """`array`, varying over these mesh axes, too."""
    missing = tuple(axes - varying(array))
    return lax.pcast(array, missing, to="varying") if missing else array


def apart(tree: Any) -> Any:
    """The arrays, as numbers of their own to XLA: what two passes over a block make of them, each makes for itself, and
    no array of the block is kept from the one to the other.

    In one barrier, for XLA takes equal ones for the same; but those that vary over the same mesh axes, for a barrier
    gives all that it holds the type of what varies most.
    """
    leaves, structure = jax.tree.flatten(tree)
    alike: dict[frozenset[Hashable], dict[int, Array]] = {}
    for i, leaf in enumerate(leaves):
        alike.setdefault(varying(leaf), {})[i] = leaf
    barred = {i: leaf for each in alike.values() for i, leaf in _barrier(each).items()}
    return jax.tree.unflatten(structure, [barred[i] for i in range(len(leaves))])


@jax.custom_jvp
def _barrier(arrays: dict[int, Array]) -> dict[int, Array]:
    return lax.optimization_barrier(arrays)


@_barrier.defjvp
def _barrier_jvp(primals, tangents):
    # JAX 0.12 cannot transpose a barrier some of whose operands are constants of the map
    return _barrier(*primals), tangents[0]


def numbers_apart(tree: Any, size: int) -> Any:
    """The tree, its arrays of less than `size` apart."""
    leaves, structure = jax.tree.flatten(tree)
    small = apart({i: leaf for i, leaf in enumerate(leaves) if leaf.size < size})
    return jax.tree.unflatten(structure, [small.get(i, leaf) for i, leaf in enumerate(leaves)])


def apart_elsewhere(tree: Any, x: Array) -> Any:
    """Apart, but not on one CPU: there exponentials of `x` are what costs, and it is in cache.

    An accelerator would write those of all of `x` to memory and read them again.
    """
    return tree if cpu.on_one_cpu(x) else apart(tree)
