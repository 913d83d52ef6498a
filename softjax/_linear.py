"""The last linear layer and its loss, without the logits."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from softjax import _options as options
from softjax._cross_entropy import Coefficients, CrossEntropy, loss_of_row
from softjax._labels import SparseLabels
from softjax._loss_sum import loss_sum, rows_of
from softjax._problem import Plan, arranged
from softjax._reduce import reduce
from softjax._rows import MANY
from softjax._types import Array, ArrayLike, AxisName, Count, Number, Reduction
from softjax._validation import checked


def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    base: Number = 10.0,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    logit_softcap: Number | None = None,
    reduction: Reduction = "mean",
    block_size: Count | None = None,
    precision: Any = None,
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
        labels: integer class ids `[*samples]`, a floating distribution `[*samples, classes]`, or `SparseLabels`.
        bias: `[classes]`.
        where: boolean, `[classes]` or broadcastable to it: the classes that exist, as if the others had been deleted
            (what the kernel holds for them must be finite).
        base, weights, label_smoothing, z_loss, reduction: as in `cross_entropy`.
        logit_softcap: s > 0, a Python number: the logits are s · tanh((h W + b) / s).
        block_size: the samples of a block, chosen from the shapes and the platform if None. Only speed and memory
            depend on it, beyond rounding.
        precision: of every matrix product, as in `jax.numpy.matmul`; None takes `jax.default_matmul_precision` as it
            stands where the function is called, for the backward pass too.
        axis_name: the mesh axis, or axes, over which the classes are split: bound by a `shard_map` or `vmap` around
            the call, else of the mesh in context. Class ids stay global. A kernel that is the same on all its devices
            is refused, as in `cross_entropy`.
        batch_axis_name: the mesh axis, or axes, over which the samples are split, those of global arrays along their
            first axis: "mean" and "sum" are then of the whole mesh, the same number on every device. Under Explicit
            axes both are known from the types, and a kernel that is split along its features, too, is gathered along
            them once a call, and its gradient reduce-scattered to where it lies. Auto axes do not tell: there the
            gradient is summed whole, and lies as `out_shardings` says. Gradients taken inside a `shard_map` with
            `check_vma=False`, or a `pmap`, are as in `cross_entropy`.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in units of `base`, float32 or float64. The products take
        their operands in the types they come in and accumulate in float32; gradients have the type of their argument.

    Raises:
        TypeError: `hidden`, `kernel` or `bias` that are not real floating, or another wrong dtype.
        ValueError: shapes that do not fit, or a value out of range.

    Under `vmap` each example has a block and a kernel gradient of its own: rather call it once with leading axes.

    Source: the gradient is that of the DeepLibs softmax document. Gradients taken in the forward pass: Hsu et al. 2024,
    arXiv:2410.10989; logit softcap: Gemma Team 2024, arXiv:2408.00118.

    >>> import jax.numpy as jnp, softjax
    >>> hidden, kernel = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0, 2.0], [0.0, 4.0, 9.0]])
    >>> print(softjax.linear_cross_entropy(hidden, kernel, jnp.array([2, 1])).round(4))
    1.0872
    """
    given = {"logit_softcap": logit_softcap, "block_size": block_size, "precision": precision}
    arrays, names = {"bias": bias, "where": where, "weights": weights}, (axis_name, batch_axis_name)
    labelled = partial(checked, labels, name="hidden @ kernel")
    plan, problem = arranged(hidden, kernel, labelled, names=names, **arrays, **given)
    coefficients = Coefficients.checked(label_smoothing, z_loss)
    static = _Static(plan, options.base(base), options.reduction(reduction))
    return _linear_cross_entropy(static, problem, coefficients)


class _Static(NamedTuple):
    plan: Plan
    base: float
    reduction: str


@partial(jax.jit, static_argnums=0)
def _linear_cross_entropy(static, problem, coefficients):
    coefficients = jax.tree.map(lambda a: jnp.asarray(a).astype(static.plan.layer.dtype), coefficients)
    out = static.plan.split.result if static.reduction == "none" else P()
    local = _local_losses if static.reduction == "none" else _local_sum
    over = static.plan.over_devices(partial(local, static), problem, (coefficients, ()), out)
    return over(problem, coefficients, ())


def _local_losses(static, problem, coefficients, _):
    plan = static.plan
    row = rows_of(plan.static(MANY), plan.blocks(problem), problem.shape)
    return reduce(loss_of_row(row, coefficients, static.base), plan.weights(problem), "none")


def _local_sum(static, problem, coefficients, _):
    plan = static.plan
    summed = plan.static(MANY)._replace(row_loss=CrossEntropy(static.base))
    total, _ = loss_sum(summed, *plan.filled(problem), coefficients)
    return plan.reduced(problem, total, static.reduction)
