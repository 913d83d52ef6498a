"""Optimization barriers, which keep XLA from fusing or sharing what stands on their two sides."""

from collections.abc import Hashable
from typing import Any

import jax
from jax import lax

from softjax._args.types import Array
from softjax._xla import one_cpu


def varying_axes(array: Array) -> frozenset[Hashable]:
    """The mesh axes over which the type of the array says that it varies."""
    kind: Any = jax.typeof(array)
    return frozenset(kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying)


def barrier(tree: Any) -> Any:
    """The arrays, as numbers of their own to XLA: what two passes over a block make of them, each makes for itself, and
    no array of the block is kept from the one to the other.

    In one barrier, for XLA takes equal ones for the same; but those that vary over the same mesh axes, for a barrier
    gives all that it holds the type of what varies most.
    """
    leaves, structure = jax.tree.flatten(tree)
    alike: dict[frozenset[Hashable], dict[int, Array]] = {}
    for i, leaf in enumerate(leaves):
        alike.setdefault(varying_axes(leaf), {})[i] = leaf
    barred = {i: leaf for each in alike.values() for i, leaf in _barrier_by_index(each).items()}
    return jax.tree.unflatten(structure, [barred[i] for i in range(len(leaves))])


@jax.custom_jvp
def _barrier_by_index(arrays: dict[int, Array]) -> dict[int, Array]:
    return lax.optimization_barrier(arrays)


@_barrier_by_index.defjvp
def _barrier_jvp(primals, tangents):
    # JAX 0.12 cannot transpose a barrier some of whose operands are constants of the map
    return _barrier_by_index(*primals), tangents[0]


def barrier_small(tree: Any, size: int) -> Any:
    """The tree, its arrays of less than `size` apart."""
    leaves, structure = jax.tree.flatten(tree)
    small = barrier({i: leaf for i, leaf in enumerate(leaves) if leaf.size < size})
    return jax.tree.unflatten(structure, [small.get(i, leaf) for i, leaf in enumerate(leaves)])


def barrier_unless_one_cpu(tree: Any, x: Array) -> Any:
    """Apart, but not on one CPU: there exponentials of `x` are what costs, and it is in cache.

    An accelerator would write those of all of `x` to memory and read them again.
    """
    return tree if one_cpu.on_one_cpu(x) else barrier(tree)
