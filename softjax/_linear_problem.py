"""The arguments of a linear layer and its loss: checked, cut into blocks, and put together again."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax import _blocks as blocks
from softjax import _checks as checks
from softjax import _labels
from softjax import _placement as placement
from softjax._layer import Layer
from softjax._linear_rows import linear_rows
from softjax._linear_sum import RowLoss, linear_sum
from softjax._statistics import Rows, Wanted
from softjax._types import Array, Float
from softjax._widen import wide


class Problem(NamedTuple):
    """The arrays, in the shapes that they came in."""

    hidden: Array
    kernel: Array
    labels: Array
    bias: Array | None
    weights: Array | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the samples."""
        return self.hidden.shape[:-1]

    @property
    def samples(self) -> int:
        return math.prod(self.shape)


class Plan(NamedTuple):
    """What is static."""

    layer: Layer
    rows: int
    """The samples of a block."""


def arranged(
    hidden: Any, kernel: Any, labels: Any, bias: Any, weights: Any, softcap: Any, block_size: Any
) -> tuple[Problem, Plan]:
    """What the caller gave, refused by name if it does not fit."""
    hidden, kernel, bias = checks.layer(hidden, kernel, bias)
    samples, (features, classes) = hidden.shape[:-1], kernel.shape
    labels = checks.labels(labels, (*samples, classes), -1, "hidden @ kernel")
    weights = checks.weights(weights, samples)
    cap = checks.softcap(softcap)
    count = math.prod(samples)
    distribution = [] if _labels.is_ids(labels) else [labels]
    dtype = jnp.dtype(wide(hidden, kernel, *distribution))
    rows = checks.block_size(block_size)
    if rows is None:
        rows = blocks.block_rows(count, features, classes, dtype.itemsize, jax.default_backend())
    turned = placement.is_transpose(kernel)
    layer = Layer(turned, cap, dtype)
    return Problem(hidden, kernel.T if turned else kernel, labels, bias, weights), Plan(layer, min(rows, max(count, 1)))


def rows_of(problem: Problem, plan: Plan, wanted: Wanted) -> Rows:
    """The statistics in the shape of the samples."""
    hidden, labels, weights = _split(problem, plan, weights_of(problem, plan))
    weighted = None if weights is None else weights != 0
    occupied = None if weights is None else blocks.occupied(weights[..., 0])
    rows = linear_rows(plan.layer, wanted, hidden, problem.kernel, problem.bias, labels, weighted, occupied)
    return jax.tree.map(lambda number: blocks.merge(number[..., 0], problem.shape), rows)


def sum_of(
    problem: Problem, plan: Plan, wanted: Wanted, row_loss: RowLoss, shared: Sequence[Array], row_args: Sequence[Array]
) -> Float[Array, ""]:
    """The weighted sum of the losses of the rows."""
    weights = weights_of(problem, plan)
    if weights is None and (problem.samples % plan.rows or problem.samples == 0):
        weights = jnp.ones(problem.shape, plan.layer.dtype)  # so that the last block is filled up with weight 0
    unit = _unit(problem, weights)
    hidden, labels, weights = _split(problem, plan, weights if weights is None or unit is None else weights / unit)
    row_args = blocks.split([_flat(a, len(problem.shape)) for a in row_args], problem.samples, plan.rows)
    occupied = None if problem.weights is None or weights is None else blocks.occupied(weights[..., 0])
    total = linear_sum(
        plan.layer, wanted, row_loss, hidden, problem.kernel, problem.bias, labels, weights, occupied, shared, row_args
    )
    return total if unit is None else total * unit


def _unit(problem: Problem, weights: Array | None) -> Array | None:
    """A power of two at the largest weight, which float16 gradients of a block's logits are measured in.

    They hold the weights, and are rounded to the type of the operands before their products: large weights would
    overflow there and small ones vanish, though the gradients themselves may be of any size.
    """
    if weights is None or jnp.float16 not in (problem.hidden.dtype, problem.kernel.dtype):
        return None
    most = jax.lax.stop_gradient(jnp.max(jnp.abs(weights), initial=0))
    return jnp.where((most > 0) & jnp.isfinite(most), jnp.exp2(jnp.floor(jnp.log2(most))), 1)


def _split(problem: Problem, plan: Plan, weights: Array | None) -> tuple[Array, Array, Array | None]:
    """Hidden vectors, labels and weights as blocks, labels and weights with a last axis of length 1 or of classes."""
    labels = labels_of(problem, plan)
    labels = labels[..., None] if _labels.is_ids(labels) else labels
    flat = [_flat(array, len(problem.shape)) for array in (problem.hidden, labels)]
    hidden, labels = blocks.split(flat, problem.samples, plan.rows)
    if weights is None:
        return hidden, labels, None
    weights = jnp.pad(weights.reshape(-1), (0, len(hidden) * plan.rows - problem.samples))
    return hidden, labels, weights.reshape((*hidden.shape[:2], 1))


def _flat(array: Array, axes: int) -> Array:
    """`array` with its leading axes, the samples, as one."""
    return array.reshape((math.prod(array.shape[:axes]), *array.shape[axes:]))


def labels_of(problem: Problem, plan: Plan) -> Array:
    if not _labels.is_ids(problem.labels):
        return problem.labels.astype(plan.layer.dtype) if plan.layer.dtype == jnp.float64 else problem.labels
    return _labels.canonical(problem.labels, problem.kernel.shape[plan.layer.axes[1]])


def weights_of(problem: Problem, plan: Plan) -> Array | None:
    if problem.weights is None:
        return None
    return jnp.broadcast_to(problem.weights, problem.shape).astype(plan.layer.dtype)
