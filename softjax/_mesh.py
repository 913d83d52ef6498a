"""Mesh axes over which the classes or the samples of a call are split: sums over them, and what one device holds.

`()` means that nothing is split. The axes are bound by a `shard_map`: the caller's, or that of `_split`.
"""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from softjax import _placement as placement
from softjax._types import Array

Names = tuple[Hashable, ...]


def total(x: Any, names: Names) -> Any:
    """The sum over the devices."""
    return lax.psum(x, names) if names else x


def most(x: Array, names: Names) -> Array:
    """The maximum over the devices, a constant to every derivative."""
    x = lax.stop_gradient(x)
    return lax.pmax(x, names) if names else x


def exists(condition: Array, names: Names) -> Array:
    """Whether the condition holds on any of the devices."""
    return total(condition.astype(jnp.int32), names) > 0 if names else condition


def bound(names: Names) -> Names:
    """Those that a `shard_map` binds, not a `vmap`, whose sums must stand outside of custom derivatives."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in names if name in manual)


def size(names: Names) -> int:
    """How many devices share."""
    return math.prod(lax.axis_size(name) for name in names)


def first(names: Names, length: int) -> Array | int:
    """The global index of the first class of this device, which holds `length` of them."""
    return lax.axis_index(names) * length if names else 0


def whole(cotangents: Any, names: Names) -> Any:
    """The cotangents of numbers that are the same on all devices.

    Where JAX types what varies over the devices (`check_vma=True`), a number that does not has one cotangent. Elsewhere
    each device has a share of it, as the transpose of `psum` has it.
    """
    typed = placement.typed(names)

    def one(cotangent: Array) -> Array:
        varying = placement.varying(cotangent)
        return total(cotangent, tuple(name for name in names if name not in typed or name in varying))

    return jax.tree.map(one, cotangents)
