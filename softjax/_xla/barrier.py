"""Optimization barriers: XLA neither fuses nor merges operations across them."""

from collections.abc import Hashable
from typing import Any

import jax
from jax import lax

from softjax._args.types import Array


def varying_axes(array: Array | jax.ShapeDtypeStruct) -> frozenset[Hashable]:
    """The mesh axes over which an array varies, by its type (vma); empty outside of `shard_map`."""
    # JAX 0.10 cannot give the type of a ShapeDtypeStruct that varies while an axis of the mesh is not bound.
    array_type: Any = array if isinstance(array, jax.ShapeDtypeStruct) else jax.typeof(array)
    if hasattr(array_type, "vma"):
        return frozenset(array_type.vma or ())
    manual = array_type.manual_axis_type  # its name in newer versions of JAX
    return frozenset() if manual is None else frozenset(manual.varying)


def barrier(tree: Any) -> Any:
    """The arrays of the tree, behind an optimization barrier.

    Equals: `tree`.

    XLA merges equal operations of two passes over a block of logits. It then keeps their result, an array of the
    block's size, in memory from the first pass to the second. Behind a barrier the second pass computes its own.

    All leaves share one barrier, because XLA also merges two barriers with equal operands. Leaves that vary over
    different mesh axes get one barrier for each set of axes: a barrier types all its results as varying over the union.
    """
    leaves, structure = jax.tree.flatten(tree)
    by_axes: dict[frozenset[Hashable], dict[int, Array]] = {}
    for i, leaf in enumerate(leaves):
        by_axes.setdefault(varying_axes(leaf), {})[i] = leaf
    barred = {i: leaf for group in by_axes.values() for i, leaf in _barrier_by_index(group).items()}
    return jax.tree.unflatten(structure, [barred[i] for i in range(len(leaves))])


@jax.custom_jvp
def _barrier_by_index(arrays: dict[int, Array]) -> dict[int, Array]:
    return lax.optimization_barrier(arrays)


@_barrier_by_index.defjvp
def _barrier_jvp(primals, tangents):
    # JAX 0.12 cannot transpose a barrier if some of its operands are constants. The tangents need no barrier.
    return _barrier_by_index(*primals), tangents[0]


def barrier_small(tree: Any, size: int) -> Any:
    """The tree, with its arrays of fewer than `size` elements behind a barrier.

    Equals: `tree`.
    """
    leaves, structure = jax.tree.flatten(tree)
    small = barrier({i: leaf for i, leaf in enumerate(leaves) if leaf.size < size})
    return jax.tree.unflatten(structure, [small.get(i, leaf) for i, leaf in enumerate(leaves)])
