"""The cross-entropy of logits, of a linear layer, and of two distributions."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax._api.evaluate import LayerConfig, LogitsConfig, layer_loss, logits_loss
from softjax._args import arrays, options
from softjax._args.labels import SparseLabels
from softjax._args.types import Array, ArrayLike, Axis, AxisName, Count, Float, Number, Reduction
from softjax._args.validation import check_labels
from softjax._linear.plan import LayerOptions, check_layer, make_plan
from softjax._linear.row_losses import ElementwiseLoss
from softjax._mesh.placement import split_for_logits
from softjax._rows.edges import scale_or_zero
from softjax._rows.reduction import from_nats
from softjax._rows.statistics import STATISTICS, STATISTICS_IN_CACHE, RowValues
from softjax._xla.every_mode import with_forward_mode
from softjax._xla.transpose import with_transpose


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    base: Number = 10.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    reduction: Reduction = "mean",
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """The cross-entropy of logits and labels, in hartleys by default; `base=math.e` gives nats.

        H = −Σ_j p_j log_b q_j                            with q = softmax(x) and p the distribution of the label
          = −log_b q_y = (ln Σ_j exp x_j − x_y) / ln b    for a class id y
        ∂H/∂x_j = (q_j − p_j) / ln b                      if p sums to 1, times weight / Σ weight for a mean

    Use it as the loss of a classifier or a language model whose logits fit in memory. `linear_cross_entropy` never
    materialises them.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        labels: integer class ids `[*samples]`, a floating distribution p of the shape of `logits`, or `SparseLabels`.
        base: the base b of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats. It only scales values
            and gradients by 1 / ln b.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: True for the classes that exist. The others are masked, as if
            deleted. A row with all classes masked is ignored, also in the divisor of a mean.
        weights: boolean or real, broadcastable to `[*samples]`. Samples of weight 0 are ignored, whatever they hold.
            `weights=labels != PAD` ignores padding.
        class_weights: w, boolean or real, `[classes]`, sharded as the classes are; torch's `weight`. The loss of a
            class id y becomes (1 − ε) w_y (z − x_y) + (ε / C) Σ_j w_j (z − x_j), with z = ln Σ_j exp x_j, and "mean"
            divides by Σ weight · w_y. Of other labels it is Σ_j p_j w_j (z − x_j), with p smoothed, and "mean" divides
            by Σ weight. w is a constant to every derivative, and does not scale `z_loss`.
        label_smoothing: ε in [0, 1]. The target becomes (1 − ε) · p + ε / C over the C classes that exist. May be a
            traced scalar, for schedules; the value of a traced scalar is not checked.
        z_loss: the coefficient c ≥ 0 of c · (ln Σ_j exp x_j)², which is added to the loss of each sample. `base` does
            not scale it. May be a traced scalar.
        reduction: "mean" is Σ weight · loss / Σ weight, or 0 when Σ weight is 0. "sum" is Σ weight · loss. "none" is
            weight · loss, one value per sample.
        axis_name: mesh axes that shard the class dimension. They are bound by a `shard_map` or `vmap` around the call,
            or else belong to the mesh in context. Class ids stay global. Logits that are replicated over these axes
            raise an error. Where types do not show the replication (`check_vma=False`, `vmap`), the loss is too large
            by log_b of the number of devices.
        batch_axis_name: mesh axes that shard the samples, along the first axis of global arrays. "mean" and "sum" then
            cover the whole mesh and are equal on every device. Inside a `shard_map` with `check_vma=False` or a `pmap`,
            gradients are those of the loss summed over the devices: apply `pmean` to gradients of replicated arrays,
            and divide gradients of sharded arrays by the number of devices.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in units of `base`. The dtype is float64 if `logits` or a
        distribution are float64, else float32. A class id out of range gives NaN with zero gradient. `help(softjax)`
        lists all edge cases.

    Raises:
        TypeError: `logits` are not real floating, `labels` are neither integer nor floating, or `where` is not boolean.
        ValueError: a shape, `axis`, `base`, `label_smoothing`, `z_loss` or `reduction` is not valid.

    Source: the DeepLibs softmax document, with its gradient corrected. Label smoothing: Szegedy et al. 2016,
    arXiv:1512.00567. z-loss: Chowdhery et al. 2022, arXiv:2204.02311.

    >>> import jax.numpy as jnp, softjax
    >>> logits = jnp.array([[0.0, 10.0, 15.0, 18.0, 20.0], [0.0, 10.0, 15.0, 18.0, 20.0]])
    >>> print(softjax.cross_entropy(logits, jnp.array([4, 2]), reduction="none").round(5))
    [0.05771 2.22918]
    """
    logits, axis = arrays.logits(logits, axis)
    labels = check_labels(labels, logits.shape, axis)
    where, weights = arrays.where(where, logits), arrays.weights(weights, arrays.samples_shape(logits.shape, axis))
    coefficients = Coefficients.checked(label_smoothing, z_loss)
    class_weights = jax.lax.stop_gradient(arrays.class_weights(class_weights, logits.shape[axis]))
    split = split_for_logits(axis_name, batch_axis_name, logits, axis)
    row_loss = ElementwiseLoss(smoothed_loss, options.base(base))
    config = LogitsConfig(axis, split, STATISTICS, row_loss, options.reduction(reduction))
    return logits_loss(config, logits, labels, where, weights, coefficients, class_weights)


class Coefficients(NamedTuple):
    """Numbers or traced scalars; None for 0."""

    smoothing: Any
    z_loss: Any

    @classmethod
    def checked(cls, label_smoothing: Any, z_loss: Any) -> "Coefficients":
        smoothing = options.coefficient("label_smoothing", label_smoothing, maximum=1.0)
        return cls(smoothing, options.coefficient("z_loss", z_loss))


def smoothed_loss(
    coefficients: Coefficients, row: RowValues, base: float, label_weights: Array | None = None
) -> Float[Array, "*samples"]:
    """(1 − ε) w_y h + ε u in units of the base, plus the penalty c z²."""
    (smoothing, z_loss), cross_entropy = coefficients, row.statistics.cross_entropy
    loss = cross_entropy if label_weights is None else scale_or_zero(label_weights, cross_entropy)
    if smoothing is not None:
        smoothing = jnp.asarray(smoothing, loss.dtype)
        loss = scale_or_zero(1 - smoothing, loss) + scale_or_zero(smoothing, row.uniform)
    loss = from_nats(loss, base)
    if z_loss is not None:
        loss = loss + scale_or_zero(jnp.asarray(z_loss, loss.dtype), row.statistics.log_normalizer**2)
    # The loss of an id out of range is NaN with gradient 0, whatever is added to it.
    is_plain = coefficients == Coefficients(None, None)
    return loss if is_plain else jnp.where(jnp.isnan(cross_entropy), cross_entropy, loss)


def distribution_cross_entropy(p: ArrayLike, q: ArrayLike, *, base: Number = 10.0, axis: Axis = -1) -> Array:
    """The cross-entropy of two probability distributions, H(p, q) = −Σ_i p_i log_b q_i, with 0 · log 0 = 0.

    The derivatives are ∂H/∂q_i = −p_i / (q_i ln b), 0 where p_i is 0, and ∂H/∂p_i = −log_b q_i. Use it only where no
    logits are available. `cross_entropy` never takes the logarithm of a rounded probability.

    Args:
        p: the "correct" distribution, real floating, `[*samples, classes]`.
        q: the "wrong" distribution, real floating, of the shape of `p`.
        base: as in `cross_entropy`.
        axis: the class axis of `p` and `q`.

    Returns:
        One value per sample, `[*samples]`, in units of `base`, float64 if `p` or `q` is float64, else float32. It is
        +inf where p_i > 0 and q_i = 0.

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
    wide_p, wide_q = (a.astype(arrays.accumulation_dtype(p, q)) for a in (p, q))
    has_mass = wide_p != 0
    return -jnp.sum(wide_p * jnp.log(jnp.where(has_mass, wide_q, 1)), axis), (p, q)


def _backward(axis, residuals, g):
    p, q = residuals
    wide_p, wide_q, g = p.astype(g.dtype), q.astype(g.dtype), jnp.expand_dims(g, axis)
    has_mass = wide_p != 0
    # ∂H/∂p_i = −ln q_i    ∂H/∂q_i = −p_i / q_i, and 0 where p_i is 0
    is_zero = wide_q == 0
    dp = -jnp.log(jnp.where(is_zero, 1, wide_q)) * g + _infinite_where(is_zero, g)
    dq = -jnp.where(has_mass, wide_p / jnp.where(has_mass, wide_q, 1), 0) * g
    return dp.astype(p.dtype), dq.astype(q.dtype)


def _infinite_where(condition, g):
    """g · inf where the condition holds, but 0 where g is 0; in forward mode g is a tangent of p."""

    def scale(g):
        return jnp.where(condition & (g != 0), jnp.inf * jnp.sign(g), 0)

    return with_transpose(scale, scale, jnp.broadcast_to(g, condition.shape))


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
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    logit_softcap: Number | None = None,
    temperature: ArrayLike = 1.0,
    reduction: Reduction = "mean",
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """The cross-entropy of `hidden @ kernel + bias`, with the logits never materialised, forward or backward.

        loss = cross_entropy(x, labels)        with x = hidden @ kernel + bias

    Use it as the loss of a language model, whose logits are often its largest array. It computes the logits x in chunks
    of samples. For "mean" and "sum" it computes the gradients of a chunk while its logits are in memory. Value and
    gradient take three matmuls, as in the unfused baseline. For "none" the backward pass computes the logits again, a
    fourth matmul.

    Samples of weight 0 cost no matmul, wherever in the batch they are: the others are packed together, in their order,
    and only their chunks are computed. This needs no dynamic shapes. If the weights are differentiated, every sample is
    computed, because its loss is the derivative with respect to its weight.

    Under `vmap` each example has a chunk and a kernel gradient of its own. One call with leading axes needs less
    memory.

    Args:
        hidden: hidden states `[*samples, features]`, real floating.
        kernel: `[features, classes]`, as a Dense layer stores it. For tied embeddings pass `embedding.T`, which is not
            copied inside `jit`.
        labels: integer class ids `[*samples]`, a floating distribution `[*samples, classes]`, or `SparseLabels`.
        bias: `[classes]`.
        where: boolean, `[classes]` or broadcastable to it: True for the classes that exist. The others are masked, as
            if deleted, but their kernel entries must be finite.
        base, weights, class_weights, label_smoothing, z_loss, reduction: as in `cross_entropy`.
        logit_softcap: s > 0, a Python number. The logits become s · tanh((hidden @ kernel + bias) / s).
        temperature: T > 0, which divides the logits after bias and softcap: a number, a traced scalar, or one per
            sample, broadcastable to `[*samples]`. The derivative with respect to it exists. The value of an array is
            not checked, and a sample of weight 0 may have any.
        block_size: samples per chunk. None chooses it from the shapes and the platform. It changes speed and memory,
            and values only by rounding.
        precision: the precision of every matmul, as in `jax.numpy.matmul`. None takes `jax.default_matmul_precision` at
            the time of the call, for the backward pass, too.
        axis_name: as in `cross_entropy`. A kernel that is replicated over these axes raises an error.
        batch_axis_name: as in `cross_entropy`. Under Explicit mesh axes, both names are inferred from the array types.
            A kernel that is also sharded along its features is gathered along them once per call. Its gradient is then
            reduce-scattered to the sharding of the kernel. Auto axes do not show in the types: there the full kernel
            gradient is summed, and `out_shardings` decides its sharding. Under Auto axes of several devices, give both
            names, with `jax.set_mesh`. Without them the result is right, but XLA may all-reduce each chunk of logits,
            or compute all samples on every device.

    Returns:
        A scalar, or `[*samples]` if `reduction` is "none", in units of `base`, float32 or float64. Matmuls take their
        operands in the dtypes of the arguments and accumulate in float32. A gradient has the dtype of its argument.

    Raises:
        TypeError: `hidden`, `kernel` or `bias` is not real floating, or another dtype is wrong.
        ValueError: a shape or a value is not valid.

    Source: the gradient is that of the DeepLibs softmax document. Gradients in the forward pass: Hsu et al. 2024,
    arXiv:2410.10989. Logit softcap: Gemma Team 2024, arXiv:2408.00118.

    >>> import jax.numpy as jnp, softjax
    >>> hidden, kernel = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0, 2.0], [0.0, 4.0, 9.0]])
    >>> print(softjax.linear_cross_entropy(hidden, kernel, jnp.array([2, 1])).round(4))
    1.0872
    """
    layer = check_layer(hidden, kernel, bias)
    labels = check_labels(labels, layer.logits_shape, name="hidden @ kernel")
    options_of_layer = where, logit_softcap, block_size, precision, axis_name, batch_axis_name
    given = LayerOptions(*options_of_layer, weights, temperature, class_weights)
    plan, inputs = make_plan(layer, labels, given)
    coefficients = Coefficients.checked(label_smoothing, z_loss)
    row_loss = ElementwiseLoss(smoothed_loss, options.base(base))
    config = LayerConfig(plan, STATISTICS_IN_CACHE, row_loss, options.reduction(reduction))
    return layer_loss(config, inputs, coefficients)[0]
