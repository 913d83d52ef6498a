"""The statistics of each row of hidden @ kernel, a block of samples at a time; the pull-back computes the logits again.

Four matrix products in all: the logits twice, and the gradients of the hidden vectors and of the kernel.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from softjax import _blocks as blocks
from softjax import _labels, _layer, _statistics
from softjax import _mesh as mesh
from softjax import _placement as placement
from softjax._differentiable import differentiable
from softjax._layer import Layer
from softjax._statistics import Residuals, Rows, Wanted
from softjax._types import Array


class _Static(NamedTuple):
    layer: Layer
    wanted: Wanted


def linear_rows(
    layer: Layer,
    wanted: Wanted,
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    labels: Array,
    weighted: Array | None,
    occupied: Array | None,
) -> Rows:
    """The wanted statistics, each `[blocks, rows, 1]`.

    Args:
        hidden: `[blocks, rows, features]`.
        kernel, bias: as the layer keeps them.
        labels: `[blocks, rows, 1]` canonical ids, or `[blocks, rows, classes]`.
        weighted: `[blocks, rows, 1]`, None for all: a sample that is not may hold anything.
        occupied: `[blocks]`, None for all: the blocks that hold a weighted sample. The others are left out.
    """
    split, shared = (hidden, kernel, bias), (labels, weighted, occupied)
    if not _labels.is_ids(labels):
        split, shared = (*split, labels), shared[1:]
    split, shared = placement.aligned(wanted.names, split, shared)
    return _rows(_Static(layer, wanted), *split, *shared)


def block_rows(
    static: Any, hidden: Array, kernel: Array, bias: Array | None, labels: Array, weighted: Array | None
) -> tuple[Rows, Residuals]:
    """The statistics of one block and what their pull-back to its logits needs."""
    x = static.layer.logits(hidden, kernel, bias)
    # in blocks of rows also where it is differentiated: XLA's sweep over more than 32768 classes is slow
    return _statistics.forward(static.wanted, x, labels, None, weighted, moving=())


def clean(hidden: Array, weighted: Array | None) -> Array:
    """The hidden vectors, 0 where a sample of weight 0 is not finite: 0 · NaN would enter the kernel's gradient."""
    if weighted is None:
        return hidden
    return jnp.where(weighted | jnp.isfinite(hidden).all(-1, keepdims=True), hidden, 0)


def _forward(static, hidden, kernel, bias, labels, weighted, occupied, *, moving):
    def step(carry: None, block: Any) -> tuple[None, Any]:
        hidden, labels, weighted = block
        rows, residuals = block_rows(static, clean(hidden, weighted), kernel, bias, labels, weighted)
        return carry, (rows, (residuals.log_sum, residuals.entropy, residuals.absent))

    _, (rows, few) = blocks.walk(step, None, (hidden, labels, weighted), occupied)
    return rows, (hidden, kernel, bias, labels, weighted, occupied, few)


def _backward(static, residuals, cotangents, *, moving):
    layer, wanted = static
    hidden, kernel, bias, labels, weighted, occupied, few = residuals
    cotangents = mesh.whole(cotangents, wanted.names)

    def step(sums: _layer.Sums, block: Any) -> tuple[_layer.Sums, Any]:
        hidden, labels, weighted, few, cotangents = block
        hidden = clean(hidden, weighted)
        x = layer.logits(hidden, kernel, bias)
        log_sum, entropy, absent = few
        kept = Residuals(x, labels, None, log_sum, entropy, absent, weighted)
        dx, dlabels, *_ = _statistics.backward(wanted, kept, cotangents, moving=_layer.of_logits(moving))
        sums, dhidden = _layer.pull_back(layer, moving, sums, layer.uncapped(dx, x), hidden, kernel)
        return sums, (dhidden, dlabels)

    sums = _layer.empty_sums(layer, moving, hidden, kernel)
    every = (hidden, labels, weighted, few, cotangents)
    sums, (dhidden, dlabels) = blocks.walk(step, sums, every, occupied)
    dkernel, dbias = _layer.layouts(layer, sums, len(hidden))
    dkernel = None if dkernel is None else dkernel.astype(kernel.dtype)
    dbias = None if dbias is None else dbias.astype(bias.dtype)
    return dhidden, dkernel, dbias, dlabels, None, None


_rows = differentiable(_forward, _backward)
