"""The cross-entropy of logits, of a linear layer, and of two distributions."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from softjax._api.evaluate import LogitsConfig, logits_loss
from softjax._args import arrays, options
from softjax._args.labels import SparseLabels
from softjax._args.types import Array, ArrayLike, Axis, AxisName, Count, Float, Number, Reduction
from softjax._args.validation import check_labels
from softjax._linear.fused import fused_loss_sum
from softjax._linear.plan import Plan, make_plan
from softjax._linear.recomputed import rows_in_shape
from softjax._mesh.placement import split_for_logits
from softjax._rows.edges import scale_or_zero
from softjax._rows.reduction import from_nats, reduce
from softjax._rows.statistics import STATISTICS, STATISTICS_IN_CACHE, RowValues
from softjax._xla.every_mode import with_forward_mode


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    base: Number = 10.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    reduction: Reduction = "mean",
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """−Σ_j p_j log_b softmax(x)_j, which for a class id y is −log_b softmax(x)_y = (ln Σ_j exp x_j − x_y) / ln b.

    The gradient is analytic: ∂/∂x_j = (q_j − p_j) / ln b for each sample, with q = softmax(x), times weight / Σ weight
    in the mean.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        labels: integer class ids `[*samples]`, a floating distribution p of the shape of `logits`, or `SparseLabels`.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats. It scales values and gradients
            by 1 / ln b, nothing else.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: the classes that exist, as if the others had been deleted. A row
            that it empties is not counted, in the divisor of a mean either.
        weights: boolean or real, broadcastable to `[*samples]`. A sample of weight 0 is not counted, whatever it
            holds: `weights=labels != PAD` ignores padding, `class_weights[labels]` weighs classes.
        label_smoothing: ε in [0, 1]: the target becomes (1 − ε) · p + ε / C over the C classes that exist. It and
            `z_loss` may be traced scalars, for schedules; a traced value is not checked.
        z_loss: the coefficient c ≥ 0 of c · (ln Σ_j exp x_j)², added to each sample's loss; `base` does not scale it.
        reduction: "mean" is Σ weight · loss / Σ weight, 0 when Σ weight is 0; "sum" is Σ weight · loss; "none" is
            weight · loss, one for each sample.
        axis_name: the mesh axis, or axes, over which the classes are split: bound by a `shard_map` or `vmap` around
            the call, else of the mesh in context. Class ids stay global. Logits that are the same on all its devices
            are refused; where types do not tell (`check_vma=False`, `vmap`), the loss would be log_b of the number of
            devices too large.
        batch_axis_name: the mesh axis, or axes, over which the samples are split, those of global arrays along their
            first axis: "mean" and "sum" are then of the whole mesh, the same number on every device. Gradients taken
            inside a `shard_map` with `check_vma=False`, or a `pmap`, are those of the sum over the devices: take
            `pmean` of what every device holds whole, and divide what is split by the number of devices.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in units of `base`, float32, or float64 if `logits` or a
        distribution are float64. A sample with a class id out of range has loss NaN and gradient 0.

    Raises:
        TypeError: `logits` that are not real floating, labels neither integer nor floating, `where` not boolean.
        ValueError: a shape, `axis`, `base`, `label_smoothing`, `z_loss` or `reduction` that does not fit.

    Source: the DeepLibs softmax document, with its gradient corrected. Label smoothing: Szegedy et al. 2016,
    arXiv:1512.00567; z-loss: Chowdhery et al. 2022, arXiv:2204.02311.

    >>> import jax.numpy as jnp, softjax
    >>> logits = jnp.array([[0.0, 10.0, 15.0, 18.0, 20.0], [0.0, 10.0, 15.0, 18.0, 20.0]])
    >>> print(softjax.cross_entropy(logits, jnp.array([4, 2]), reduction="none").round(5))
    [0.05771 2.22918]
    """
    logits, axis = arrays.logits(logits, axis)
    labels = check_labels(labels, logits.shape, axis)
    where, weights = arrays.where(where, logits), arrays.weights(weights, arrays.samples_shape(logits.shape, axis))
    coefficients = Coefficients.checked(label_smoothing, z_loss)
    split = split_for_logits(axis_name, batch_axis_name, logits, axis)
    static = LogitsConfig(axis, split, STATISTICS, CrossEntropy(options.base(base)), options.reduction(reduction))
    return logits_loss(static, logits, labels, where, weights, coefficients)


class Coefficients(NamedTuple):
    """Numbers, or traced scalars; None for 0."""

    smoothing: Any
    z_loss: Any

    @classmethod
    def checked(cls, label_smoothing: Any, z_loss: Any) -> "Coefficients":
        smoothing = options.coefficient("label_smoothing", label_smoothing, maximum=1.0)
        return cls(smoothing, options.coefficient("z_loss", z_loss))


class CrossEntropy(NamedTuple):
    """A loss of rows: what all of them share, and their numbers, to their losses and what is measured beside them."""

    base: float

    def __call__(self, coefficients: Coefficients, row: RowValues, _: Any = None) -> tuple[Array, None]:
        return smoothed_loss(row, coefficients, self.base), None


def smoothed_loss(row: RowValues, coefficients: Coefficients, base: float) -> Float[Array, "*samples"]:
    """The loss of each row: (1 − ε) h + ε u in units of the base, and its penalty c z²."""
    (smoothing, z_loss), hard = coefficients, row.statistics.cross_entropy
    loss = hard
    if smoothing is not None:
        smoothing = jnp.asarray(smoothing, loss.dtype)
        loss = scale_or_zero(1 - smoothing, loss) + scale_or_zero(smoothing, row.uniform)
    loss = from_nats(loss, base)
    if z_loss is not None:
        loss = loss + scale_or_zero(jnp.asarray(z_loss, loss.dtype), row.statistics.log_normalizer**2)
    # an id that is no class has NaN and gradient 0, whatever else is added
    return loss if coefficients == Coefficients(None, None) else jnp.where(jnp.isnan(hard), hard, loss)


def distribution_cross_entropy(p: ArrayLike, q: ArrayLike, *, base: Number = 10.0, axis: Axis = -1) -> Array:
    """H(p, q) = −Σ_i p_i log_b q_i of two probability distributions, with 0 · log 0 = 0.

    For logits use `cross_entropy`, which never takes the logarithm of a rounded probability.

    Args:
        p: the "correct" distribution, real floating, `[*samples, classes]`.
        q: the "wrong" distribution, real floating, of the shape of `p`.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats.
        axis: the class axis of both.

    Returns:
        One number for each sample, `[*samples]`, float32, or float64 if either is float64; +inf where p_i > 0 and
        q_i = 0. Its gradient is −p_i / (q_i ln b) with respect to q_i, 0 where p_i is 0, and −log_b q_i with respect
        to p_i.

    Raises:
        TypeError: `p` or `q` is not real floating, or `base` is not a number.
        ValueError: the shapes differ, `axis` is not an axis, or `base` is out of range.

    Source: H(p, q) and its derivative in the DeepLibs softmax document.

    >>> import jax.numpy as jnp, softjax
    >>> p, q = jnp.array([0.0, 0.0, 0.0, 0.0, 1.0]), jnp.array([0.0, 0.0, 0.0059, 0.1185, 0.8756])
    >>> print(softjax.distribution_cross_entropy(p, q).round(4))
    0.0577
    """
    p, q = arrays.floating("p", p), arrays.floating("q", q)
    if p.shape != q.shape:
        raise ValueError(f"`p` and `q` must have one shape, got {p.shape} and {q.shape}.")
    return _distribution_cross_entropy((arrays.class_axis("p", p, axis), options.base(base)), p, q)


@partial(jax.jit, static_argnums=0)
def _distribution_cross_entropy(static, p, q):
    axis, base = static
    return from_nats(_nats(axis, p, q), base)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(axis, p, q):
    return _forward(axis, p, q)[0]


def _forward(axis, p, q):
    ps, qs = (a.astype(arrays.accumulation_dtype(p, q)) for a in (p, q))
    massive = ps != 0
    return -jnp.sum(ps * jnp.log(jnp.where(massive, qs, 1)), axis), (p, q)


def _backward(axis, residuals, g):
    p, q = residuals
    ps, qs, g = p.astype(g.dtype), q.astype(g.dtype), jnp.expand_dims(g, axis)
    massive = ps != 0
    # ∂H/∂p_i = −ln q_i    ∂H/∂q_i = −p_i / q_i, and 0 where p_i is 0
    dp = -jnp.log(qs) * g
    dq = -jnp.where(massive, ps / jnp.where(massive, qs, 1), 0) * g
    return dp.astype(p.dtype), dq.astype(q.dtype)


_cross_entropy.defvjp(_forward, _backward)


_nats = with_forward_mode(_cross_entropy)


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
    layer_arrays, names = {"bias": bias, "where": where, "weights": weights}, (axis_name, batch_axis_name)
    labelled = partial(check_labels, labels, name="hidden @ kernel")
    plan, problem = make_plan(hidden, kernel, labelled, names=names, **layer_arrays, **given)
    coefficients = Coefficients.checked(label_smoothing, z_loss)
    static = _LayerConfig(plan, options.base(base), options.reduction(reduction))
    return _linear_cross_entropy(static, problem, coefficients)


class _LayerConfig(NamedTuple):
    plan: Plan
    base: float
    reduction: str


@partial(jax.jit, static_argnums=0)
def _linear_cross_entropy(static, problem, coefficients):
    coefficients = jax.tree.map(lambda a: jnp.asarray(a).astype(static.plan.layer.dtype), coefficients)
    out = static.plan.split.output_spec if static.reduction == "none" else P()
    local = _local_losses if static.reduction == "none" else _local_sum
    over = static.plan.shard_map(partial(local, static), problem, (coefficients, ()), out)
    return over(problem, coefficients, ())


def _local_losses(static, problem, coefficients, _):
    plan = static.plan
    row = rows_in_shape(plan.chunk_config(STATISTICS_IN_CACHE), plan.into_chunks(problem), problem.shape)
    return reduce(smoothed_loss(row, coefficients, static.base), plan.weights(problem), "none")


def _local_sum(static, problem, coefficients, _):
    plan = static.plan
    summed = plan.chunk_config(STATISTICS_IN_CACHE)._replace(row_loss=CrossEntropy(static.base))
    total, _ = fused_loss_sum(summed, *plan.into_full_chunks(problem), coefficients)
    return plan.reduce(problem, total, static.reduction)
