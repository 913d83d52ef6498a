"""Row statistics of logits, and of a linear layer."""

from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from softjax._api.evaluate import layer_rows, logits_rows
from softjax._args import arrays
from softjax._args.labels import SparseLabels
from softjax._args.types import Array, ArrayLike, Axis, AxisName, Count, Number
from softjax._args.validation import check_labels
from softjax._linear.plan import LayerInputs, LayerOptions, Plan, check_layer, make_plan
from softjax._mesh.axes import ClassAxis
from softjax._mesh.placement import split_for_logits
from softjax._rows.statistics import STATISTICS, STATISTICS_IN_CACHE, RowValues, Statistics, fill_empty_rows


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
    logits, axis = arrays.logits(logits, axis)
    labels = check_labels(labels, logits.shape, axis)
    split = split_for_logits(axis_name, None, logits, axis)
    # A program does not compute what nobody reads; an eager call computes all statistics, each in a pass of its own.
    rule = STATISTICS if isinstance(logits, Tracer) else STATISTICS_IN_CACHE
    return logits_rows(_logits_statistics, axis, split, rule, logits, labels, arrays.where(where, logits))


def _logits_statistics(classes: ClassAxis, values: RowValues, any_class: Array | None) -> Statistics:
    statistics = values.statistics
    return statistics if any_class is None else fill_empty_rows(statistics, classes.squeeze(~any_class))


def linear_statistics(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    logit_softcap: Number | None = None,
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Statistics:
    """`statistics(hidden @ kernel + bias, labels)`, without an array of all logits, forward or backward.

    A loss of them takes four matrix products with its gradient, since logits are computed again; `linear_loss` three.

    Args:
        hidden: `[*samples, features]`, real floating.
        kernel: `[features, classes]`; `embedding.T` for tied embeddings.
        labels: integer class ids `[*samples]`, a floating distribution `[*samples, classes]`, or `SparseLabels`.
        bias: `[classes]`.
        where: boolean, `[classes]` or broadcastable to it: the classes that exist, as if the others had been deleted
            (what the kernel holds for them must be finite).
        logit_softcap: s > 0, a Python number: the logits are s · tanh((h W + b) / s).
        block_size: the samples of a block, chosen from the shapes and the platform if None.
        precision: as in `linear_cross_entropy`.
        axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        `Statistics`, each `[*samples]`, in nats, float32 or float64. What is not used costs nothing under `jit`.

    Raises:
        TypeError: `hidden`, `kernel` or `bias` that are not real floating, or another wrong dtype.
        ValueError: shapes that do not fit, or a value out of range.

    Source: the gradients are those of `statistics`.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.linear_statistics(jnp.eye(2), jnp.array([[0.0, 1.0], [2.0, 5.0]]), jnp.array([1, 0]))
    >>> print(*(f"{nats:.4f}" for nats in s.cross_entropy))
    0.3133 3.0486
    """
    layer = check_layer(hidden, kernel, bias)
    labels = check_labels(labels, layer.logits_shape, name="hidden @ kernel")
    given = LayerOptions(where, logit_softcap, block_size, precision, axis_name, batch_axis_name)
    plan, inputs = make_plan(layer, labels, given)
    return layer_rows(_layer_statistics, plan, inputs)


def _layer_statistics(plan: Plan, inputs: LayerInputs, values: RowValues) -> Statistics:
    statistics, exists = values.statistics, inputs.parameters.exists
    if exists is None:
        return statistics
    return fill_empty_rows(statistics, jnp.broadcast_to(~plan.any_class(exists), inputs.shape))
