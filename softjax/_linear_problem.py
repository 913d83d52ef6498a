"""The arguments of a linear layer and its loss: checked, cut into blocks, and put together again."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from softjax import _blocks as blocks
from softjax import _checks as checks
from softjax import _labels
from softjax import _mesh as mesh
from softjax import _placement as placement
from softjax._layer import Layer
from softjax._linear_rows import linear_rows
from softjax._linear_sum import RowLoss, linear_sum
from softjax._split import Split, split_of_layer
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
    split: Split


def arranged(
    hidden: Any,
    kernel: Any,
    labels: Any,
    bias: Any,
    weights: Any,
    softcap: Any,
    block_size: Any,
    axis_name: Any,
    batch_axis_name: Any,
) -> tuple[Problem, Plan]:
    """What the caller gave, refused by name if it does not fit."""
    hidden, kernel, bias = checks.layer(hidden, kernel, bias)
    samples, (features, classes) = hidden.shape[:-1], kernel.shape
    labels = checks.labels(labels, (*samples, classes), -1, "hidden @ kernel")
    weights = checks.weights(weights, samples)
    cap = checks.softcap(softcap)
    split = split_of_layer(axis_name, batch_axis_name, hidden, kernel)
    count, classes = split.share(samples, classes)
    distribution = [] if _labels.is_ids(labels) else [labels]
    dtype = jnp.dtype(wide(hidden, kernel, *distribution))
    rows = checks.block_size(block_size)
    if rows is None:
        rows = blocks.block_rows(count, features, classes, dtype.itemsize, jax.default_backend())
    turned = placement.is_transpose(kernel)
    layer = Layer(turned, cap, dtype)
    plan = Plan(layer, min(rows, max(count, 1)), split)
    return Problem(hidden, kernel.T if turned else kernel, labels, bias, weights), plan


def on_mesh(
    function: Callable[..., Any],
    problem: Problem,
    plan: Plan,
    shared: Sequence[Array],
    row_args: Sequence[Array],
    out: P,
) -> Any:
    """`function(problem, shared, row_args)` on each device's part of the problem."""
    split = plan.split
    columns = split.columns or None
    specs = problem._replace(
        hidden=split.of_samples(problem.hidden),
        kernel=P(columns, None) if plan.layer.turned else P(None, columns),
        labels=split.of_labels(problem.labels, -1),
        bias=P(columns),
        weights=split.of_samples(problem.weights),
    )

    def local(problem: Problem, *rest: Any) -> Any:
        soft = not _labels.is_ids(problem.labels)
        problem = problem._replace(
            kernel=split.gathered(problem.kernel, plan.layer.axes[1]),
            bias=split.gathered(problem.bias, 0),
            labels=split.gathered(problem.labels, -1) if soft else problem.labels,
        )
        return function(problem, *rest)

    specs = (specs, [P() for _ in shared], [split.of_samples(array) for array in row_args])
    return split.over(local, (problem, list(shared), list(row_args)), specs, out)


def varying_as_rows(problem: Problem, plan: Plan, row_args: Sequence[Array], arrays: Sequence[Array]) -> list[Array]:
    """The arrays, varying over the mesh axes that the statistics of the rows, and what comes with them, vary over."""
    shared = [*arrays, problem.weights, *row_args]
    split = [problem.hidden, problem.kernel, problem.bias]
    (shared if _labels.is_ids(problem.labels) else split).append(problem.labels)
    return placement.aligned(plan.split.classes, split, shared)[1][: len(arrays)]


def rows_of(problem: Problem, plan: Plan, wanted: Wanted) -> Rows:
    """The statistics in the shape of the samples."""
    hidden, labels, weights = _split(problem, plan, weights_of(problem, plan))
    weighted = None if weights is None else weights != 0
    occupied = _occupied(plan, weights)
    rows = linear_rows(plan.layer, wanted, hidden, problem.kernel, problem.bias, labels, weighted, occupied)
    return jax.tree.map(lambda number: blocks.merge(number[..., 0], problem.shape), rows)


def sum_of(
    problem: Problem, plan: Plan, wanted: Wanted, row_loss: RowLoss, shared: Sequence[Array], row_args: Sequence[Array]
) -> Float[Array, ""]:
    """The weighted sum of the losses of the rows."""
    weights = weights_of(problem, plan)
    if weights is None and (problem.samples % plan.rows or problem.samples == 0):
        weights = jnp.ones(problem.shape, plan.layer.dtype)  # so that the last block is filled up with weight 0
    unit = _unit(problem, weights, plan.split.samples)
    hidden, labels, weights = _split(problem, plan, weights if weights is None or unit is None else weights / unit)
    row_args = blocks.split([_flat(a, len(problem.shape)) for a in row_args], problem.samples, plan.rows)
    occupied = _occupied(plan, None if problem.weights is None else weights)
    arrays = (hidden, problem.kernel, problem.bias, labels, weights, occupied)
    names = mesh.bound(plan.split.samples)
    total = linear_sum(plan.layer, wanted, names, row_loss, *arrays, shared, row_args)
    total = mesh.total(total, tuple(name for name in plan.split.samples if name not in names))
    return total if unit is None else total * unit


def _occupied(plan: Plan, weights: Array | None) -> Array | None:
    # Where the classes are split, a block's statistics are sums over devices, which all of them must come to.
    return None if weights is None or plan.split.classes else blocks.occupied(weights[..., 0])


def _unit(problem: Problem, weights: Array | None, names: mesh.Names) -> Array | None:
    """A power of two at the largest weight, which float16 gradients of a block's logits are measured in.

    They hold the weights, and are rounded to the type of the operands before their products: large weights would
    overflow there and small ones vanish, though the gradients themselves may be of any size.
    """
    if weights is None or jnp.float16 not in (problem.hidden.dtype, problem.kernel.dtype):
        return None
    most = mesh.most(jnp.max(jnp.abs(weights), initial=0), names)
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
    classes = problem.kernel.shape[plan.layer.axes[1]] * mesh.size(plan.split.classes)
    return _labels.canonical(problem.labels, classes)


def weights_of(problem: Problem, plan: Plan) -> Array | None:
    if problem.weights is None:
        return None
    return jnp.broadcast_to(problem.weights, problem.shape).astype(plan.layer.dtype)
