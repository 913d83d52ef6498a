"""The last linear layer and its loss, without the logits."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from softjax import _checks as checks
from softjax._hoist import Hoisted, hoist
from softjax._linear_problem import (
    Problem,
    arranged,
    labels_of,
    on_mesh,
    rows_of,
    sum_of,
    varying_as_rows,
    weights_of,
)
from softjax._reduce import mean_of, reduce
from softjax._row_loss import row_cross_entropy
from softjax._statistics import Rows, Statistics, Wanted
from softjax._types import Array, ArrayLike, AxisName, Count, Function, Number, Reduction


def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    base: Number = 10.0,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    logit_softcap: Number | None = None,
    reduction: Reduction = "mean",
    block_size: Count | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """`cross_entropy(hidden @ kernel + bias, labels)`, without an array of all logits, forward or backward.

    Blocks of samples take their turn: the logits x = h W + b of a block, its losses, and for "mean" and "sum" at once
    its gradients, ∂/∂x_j = weight · (q_j − p_j) / ln b. That makes three matrix products where the plain way makes
    three; with "none" the backward pass computes the logits again, a fourth.

    Args:
        hidden: `[*samples, features]`, real floating.
        kernel: `[features, classes]`, as a Dense layer keeps it; `embedding.T` for tied embeddings, of which no copy
            is made inside `jit`.
        labels: integer class ids `[*samples]`, or a floating distribution `[*samples, classes]`.
        bias: `[classes]`.
        base, weights, label_smoothing, z_loss, reduction: as in `cross_entropy`.
        logit_softcap: s > 0, a Python number: the logits are s · tanh((h W + b) / s).
        block_size: the samples of a block, chosen from the shapes and the platform if None. Only speed and memory
            depend on it, beyond rounding.
        axis_name: the mesh axis, or axes, over which the classes are split: bound by a `shard_map` or `vmap` around
            the call, else of the mesh in context. Class ids stay global.
        batch_axis_name: the mesh axis, or axes, over which the samples are split, those of global arrays along their
            first axis: "mean" and "sum" are then of the whole mesh, the same number on every device. Under Explicit
            axes both are known from the types.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in units of `base`, float32 or float64. The products take
        their operands in the types they come in and accumulate in float32; gradients have the type of their argument.

    Raises:
        TypeError: `hidden`, `kernel` or `bias` that are not real floating, or another wrong dtype.
        ValueError: shapes that do not fit, or a value out of range.

    Under `vmap` each example has a block, and with "mean" or "sum" a kernel gradient, of its own: rather call it once
    with leading axes.

    Source: the gradient is that of the DeepLibs softmax document. Gradients taken in the forward pass: Hsu et al. 2024,
    arXiv:2410.10989; logit softcap: Gemma Team 2024, arXiv:2408.00118.

    >>> import jax.numpy as jnp, softjax
    >>> hidden, kernel = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0, 2.0], [0.0, 4.0, 9.0]])
    >>> print(softjax.linear_cross_entropy(hidden, kernel, jnp.array([2, 1])).round(4))
    1.0872
    """
    problem, plan = arranged(
        hidden, kernel, labels, bias, weights, logit_softcap, block_size, axis_name, batch_axis_name
    )
    smoothing = checks.coefficient("label_smoothing", label_smoothing, most=1.0)
    penalty = checks.coefficient("z_loss", z_loss)
    return _linear_cross_entropy(
        problem, smoothing, penalty, plan=plan, base=checks.base(base), reduction=checks.reduction(reduction)
    )


def linear_statistics(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    logit_softcap: Number | None = None,
    block_size: Count | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Statistics:
    """`statistics(hidden @ kernel + bias, labels)`, without an array of all logits, forward or backward.

    A loss that is arithmetic on them needs four matrix products with its gradient: the backward pass computes the
    logits again. `linear_loss` needs three.

    Args:
        hidden: `[*samples, features]`, real floating.
        kernel: `[features, classes]`; `embedding.T` for tied embeddings.
        labels: integer class ids `[*samples]`, or a floating distribution `[*samples, classes]`.
        bias: `[classes]`.
        logit_softcap: s > 0, a Python number: the logits are s · tanh((h W + b) / s).
        block_size: the samples of a block, chosen from the shapes and the platform if None.
        axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        `Statistics`, each `[*samples]`, in nats, float32 or float64. What is not used costs nothing under `jit`.

    Raises:
        TypeError: `hidden`, `kernel` or `bias` that are not real floating, or another wrong dtype.
        ValueError: shapes that do not fit, or a value out of range.

    Source: the gradients are those of `statistics`.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.linear_statistics(jnp.eye(2), jnp.array([[0.0, 1.0], [2.0, 5.0]]), jnp.array([1, 0]))
    >>> print(*(f"{log_q:.4f}" for log_q in s.label_logit - s.log_normalizer))
    -0.3133 -3.0486
    """
    problem, plan = arranged(hidden, kernel, labels, bias, None, logit_softcap, block_size, axis_name, batch_axis_name)
    return _linear_statistics(problem, plan=plan)


def linear_loss(
    row_loss: Function,
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *row_args: Any,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    logit_softcap: Number | None = None,
    block_size: Count | None = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """Σ weight · row_loss(statistics, *row_args), of the statistics of hidden @ kernel + bias, without the logits.

    Any loss of a policy, a distillation or a classifier that is a function of the four `Statistics` of a row, with
    its gradient, at the price of three matrix products. Statistics that `row_loss` does not read are not computed.

    Args:
        row_loss: a function of one sample: `Statistics` of scalars, and the sample's entry of each of `row_args`, to a
            real scalar. It is mapped over the samples. It may close over arrays, and derivatives reach these (under
            Explicit axes JAX lets it close over concrete arrays only: pass traced ones as `row_args`).
        hidden: `[*samples, features]`, real floating.
        kernel: `[features, classes]`; `embedding.T` for tied embeddings.
        labels: integer class ids `[*samples]`, or a floating distribution `[*samples, classes]`.
        row_args: arrays, or pytrees of arrays, `[*samples, …]`; differentiable where they are floating.
        bias: `[classes]`.
        weights: boolean or real, broadcastable to `[*samples]`. A sample of weight 0 may hold anything.
        logit_softcap: s > 0, a Python number: the logits are s · tanh((h W + b) / s).
        block_size: the samples of a block, chosen from the shapes and the platform if None.
        axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        A scalar, float32 or float64; for a mean, divide by the sum of the weights.

    Raises:
        TypeError: `row_loss` is not a function or gives no real floating number, or a wrong dtype.
        ValueError: shapes that do not fit, or a value out of range.

    Call it under `jit`: outside, `row_loss` is traced and compiled anew at every call.

    Source: the gradients are those of `statistics`, taken in the forward pass as in Hsu et al. 2024, arXiv:2410.10989.

    >>> import jax, jax.numpy as jnp, softjax
    >>> def policy_gradient(s, advantage):
    ...     return -advantage * (s.label_logit - s.log_normalizer) - 0.01 * s.entropy
    >>> kernel, labels, advantages = jnp.array([[0.0, 1.0], [2.0, 5.0]]), jnp.array([1, 0]), jnp.array([1.0, -1.0])
    >>> loss = jax.jit(lambda h: softjax.linear_loss(policy_gradient, h, kernel, labels, advantages))
    >>> print(loss(jnp.eye(2)).round(4))
    -2.7431
    """
    if not callable(row_loss):
        raise TypeError(f"`row_loss` must be a function, got {type(row_loss).__name__}: {row_loss!r:.60}.")
    problem, plan = arranged(
        hidden, kernel, labels, bias, weights, logit_softcap, block_size, axis_name, batch_axis_name
    )
    leaves, tree = checks.row_args(row_args, problem.shape)

    def rows_loss(rows: Statistics, args: list[Array]) -> Array:
        return jax.vmap(lambda row, args: checks.row_loss_result(row_loss(row, *jax.tree.unflatten(tree, args))))(
            rows, args
        )

    def local(problem: Problem, _: Any, leaves: list[Array]) -> Array:
        # traced with arrays that vary over the mesh as the statistics and the arguments will
        number = jnp.zeros(plan.rows, plan.layer.dtype)
        like = [jnp.zeros((plan.rows, *a.shape[len(problem.shape) :]), a.dtype) for a in leaves]
        number, *like = varying_as_rows(problem, plan, leaves, [number, *like])
        function, shared = hoist(rows_loss, Statistics(*[number] * 4), like)
        _, label, mean, entropy = function.reads()[:4]
        names = plan.split.classes
        wanted = Wanted(-1, relative=False, label=label, mean=mean, entropy=entropy, names=names)
        return sum_of(problem, plan, wanted, _OfStatistics(function), shared, leaves)

    # compiled for this call alone, since the row loss may close over anything
    return jax.jit(lambda problem, leaves: on_mesh(local, problem, plan, (), leaves, P()))(problem, leaves)


@partial(jax.jit, static_argnames=("plan", "base", "reduction"))
def _linear_cross_entropy(problem, smoothing, penalty, *, plan, base, reduction):
    rows_loss = _CrossEntropy(base, smoothing is not None, penalty is not None)
    shared = [jnp.asarray(a).astype(plan.layer.dtype) for a in (smoothing, penalty) if a is not None]
    wanted = Wanted(-1, mean=smoothing is not None, names=plan.split.classes)

    def local(problem: Problem, shared: Sequence[Array], _: Any) -> Array:
        if reduction == "none":
            rows = rows_of(problem, plan, wanted)
            loss = rows_loss(shared, rows, labels_of(problem, plan), ())
            return reduce(loss, weights_of(problem, plan), "none")
        total = sum_of(problem, plan, wanted, rows_loss, shared, ())
        if reduction == "sum":
            return total
        return mean_of(total, weights_of(problem, plan), problem.samples, plan.split.samples)

    out = plan.split.result if reduction == "none" else P()
    return on_mesh(local, problem, plan, shared, (), out)


@partial(jax.jit, static_argnames="plan")
def _linear_statistics(problem, *, plan):
    def local(problem: Problem, *_: Any) -> Statistics:
        names = plan.split.classes
        wanted = Wanted(-1, relative=False, label=True, mean=True, entropy=True, names=names)
        return Statistics(*rows_of(problem, plan, wanted)[:4])

    return on_mesh(local, problem, plan, (), (), plan.split.result)


class _CrossEntropy(NamedTuple):
    """The loss of the rows of `linear_cross_entropy`; smoothing and penalty, where there are any, are shared."""

    base: float
    smoothed: bool
    penalised: bool

    def __call__(self, shared: Sequence[Array], rows: Rows, labels: Array, row_args: Sequence[Array]) -> Array:
        smoothing = shared[0] if self.smoothed else None
        penalty = shared[-1] if self.penalised else None
        return row_cross_entropy(rows, labels, smoothing, penalty, self.base)


class _OfStatistics(NamedTuple):
    """The caller's row loss, of `Statistics`; what it does not read is not there, and 0 stands for it."""

    function: Hoisted

    def __call__(self, shared: Sequence[Array], rows: Rows, labels: Array, row_args: Sequence[Array]) -> Array:
        numbers = (jnp.zeros_like(rows.log_normalizer) if number is None else number for number in rows[:4])
        return self.function(tuple(shared), Statistics(*numbers), list(row_args))
