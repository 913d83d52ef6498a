"""Σ weight · row_loss over the rows of hidden @ kernel, with its gradients taken while a block's logits are at hand.

The weights are known, so that the gradient of a block of logits is, up to the one scalar that comes from outside.
Three matrix products in all, the least possible; the value alone takes one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax import _blocks as blocks
from softjax import _labels, _layer, _statistics
from softjax import _mesh as mesh
from softjax import _placement as placement
from softjax._differentiable import differentiable
from softjax._layer import Layer
from softjax._linear_rows import block_rows, clean
from softjax._reduce import reduce
from softjax._statistics import Rows, Wanted
from softjax._types import Array, Float

RowLoss = Callable[[Sequence[Array], Rows, Array, Sequence[Array]], Array]
"""The loss of each row, of what all rows share, the statistics, the labels and the rows' own arguments.

It is static and closes over no array.
"""


class _Static(NamedTuple):
    layer: Layer
    wanted: Wanted
    samples: mesh.Names
    row_loss: RowLoss
    shared: int
    dtypes: tuple[Any, ...]


_WEIGHTS, _LOOSE = 4, 6


def linear_sum(
    layer: Layer,
    wanted: Wanted,
    samples: mesh.Names,
    row_loss: RowLoss,
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    labels: Array,
    weights: Array | None,
    occupied: Array | None,
    shared: Sequence[Array],
    row_args: Sequence[Array],
) -> Float[Array, ""]:
    """The sum, in float32 or wider.

    Args:
        samples: the mesh axes over which the samples are split.
        hidden, kernel, bias, labels, occupied: as `linear_rows` has them.
        weights: `[blocks, rows, 1]`, real, None for 1.
        shared: arrays that all rows use.
        row_args: arrays `[blocks, rows, …]`.
    """
    # what is shared stays as the row loss was traced with it: that says itself where it varies over a mesh
    split, rows = (hidden, kernel, bias), (labels, weights, occupied, *row_args)
    if not _labels.is_ids(labels):
        split, rows = (*split, labels), rows[1:]
    split, rows = placement.aligned(wanted.names, split, rows)
    first, last = (*split, *rows)[:_LOOSE], (*split, *rows)[_LOOSE:]
    arrays = (*first, *shared, *last)
    dtypes = tuple(None if array is None else array.dtype for array in arrays)
    return _sum(_Static(layer, wanted, samples, row_loss, len(shared), dtypes), *arrays)


def _forward(static, hidden, kernel, bias, labels, weights, occupied, *loose, moving):
    shared, row_args = loose[: static.shared], loose[static.shared :]
    every = (hidden, labels, weights, row_args)
    # what is the same for all classes: a sum of it is, too
    ids = labels if _labels.is_ids(labels) else None
    _, (zero, *_) = placement.aligned(
        static.wanted.names, (hidden, kernel), (jnp.zeros((), static.layer.dtype), ids, weights, *row_args)
    )

    def value(total: Array, block: Any) -> tuple[Array, None]:
        hidden, labels, weights, row_args = _cleaned(*block)
        rows, _ = block_rows(static, hidden, kernel, bias, labels, _weighted(weights))
        return total + _weighted_sum(static, rows, weights, labels, shared, row_args), None

    def value_and_gradients(carry: Any, block: Any) -> tuple[Any, Any]:
        total, sums, dshared = carry
        hidden, labels, weights, row_args = _cleaned(*block)
        rows, residuals = block_rows(static, hidden, kernel, bias, labels, _weighted(weights))
        rows = jax.tree.map(lambda number: placement.like(number, total), rows)
        part, drows, dweights, dloose = _pulled(static, moving, rows, weights, labels, shared, row_args)
        dx, dlabels, *_ = _statistics.backward(static.wanted, residuals, drows, moving=_layer.of_logits(moving))
        du = static.layer.uncapped(dx, residuals.logits)
        sums, dhidden = _layer.pull_back(static.layer, moving, sums, du, hidden, kernel)
        dshared = jax.tree.map(jnp.add, dshared, dloose[: static.shared])
        return (total + part, sums, dshared), (dhidden, dlabels, dweights, dloose[static.shared :])

    if not moving:
        return mesh.total(blocks.walk(value, zero, every, occupied)[0], static.samples), None
    count = len(hidden)
    sums = _layer.empty_sums(static.layer, moving, hidden, kernel)
    dshared = [
        placement.like(jnp.zeros(a.shape, a.dtype), a) if i in moving else None for i, a in enumerate(shared, _LOOSE)
    ]
    (total, sums, dshared), rest = blocks.walk(value_and_gradients, (zero, sums, dshared), every, occupied)
    dhidden, dlabels, dweights, dargs = rest
    dkernel, dbias = _layer.layouts(static.layer, sums, count)
    return mesh.total(total, static.samples), (dhidden, dkernel, dbias, dlabels, dweights, None, *dshared, *dargs)


def _pulled(static, moving, rows, weights, labels, shared, row_args):
    """The weighted sum of a block's losses and its derivatives by the statistics, the weights and the loose arrays."""
    loose = [*shared, *row_args]
    varying = {i: a for i, a in enumerate(loose) if i + _LOOSE in moving}

    def total(rows: Rows, weights: Array | None, varying: dict[int, Array]) -> Array:
        every = [varying.get(i, a) for i, a in enumerate(loose)]
        return _weighted_sum(static, rows, weights, labels, every[: static.shared], every[static.shared :])

    value, pull = jax.vjp(total, rows, weights, varying)
    drows, dweights, dvarying = pull(jnp.ones_like(value))
    weighted = _weighted(weights)
    drows = jax.tree.map(lambda d: _finite(d, weighted), drows)
    dloose = [dvarying.get(i) for i in range(len(loose))]
    dargs = [None if d is None else _finite(d, weighted) for d in dloose[static.shared :]]
    return value, drows, dweights if _WEIGHTS in moving else None, dloose[: static.shared] + dargs


def _weighted_sum(static, rows, weights, labels, shared, row_args):
    rows = jax.tree.map(lambda number: number[:, 0], rows)
    labels = labels[:, 0] if _labels.is_ids(labels) else labels
    loss = static.row_loss(shared, rows, labels, row_args).astype(rows.log_normalizer.dtype)
    return reduce(loss, None if weights is None else weights[:, 0].astype(loss.dtype), "sum")


def _cleaned(hidden, labels, weights, row_args):
    """A block, with 0 for what is not finite in a sample of weight 0."""
    weighted = _weighted(weights)
    return clean(hidden, weighted), labels, weights, [_finite(a, weighted) for a in row_args]


def _weighted(weights: Array | None) -> Array | None:
    return None if weights is None else weights != 0


def _finite(rows: Array, weighted: Array | None) -> Array:
    """0 for what is not finite in a row that is not weighted."""
    if weighted is None or not jnp.issubdtype(rows.dtype, jnp.inexact):
        return rows
    return jnp.where(weighted.reshape((-1, *(1,) * (rows.ndim - 1))) | jnp.isfinite(rows), rows, 0)


def _backward(static, gradients, g, *, moving):
    # weights and row arguments reach the loss without a sum over the classes
    g = mesh.whole(g, static.samples)
    by_sums = mesh.whole(g, static.wanted.names)
    return tuple(
        None if gradient is None else ((by_sums if i < _WEIGHTS else g) * gradient.astype(g.dtype)).astype(dtype)
        for i, (gradient, dtype) in enumerate(zip(gradients, static.dtypes, strict=True))
    )


_sum = differentiable(_forward, _backward)
