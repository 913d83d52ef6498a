"""The cross-entropy of labels and softmax(logits), and the numbers of a row that it is made of."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from softjax import _checks as checks
from softjax import _options as options
from softjax._block import block_of
from softjax._dense import Static, loss_of_logits
from softjax._labels import Labels, SparseLabels
from softjax._placement import split_of_logits
from softjax._reduce import from_nats, times
from softjax._rows import MANY, PAGE, Row, Statistics, without_classes
from softjax._types import Array, ArrayLike, Axis, AxisName, Float, Number, Reduction
from softjax._validation import checked as checked_labels


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
    logits, axis = checks.logits(logits, axis)
    labels = checked_labels(labels, logits.shape, axis)
    where, weights = checks.where(where, logits), checks.weights(weights, checks.samples(logits.shape, axis))
    coefficients = Coefficients.checked(label_smoothing, z_loss)
    split = split_of_logits(axis_name, batch_axis_name, logits, axis)
    static = Static(axis, split, PAGE, CrossEntropy(options.base(base)), options.reduction(reduction))
    return loss_of_logits(static, logits, labels, where, weights, coefficients)


def statistics(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Statistics:
    """The numbers of each sample that the losses of this package are arithmetic on: ln Σ exp x, −ln q_y, the entropy …

    Read them by name. What is not used costs nothing under `jit`, forward or backward; an eager call computes all. The
    log-probability of the label is −`cross_entropy`, exact for confident rows and near logits of 1e4, where
    `label_logit` − `log_normalizer` loses its digits.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        labels: integer class ids `[*samples]`, a floating distribution of the shape of `logits`, or `SparseLabels`.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: the classes that exist.
        axis_name: the mesh axis, or axes, over which the classes are split: bound by a `shard_map` or `vmap` around
            the call, else of the mesh in context. Class ids stay global.

    Returns:
        `Statistics`, each `[*samples]`, in nats, float32, or float64 if `logits` or a distribution are float64; the
        `prediction` and the `label_rank` are int32. For a class id out of range `label_logit` and `cross_entropy` are
        NaN, with slope 0, and the rank is −1; for a class that `where` leaves out they are −inf, +inf and 2³¹ − 1. A
        row without classes has `log_normalizer` and `max_logit` −inf, prediction and rank −1, and 0 elsewhere.

    Raises:
        TypeError: `logits` that are not real floating, labels neither integer nor floating, `where` not boolean.
        ValueError: a shape or an axis that does not fit.

    Source: the cross-entropy and its gradient q_j P − p_j are those of the DeepLibs softmax document; each field's
    formula and derivative stand in `Statistics` and at the head of `softjax/_rows.py`.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([0.0, 10.0, 15.0, 18.0, 20.0]), jnp.array(4))
    >>> print(f"{-s.cross_entropy:.4f} {s.mean_logit:.1f} {s.entropy:.4f} {s.prediction} {s.label_rank}")
    -0.1329 12.6 0.3998 4 0
    """
    logits, axis = checks.logits(logits, axis)
    labels = checked_labels(labels, logits.shape, axis)
    split = split_of_logits(axis_name, None, logits, axis)
    page = PAGE if isinstance(logits, Tracer) else MANY  # traced, what nobody reads is not computed
    return _statistics((axis, split, page), logits, labels, checks.where(where, logits))


@partial(jax.jit, static_argnums=0)
def _statistics(static, logits, labels, where):
    axis, split, page = static

    def local(logits: Array, labels: Labels, where: Array | None) -> Statistics:
        classes, logits, target, where = split.dense(logits, labels, where, axis)
        some, exist = (None, None) if where is None else (classes.any(where), classes.nonempty(where))
        block = block_of(classes, logits, target, exist, some)
        row = page.numbers(classes, block).statistics
        return row if where is None else without_classes(row, classes.number(~classes.any(where)))

    return split.over(local, split.of_dense(logits, labels, where, axis), split.result)(logits, labels, where)


class Coefficients(NamedTuple):
    """Numbers, or traced scalars; None for 0."""

    smoothing: Any
    z_loss: Any

    @classmethod
    def checked(cls, label_smoothing: Any, z_loss: Any) -> "Coefficients":
        smoothing = options.coefficient("label_smoothing", label_smoothing, most=1.0)
        return cls(smoothing, options.coefficient("z_loss", z_loss))


class CrossEntropy(NamedTuple):
    """A loss of rows: what all of them share, and their numbers, to their losses and what is measured beside them."""

    base: float

    def __call__(self, coefficients: Coefficients, row: Row, _: Any = None) -> tuple[Array, None]:
        return loss_of_row(row, coefficients, self.base), None


def loss_of_row(row: Row, coefficients: Coefficients, base: float) -> Float[Array, "*samples"]:
    """The loss of each row: (1 − ε) h + ε u in units of the base, and its penalty c z²."""
    (smoothing, z_loss), hard = coefficients, row.statistics.cross_entropy
    loss = hard
    if smoothing is not None:
        smoothing = jnp.asarray(smoothing, loss.dtype)
        loss = times(1 - smoothing, loss) + times(smoothing, row.uniform)
    loss = from_nats(loss, base)
    if z_loss is not None:
        loss = loss + times(jnp.asarray(z_loss, loss.dtype), row.statistics.log_normalizer**2)
    # an id that is no class has NaN and gradient 0, whatever else is added
    return loss if coefficients == Coefficients(None, None) else jnp.where(jnp.isnan(hard), hard, loss)
