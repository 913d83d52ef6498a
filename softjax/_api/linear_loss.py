"""A custom loss of the row statistics of a linear layer, with auxiliary outputs."""

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
    """A custom loss of the row statistics of `hidden @ kernel + bias`, with the logits never materialised.

        Σ weight · row_loss(s, *row_args)        with s = statistics(hidden @ kernel + bias, labels) of one sample

    Use it for any loss that is a function of the `Statistics` of a sample, such as a policy-gradient loss or the
    functions in `softjax.losses`. Value and gradient take three matmuls. Statistics that `row_loss` does not read are
    not computed.

    An eager call reuses the compiled program of the same `row_loss` object if it closes over no array. Define
    `row_loss` once, outside of a training loop. Under `jit` this makes no difference.

    Args:
        row_loss: a function of one sample, vectorised over the samples. It takes the sample's `Statistics`, in nats, as
            scalars, and the sample's entry of each of `row_args`. It returns a real scalar, or `(loss, aux)` if
            `has_aux` is True. Derivatives also reach arrays that it closes over. Under Explicit mesh axes JAX allows
            only concrete arrays there: pass traced ones as `row_args`.
        hidden, kernel, labels: as in `linear_cross_entropy`.
        row_args: arrays or pytrees of arrays, `[*samples, …]`; differentiable if floating.
        weights: boolean or real, broadcastable to `[*samples]`. Samples of weight 0 are ignored, whatever they hold.
        reduction: "sum". "mean" divides the sum by Σ weight, and is 0 when Σ weight is 0. "none" gives one value per
            sample; its gradient takes a fourth matmul.
        has_aux: True if `row_loss` returns `(loss, aux)`, with `aux` a pytree of arrays of any dtype. `aux` takes no
            further matmul, and no derivative flows through it. Its values for samples of weight 0 are unspecified.
        bias, where, logit_softcap, block_size, precision: as in `linear_cross_entropy`.
        axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in the units of `row_loss`, float32 or float64. With
        `has_aux` it is `(value, aux)`, each leaf of `aux` `[*samples, …]`.

    Raises:
        TypeError: `row_loss` is not a function or does not return a real floating scalar (and `aux`), or a dtype is
            wrong.
        ValueError: a shape or a value is not valid.

    Source: the gradients are those of `statistics`, taken in the forward pass as in Hsu et al. 2024, arXiv:2410.10989.

    >>> import jax, jax.numpy as jnp, softjax
    >>> def policy_gradient(s, advantage):
    ...     return advantage * s.cross_entropy - 0.01 * s.entropy
    >>> kernel, labels, advantages = jnp.array([[0.0, 1.0], [2.0, 5.0]]), jnp.array([1, 0]), jnp.array([1.0, -1.0])
    >>> loss = jax.jit(lambda h: softjax.linear_loss(policy_gradient, h, kernel, labels, advantages))
    >>> print(loss(jnp.eye(2)).round(4))
    -2.7431
    >>> def with_accuracy(s):
    ...     return s.cross_entropy, {"correct": s.label_rank == 0}
    >>> value, aux = softjax.linear_loss(with_accuracy, jnp.eye(2), kernel, labels, reduction="mean", has_aux=True)
    >>> print(value.round(4), aux["correct"])
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
