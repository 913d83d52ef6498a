"""The cross-entropy of labels and softmax(logits)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from softjax import _checks as checks
from softjax import _labels
from softjax import _mesh as mesh
from softjax._reduce import reduce
from softjax._row_loss import row_cross_entropy
from softjax._split import Split, split_of_logits
from softjax._statistics import Wanted, exists, row_statistics
from softjax._types import Array, ArrayLike, Axis, AxisName, Number, Reduction


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
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
        labels: integer class ids `[*samples]`, or a floating distribution p of the shape of `logits`.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats. It scales values and gradients
            by 1 / ln b, nothing else.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: the classes that exist, as if the others had been deleted.
        weights: boolean or real, broadcastable to `[*samples]`. A sample of weight 0 is not counted, whatever it
            holds: `weights=labels != PAD` ignores padding, `class_weights[labels]` weighs classes.
        label_smoothing: ε in [0, 1]: the target becomes (1 − ε) · p + ε / C over the C classes that exist. It and
            `z_loss` may be traced scalars, for schedules; a traced value is not checked.
        z_loss: the coefficient c ≥ 0 of c · (ln Σ_j exp x_j)², added to each sample's loss; `base` does not scale it.
        reduction: "mean" is Σ weight · loss / Σ weight, 0 when Σ weight is 0; "sum" is Σ weight · loss; "none" is
            weight · loss, one for each sample.
        axis_name: the mesh axis, or axes, over which the classes are split: bound by a `shard_map` or `vmap` around
            the call, else of the mesh in context. Class ids stay global.
        batch_axis_name: the mesh axis, or axes, over which the samples are split, those of global arrays along their
            first axis: "mean" and "sum" are then of the whole mesh, the same number on every device.

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
    logits, axis = checks.logits(logits, axis)
    labels = checks.labels(labels, logits.shape, axis)
    return _cross_entropy(
        logits,
        labels,
        checks.where(where, logits),
        checks.weights(weights, checks.samples(logits.shape, axis)),
        checks.coefficient("label_smoothing", label_smoothing, most=1.0),
        checks.coefficient("z_loss", z_loss),
        static=_Static(
            axis,
            checks.base(base),
            checks.reduction(reduction),
            split_of_logits(axis_name, batch_axis_name, logits, axis),
        ),
    )


class _Static(NamedTuple):
    axis: int
    base: float
    reduction: str
    split: Split


@partial(jax.jit, static_argnames="static")
def _cross_entropy(logits, labels, where, weights, smoothing, z_loss, *, static):
    split, axis = static.split, static.axis
    specs = (
        split.of_logits(logits, axis),
        split.of_labels(labels, axis),
        split.of_logits(where, axis),
        split.of_samples(weights),
        P(),
        P(),
    )
    out = split.result if static.reduction == "none" else P()
    return split.over(partial(_local, static), (logits, labels, where, weights, smoothing, z_loss), specs, out)


def _local(static, logits, labels, where, weights, smoothing, z_loss):
    axis, names = static.axis, static.split.classes
    logits, where = static.split.gathered(logits, axis), static.split.gathered(where, axis)
    labels = labels if _labels.is_ids(labels) else static.split.gathered(labels, axis)
    wanted = Wanted(axis, mean=smoothing is not None, names=names)
    if weights is not None:
        weights = jnp.broadcast_to(weights, checks.samples(logits.shape, axis))
    weighted = None if weights is None else weights.astype(bool)
    if _labels.is_ids(labels):
        labels = _labels.canonical(labels, logits.shape[axis] * mesh.size(names))
    rows = row_statistics(wanted, logits, labels, where, weighted)
    loss = row_cross_entropy(rows, labels, smoothing, z_loss, static.base)
    if where is not None:
        loss = jnp.where(jnp.squeeze(exists(where, axis, names), axis), loss, 0)
    weights = None if weights is None else weights.astype(loss.dtype)
    return reduce(loss, weights, static.reduction, static.split.samples)
