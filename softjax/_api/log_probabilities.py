"""Log-probabilities of selected classes, and the k most probable classes."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from softjax._api.evaluate import layer_rows, logits_rows
from softjax._args import arrays, options
from softjax._args.labels import TopKClasses, ids_without_mass
from softjax._args.types import Array, ArrayLike, Axis, AxisName, Count, Float, Integer, Number
from softjax._args.validation import check_ids
from softjax._linear.plan import LayerInputs, LayerOptions, Plan, check_layer, make_plan
from softjax._mesh.axes import ClassAxis
from softjax._mesh.placement import split_for_logits
from softjax._rows.reduction import from_nats
from softjax._rows.statistics import STATISTICS_IF_READ, RowValues


def linear_log_probabilities(
    hidden: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    base: Number = 10.0,
    logit_softcap: Number | None = None,
    temperature: ArrayLike = 1.0,
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """The log-probabilities of k selected classes of `hidden @ kernel + bias`, with the logits never materialised.

        log_b q at ids = log_probabilities(x, ids)        with x = hidden @ kernel + bias

    Use it to score the tokens of a language model. It takes one matmul forward and three backward, because the backward
    pass computes the logits again.

    Args:
        hidden, kernel: as in `linear_cross_entropy`.
        ids: integer class ids `[*samples, k]`.
        base: as in `cross_entropy`.
        bias, where, logit_softcap, temperature, block_size, precision: as in `linear_cross_entropy`.
        axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        `[*samples, k]`, in units of `base`, float32 or float64. An id out of range gives NaN, a masked class −inf, both
        with zero gradient.

    Raises:
        TypeError: `hidden`, `kernel` or `bias` is not real floating, or `ids` are not integer.
        ValueError: a shape or a value is not valid.

    Source: the gradient is that of the DeepLibs softmax document, summed over the k classes.

    >>> import jax.numpy as jnp, softjax
    >>> kernel = jnp.array([[0.0, 1.0, 2.0], [0.0, 4.0, 9.0]])
    >>> print(softjax.linear_log_probabilities(jnp.array([[1.0, 0.0]]), kernel, jnp.array([[2, 0]])).round(4))
    [[-0.177  -1.0456]]
    """
    layer = check_layer(hidden, kernel, bias)
    labels = ids_without_mass(check_ids("ids", ids, layer.logits_shape[:-1]))
    given = LayerOptions(where, logit_softcap, block_size, precision, axis_name, batch_axis_name, None, temperature)
    plan, inputs = make_plan(layer, labels, given)
    _, surprisals = layer_rows(_ids_and_surprisals, plan, inputs)
    return from_nats(-surprisals, options.base(base))


class TopK(NamedTuple):
    """The k most probable classes of each sample, the most probable first, as `linear_top_k` returns them.

    With `base=math.e`, `SparseLabels(t.ids, jnp.exp(t.log_probabilities))` turns them into labels.

    Attributes:
        ids: class ids `[*samples, k]`, int32, global on a mesh.
        log_probabilities: log_b q of these classes `[*samples, k]`.
    """

    ids: Integer[Array, "*samples k"]
    log_probabilities: Float[Array, "*samples k"]


def linear_top_k(
    hidden: ArrayLike,
    kernel: ArrayLike,
    k: Count,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    base: Number = 10.0,
    logit_softcap: Number | None = None,
    temperature: ArrayLike = 1.0,
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> TopK:
    """The k most probable classes of softmax(hidden @ kernel + bias), with the logits never materialised.

    Use it to write the sparse labels of a teacher for distillation. It takes one matmul. If the classes are sharded,
    each device finds its own top k, and devices exchange nothing larger.

    Args:
        hidden, kernel: as in `linear_cross_entropy`.
        k: how many classes to return, at most the number of classes.
        base: as in `cross_entropy`.
        bias, where, logit_softcap, temperature, block_size, precision: as in `linear_cross_entropy`.
        axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        `TopK`: `ids`, int32, and `log_probabilities` in units of `base`, float32 or float64, both `[*samples, k]`. The
        order is that of `jax.lax.top_k`. If fewer than k classes exist, the last log-probabilities are −inf. The
        gradient is that of `linear_log_probabilities` at these ids.

    Raises:
        TypeError: `hidden`, `kernel` or `bias` is not real floating, or `k` is not an integer.
        ValueError: `k` is larger than the number of classes, or another shape or value is not valid.

    Source: top-k labels of a teacher are those of sparse knowledge distillation, Anshumann et al. 2025,
    arXiv:2503.16870.

    >>> import math, jax.numpy as jnp, softjax
    >>> kernel = jnp.array([[0.0, 1.0, 2.0], [0.0, 4.0, 9.0]])
    >>> top = softjax.linear_top_k(jnp.array([[1.0, 0.0]]), kernel, 2, base=math.e)
    >>> print(top.ids, jnp.exp(top.log_probabilities).round(4))
    [[2 1]] [[0.6652 0.2447]]
    """
    layer, largest = check_layer(hidden, kernel, bias), TopKClasses(arrays.positive_integer("k", k))
    given = LayerOptions(where, logit_softcap, block_size, precision, axis_name, batch_axis_name, None, temperature)
    plan, inputs = make_plan(layer, largest, given)
    ids, surprisals = layer_rows(_ids_and_surprisals, plan, inputs)
    return TopK(ids, from_nats(-surprisals, options.base(base)))


def _ids_and_surprisals(
    plan: Plan, inputs: LayerInputs, values: RowValues
) -> tuple[Integer[Array, "*samples k"], Float[Array, "*samples k"]]:
    """The few classes, and −ln q there: +inf if no class exists."""
    exists, surprisals = inputs.parameters.exists, values.surprisals
    return values.ids, surprisals if exists is None else jnp.where(plan.any_class(exists), surprisals, jnp.inf)


def log_probabilities(
    logits: ArrayLike,
    ids: ArrayLike,
    *,
    base: Number = 10.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """The log-probabilities log_b q of k selected classes per sample, in hartleys by default.

    They are exact for confident rows. The log-probabilities of all classes are never materialised. Use it to score
    actions, answers or tokens.

    Args:
        logits, base, axis, where: as in `cross_entropy`.
        ids: integer class ids `[*samples, k]`; k is the last axis, whatever `axis` is.
        axis_name: as in `softmax`. Class ids stay global.

    Returns:
        `[*samples, k]`, in units of `base`, float64 if `logits` are float64, else float32. An id out of range gives
        NaN, a masked class −inf, both with zero gradient.

    Raises:
        TypeError: `logits` are not real floating, `ids` are not integer, or `where` is not boolean.
        ValueError: a shape, an axis or `base` is not valid.

    Source: the gradient is that of the DeepLibs softmax document, summed over the k classes.

    >>> import jax.numpy as jnp, softjax
    >>> print(softjax.log_probabilities(jnp.array([0.0, 10.0, 15.0, 18.0, 20.0]), jnp.array([4, 2])).round(4))
    [-0.0577 -2.2292]
    """
    logits, axis = arrays.logits(logits, axis)
    ids = check_ids("ids", ids, arrays.samples_shape(logits.shape, axis))
    split, base = split_for_logits(axis_name, None, logits, axis), options.base(base)
    surprisals = logits_rows(
        _surprisals_last, axis, split, STATISTICS_IF_READ, logits, ids_without_mass(ids), arrays.where(where, logits)
    )
    return from_nats(-surprisals, base)


def _surprisals_last(classes: ClassAxis, values: RowValues, any_class: Array | None) -> Float[Array, "*samples k"]:
    surprisals = values.surprisals
    surprisals = surprisals if any_class is None else jnp.where(any_class, surprisals, jnp.inf)
    return jnp.moveaxis(surprisals, classes.axis, -1)
