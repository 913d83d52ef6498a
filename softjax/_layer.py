"""The last linear layer for a block of samples: its logits, and their pull-back to what they were made from.

Every product takes its operands in the type they came in and accumulates in float32 or wider.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax import _placement as placement
from softjax._types import Array, Float
from softjax._widen import wide

_TILE = 2**23  # bytes of the kernel gradient that a CPU adds to at a time: they stay in cache


class Layer(NamedTuple):
    """What is static of the layer cap · tanh((h W + b) / cap)."""

    turned: bool
    """The kernel is kept as `[classes, features]`."""
    softcap: float | None
    dtype: jnp.dtype
    """Of the logits and of what is computed from them, float32 or wider."""

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of the features and of the classes in the kernel."""
        return (1, 0) if self.turned else (0, 1)

    def logits(
        self, hidden: Float[Array, "rows features"], kernel: Float[Array, "_ _"], bias: Float[Array, " classes"] | None
    ) -> Float[Array, "rows classes"]:
        x = _product(hidden, kernel, 1, self.axes[0]).astype(self.dtype)
        if bias is not None:
            x = x + bias.astype(x.dtype)[None, :]
        return x if self.softcap is None else self.softcap * jnp.tanh(x / self.softcap)

    def uncapped(
        self, dx: Float[Array, "rows classes"], x: Float[Array, "rows classes"]
    ) -> Float[Array, "rows classes"]:
        """The cotangent of h W + b from that of the logits."""
        # x = cap · tanh(u / cap)  ⇒  ∂x/∂u = 1 − (x / cap)²
        return dx if self.softcap is None else dx * (1 - (x / self.softcap) ** 2)


class Sums(NamedTuple):
    """What is summed over blocks; None where it is not wanted, or where the first block will be the only one."""

    kernel: Any
    bias: Any


HIDDEN, KERNEL, BIAS, LABELS = range(4)
"""Positions among the arrays that may be differentiated by."""


def empty_sums(
    layer: Layer, moving: Sequence[int], hidden: Float[Array, "blocks rows features"], kernel: Array
) -> Sums:
    features, classes = (kernel.shape[axis] for axis in layer.axes)
    dkernel = jnp.zeros((classes, features), wide(hidden)) if KERNEL in moving and len(hidden) > 1 else None
    dbias = jnp.zeros(classes, layer.dtype) if BIAS in moving else None
    return jax.tree.map(lambda zeros: placement.like(zeros, hidden), Sums(dkernel, dbias))


def pull_back(
    layer: Layer,
    moving: Sequence[int],
    sums: Sums,
    du: Float[Array, "rows classes"],
    hidden: Float[Array, "rows features"],
    kernel: Float[Array, "_ _"],
) -> tuple[Sums, Float[Array, "rows features"] | None]:
    """The sums with what this block adds to them, and the gradient of its hidden vectors, from du of h W + b."""
    dkernel = dbias = dhidden = None
    if HIDDEN in moving:
        # dh = du Wᵀ
        dhidden = _product(du.astype(kernel.dtype), kernel, 1, layer.axes[1]).astype(hidden.dtype)
    if KERNEL in moving:
        # dW = hᵀ du
        dkernel = _add_kernel_gradient(layer, sums.kernel, du.astype(hidden.dtype), hidden)
    if BIAS in moving:
        # db = Σ du
        dbias = sums.bias + jnp.sum(du, 0)
    return Sums(dkernel, dbias), dhidden


def layouts(layer: Layer, sums: Sums, blocks: int) -> Sums:
    """The sums over all blocks in the layout of the layer's parameters."""
    return sums if sums.kernel is None or layer.turned or blocks == 1 else sums._replace(kernel=sums.kernel.T)


def of_logits(moving: Sequence[int]) -> tuple[int, ...]:
    """Which arguments of a block of statistics move: its logits, and its labels if the layer's do."""
    return (0, 1) if LABELS in moving else (0,)


def _add_kernel_gradient(layer: Layer, total: Array | None, du: Array, hidden: Array) -> Array:
    """total + duᵀ h, or what stands alone, in the layout of the kernel, if the only block is this one.

    A sum over blocks is kept as [classes, features], whatever the layout of the kernel: that product is up to twice as
    fast on a CPU. There it is added tile by tile, since a product of the size of the kernel would go to memory and
    come back to be added.
    """
    if total is None:
        return _product(du, hidden, 0, 0) if layer.turned else _product(hidden, du, 0, 0)
    classes, features = total.shape
    tile = max(1, _TILE // max(features * total.dtype.itemsize, 1))
    if not placement.on_one_cpu(du) or tile >= classes:
        return total + _product(du, hidden, 0, 0)

    def add(total: Array, start: Array | int, length: int) -> Array:
        part = _product(lax.dynamic_slice_in_dim(du, start, length, 1), hidden, 0, 0)
        old = lax.dynamic_slice_in_dim(total, start, length)
        return lax.dynamic_update_slice_in_dim(total, old + part, start, 0)

    whole = classes - classes % tile
    total, _ = lax.scan(lambda total, start: (add(total, start, tile), None), total, jnp.arange(0, whole, tile))
    return total if whole == classes else add(total, whole, classes - whole)


def _product(a: Array, b: Array, i: int, j: int) -> Array:
    """Σ over axis i of a and axis j of b."""
    return lax.dot_general(a, b, (((i,), (j,)), ((), ())), preferred_element_type=wide(a, b))
