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
from softjax._rows.statistics import (
    STATISTICS_IF_READ,
    STATISTICS_IF_READ_IN_CACHE,
    RowValues,
    Statistics,
    fill_empty_rows,
)


def statistics(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Statistics:
    """The row statistics of logits, from which `softjax.losses` and `softjax.metrics` are computed, in nats.

    Use them for a loss or a metric of your own. Read fields by name: under `jit`, an unused field costs nothing,
    forward or backward. An eager call computes all fields.

    The log-probability of the label is −`cross_entropy`. It is exact for confident rows and for logits near 1e4. The
    difference `label_logit` − `log_normalizer` loses its digits there.

    Args:
        logits, labels, axis, where: as in `cross_entropy`.
        axis_name: as in `softmax`. Class ids stay global.

    Returns:
        `Statistics`, each field `[*samples]`. `prediction` and `label_rank` are int32. The other fields are float64 if
        `logits` or a distribution are float64, else float32. Edge cases:

        - Class id out of range: `label_logit`, `cross_entropy`, `label_miss` and `brier_score` are NaN with zero
          gradient, `label_rank` is −1.
        - Class id of a masked class: `label_logit` is −inf, `cross_entropy` +inf, `label_miss` 1, `brier_score`
          1 + Σ_j q_j², `label_rank` 2³¹ − 1.
        - No class exists: `log_normalizer` and `max_logit` are −inf, `prediction` and `label_rank` −1, other fields 0.

    Raises:
        TypeError: `logits` are not real floating, `labels` are neither integer nor floating, or `where` is not boolean.
        ValueError: a shape or an axis is not valid.

    Source: the cross-entropy and its gradient q_j Σ_i p_i − p_j are those of the DeepLibs softmax document.
    `Statistics` has the formula of each field; `softjax/_rows/statistics.py` has the derivatives.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([0.0, 10.0, 15.0, 18.0, 20.0]), jnp.array(4))
    >>> print(f"{-s.cross_entropy:.4f} {s.mean_logit:.1f} {s.entropy:.4f} {s.prediction} {s.label_rank}")
    -0.1329 12.6 0.3998 4 0
    """
    logits, axis = arrays.logits(logits, axis)
    labels = check_labels(labels, logits.shape, axis)
    split = split_for_logits(axis_name, None, logits, axis)
    # A program does not compute what nobody reads; an eager call computes all statistics, each in a pass of its own.
    rule = STATISTICS_IF_READ if isinstance(logits, Tracer) else STATISTICS_IF_READ_IN_CACHE
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
    temperature: ArrayLike = 1.0,
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Statistics:
    """The row statistics of `hidden @ kernel + bias`, with the logits never materialised, forward or backward.

        s = statistics(x, labels)        with x = hidden @ kernel + bias

    Use them to evaluate a language model, or for a loss that needs the values of all samples at once. Such a loss and
    its gradient take four matmuls, because the backward pass computes the logits again. `linear_loss` takes three.

    It has no weights. To skip ignored samples under `jit`, choose an upper bound n on the number of the others, and
    take them first: `order = jnp.argsort(~mask, stable=True)[:n]`, then pass `hidden[order]` and `labels[order]`.

    Args:
        hidden, kernel, labels, bias, where: as in `linear_cross_entropy`.
        logit_softcap, temperature, block_size, precision: as in `linear_cross_entropy`.
        axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        `Statistics`, as `statistics` returns them. Under `jit`, an unused field costs nothing.

    Raises:
        TypeError: `hidden`, `kernel` or `bias` is not real floating, or another dtype is wrong.
        ValueError: a shape or a value is not valid.

    Source: the gradients are those of `statistics`.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.linear_statistics(jnp.eye(2), jnp.array([[0.0, 1.0], [2.0, 5.0]]), jnp.array([1, 0]))
    >>> print(*(f"{nats:.4f}" for nats in s.cross_entropy))
    0.3133 3.0486
    """
    layer = check_layer(hidden, kernel, bias)
    labels = check_labels(labels, layer.logits_shape, name="hidden @ kernel")
    given = LayerOptions(where, logit_softcap, block_size, precision, axis_name, batch_axis_name, None, temperature)
    plan, inputs = make_plan(layer, labels, given)
    return layer_rows(_layer_statistics, plan, inputs)


def _layer_statistics(plan: Plan, inputs: LayerInputs, values: RowValues) -> Statistics:
    statistics, exists = values.statistics, inputs.parameters.exists
    if exists is None:
        return statistics
    return fill_empty_rows(statistics, jnp.broadcast_to(~plan.any_class(exists), inputs.shape))
