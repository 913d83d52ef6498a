"""Any loss of the numbers of a row, over the last linear layer, and what is measured beside it."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import PartitionSpec as P

from softjax._args import arrays, options
from softjax._args.labels import SparseLabels
from softjax._args.types import Array, ArrayLike, AxisName, Count, Flag, Function, Number, Reduction
from softjax._args.validation import check_labels
from softjax._linear import chunks
from softjax._linear.closures import hoist_row_loss
from softjax._linear.fused import fused_loss_sum, guard_ignored
from softjax._linear.plan import Plan, make_plan
from softjax._linear.recomputed import rows_in_shape
from softjax._rows.reduction import reduce
from softjax._rows.statistics import STATISTICS_IN_CACHE, Statistics


def linear_loss(
    row_loss: Function,
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *row_args: Any,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    logit_softcap: Number | None = None,
    reduction: Reduction = "sum",
    has_aux: Flag = False,
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Any:
    """Σ weight · row_loss(statistics, *row_args), of the statistics of hidden @ kernel + bias, without the logits.

    Any loss of a policy or a classifier that is a function of the `Statistics` of a row, with its gradient, for three
    matrix products. What `row_loss` does not read is not computed.

    Args:
        row_loss: a function of one sample: `Statistics` of scalars, and the sample's entry of each of `row_args`, to a
            real scalar, or with `has_aux` to `(loss, aux)`, `aux` a pytree of arrays of any dtype. It is mapped over
            the samples. Derivatives reach arrays that it closes over (under Explicit axes JAX allows concrete ones
            only: pass traced ones as `row_args`).
        hidden: `[*samples, features]`, real floating.
        kernel: `[features, classes]`; `embedding.T` for tied embeddings.
        labels: integer class ids `[*samples]`, a floating distribution `[*samples, classes]`, or `SparseLabels`.
        row_args: arrays, or pytrees of arrays, `[*samples, …]`; differentiable where they are floating.
        bias: `[classes]`.
        where: boolean, `[classes]` or broadcastable to it: the classes that exist, as if the others had been deleted
            (what the kernel holds for them must be finite).
        weights: boolean or real, broadcastable to `[*samples]`. A sample of weight 0 may hold anything.
        logit_softcap: s > 0, a Python number: the logits are s · tanh((h W + b) / s).
        reduction: "sum"; "mean", over Σ weight, 0 where that is 0; "none", one number for each sample, whose gradient
            takes a fourth product.
        has_aux: whether `row_loss` gives `(loss, aux)`. What is measured beside the loss takes no further product, and
            no derivative flows through it; for samples of weight 0 it may be anything.
        block_size: the samples of a block, chosen from the shapes and the platform if None.
        precision: as in `linear_cross_entropy`.
        axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", float32 or float64; with `has_aux` `(value, aux)`, each leaf
        of `aux` `[*samples, …]`.

    Raises:
        TypeError: `row_loss` is not a function or gives no real floating number (and `aux`), or a wrong dtype.
        ValueError: shapes that do not fit, or a value out of range.

    An eager call compiles once for each `row_loss` that is the same object and closes over no array; under `jit` it
    makes no difference.

    Source: the gradients are those of `statistics`, taken in the forward pass as in Hsu et al. 2024, arXiv:2410.10989.

    >>> import jax, jax.numpy as jnp, softjax
    >>> def policy_gradient(s, advantage):
    ...     return advantage * s.cross_entropy - 0.01 * s.entropy
    >>> kernel, labels, advantages = jnp.array([[0.0, 1.0], [2.0, 5.0]]), jnp.array([1, 0]), jnp.array([1.0, -1.0])
    >>> loss = jax.jit(lambda h: softjax.linear_loss(policy_gradient, h, kernel, labels, advantages))
    >>> print(loss(jnp.eye(2)).round(4))
    -2.7431
    >>> def with_accuracy(s):
    ...     return s.cross_entropy, {"hit": s.label_rank == 0}
    >>> value, aux = softjax.linear_loss(with_accuracy, jnp.eye(2), kernel, labels, reduction="mean", has_aux=True)
    >>> print(value.round(4), aux["hit"])
    1.6809 [ True False]
    """
    if not callable(row_loss):
        raise TypeError(f"`row_loss` must be a function, got {type(row_loss).__name__}: {row_loss!r:.60}.")
    given = {"logit_softcap": logit_softcap, "block_size": block_size, "precision": precision}
    layer_arrays, names = {"bias": bias, "where": where, "weights": weights}, (axis_name, batch_axis_name)
    labelled = partial(check_labels, labels, name="hidden @ kernel")
    plan, problem = make_plan(hidden, kernel, labelled, names=names, **layer_arrays, **given)
    leaves, tree = arrays.row_args(row_args, problem.shape)
    static = _LossConfig(plan, tree, options.reduction(reduction), options.flag("has_aux", has_aux))
    return _compiled(row_loss)(static, problem, leaves)


class _LossConfig(NamedTuple):
    plan: Plan
    tree: Any
    """Of the row arguments."""
    reduction: str
    has_aux: bool

    def of_row(self, row_loss: Callable[..., Any]) -> Callable[..., tuple[Array, Any]]:
        """The caller's loss of a row and the leaves of its arguments, and what is measured beside it."""

        def of(row: Statistics, args: list[Array]) -> tuple[Array, Any]:
            result = row_loss(row, *jax.tree.unflatten(self.tree, args))
            return arrays.row_loss_result(result, self.has_aux)

        return of


_compiled_losses: Any = weakref.WeakKeyDictionary()


def _compiled(row_loss: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once for a function that closes over no array, else for this call alone."""
    if _closes_over_arrays(row_loss):
        return jax.jit(partial(_linear_loss, lambda: row_loss), static_argnums=0)
    if row_loss not in _compiled_losses:
        # weakly, so that neither the function nor its program outlives the caller's use of it
        _compiled_losses[row_loss] = jax.jit(partial(_linear_loss, weakref.ref(row_loss)), static_argnums=0)
    return _compiled_losses[row_loss]


def _closes_over_arrays(function: Callable[..., Any]) -> bool:
    """Whether it may: of anything but a function of Python and what that closes over, nobody knows."""
    cells = getattr(function, "__closure__", ())
    if cells is None and not getattr(function, "__defaults__", None) and not getattr(function, "__kwdefaults__", None):
        return False
    if not cells or hasattr(function, "__self__"):
        return True
    constants = (bool, int, float, str, bytes, type(None))
    return not all(isinstance(cell.cell_contents, constants) for cell in cells)


def _linear_loss(function, static, problem, row_args):
    plan, of_row = static.plan, static.of_row(function())
    one = plan.split.output_spec
    local = partial(_local_rows if static.reduction == "none" else _local_sum, static, of_row)
    out = (one if static.reduction == "none" else P(), one)
    value, aux = plan.shard_map(local, problem, ((), row_args), out)(problem, (), row_args)
    return (value, aux) if static.has_aux else value


def _local_sum(static, of_row, problem, _, row_args):
    plan = static.plan
    parameters, samples = plan.into_full_chunks(problem, row_args)
    static_of = plan.chunk_config(STATISTICS_IN_CACHE)
    function, closed_over = hoist_row_loss(static_of, of_row, parameters, samples)
    total, aux = fused_loss_sum(static_of._replace(row_loss=function), parameters, samples, closed_over)
    return plan.reduce(problem, total, static.reduction), chunks.merge_chunks(aux, problem.shape)


def _local_rows(static, of_row, problem, _, row_args):
    plan, weights = static.plan, static.plan.weights(problem)
    row = rows_in_shape(plan.chunk_config(STATISTICS_IN_CACHE), plan.into_chunks(problem), problem.shape).statistics
    flat = jax.tree.map(lambda a: a.reshape((problem.samples, *a.shape[len(problem.shape) :])), (row, row_args))
    if weights is not None:
        flat = guard_ignored(flat, weights.reshape(-1, 1) != 0)
    loss, aux = jax.tree.map(lambda a: a.reshape((*problem.shape, *a.shape[1:])), jax.vmap(of_row)(*flat))
    return reduce(loss.astype(plan.layer.dtype), weights, "none"), lax.stop_gradient(aux)
