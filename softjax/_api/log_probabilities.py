"""Log-probabilities at a few classes, and the most probable classes."""

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
from softjax._rows.statistics import STATISTICS, RowValues


def linear_log_probabilities(
    hidden: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    base: Number = 10.0,
    logit_softcap: Number | None = None,
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> Array:
    """`log_probabilities(hidden @ kernel + bias, ids)`, without an array of all logits, forward or backward.

    One matrix product forward, three more backward, since logits are computed again.

    Args:
        hidden: `[*samples, features]`, real floating.
        kernel: `[features, classes]`; `embedding.T` for tied embeddings.
        ids: integer class ids `[*samples, k]`.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats.
        bias, where, logit_softcap, block_size, precision, axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        log_b q at the ids, `[*samples, k]`, float32 or float64; NaN with gradient 0 for an id out of range, −inf with
        gradient 0 for a class that `where` leaves out.

    Raises:
        TypeError: `hidden`, `kernel` or `bias` that are not real floating, `ids` that are not integer.
        ValueError: shapes that do not fit, or a value out of range.

    Source: the gradient is that of the DeepLibs softmax document, summed over the k classes.

    >>> import jax.numpy as jnp, softjax
    >>> kernel = jnp.array([[0.0, 1.0, 2.0], [0.0, 4.0, 9.0]])
    >>> print(softjax.linear_log_probabilities(jnp.array([[1.0, 0.0]]), kernel, jnp.array([[2, 0]])).round(4))
    [[-0.177  -1.0456]]
    """
    layer = check_layer(hidden, kernel, bias)
    labels = ids_without_mass(check_ids("ids", ids, layer.logits_shape[:-1]))
    given = LayerOptions(where, logit_softcap, block_size, precision, axis_name, batch_axis_name)
    plan, inputs = make_plan(layer, labels, given)
    _, surprisals = layer_rows(_ids_and_surprisals, plan, inputs)
    return from_nats(-surprisals, options.base(base))


class TopK(NamedTuple):
    """The k most probable classes of each sample, the most probable first.

    `SparseLabels(t.ids, jnp.exp(t.log_probabilities))` makes labels of those that `base=math.e` gave.
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
    block_size: Count | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    batch_axis_name: AxisName = None,
) -> TopK:
    """The k largest of softmax(hidden @ kernel + bias), without an array of all logits.

    How a teacher writes labels for a student. One matrix product; of classes that are split over devices each gives its
    own k, and nothing larger goes from one to another.

    Args:
        hidden: `[*samples, features]`, real floating.
        kernel: `[features, classes]`; `embedding.T` for tied embeddings.
        k: how many, at most the number of classes.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats.
        bias, where, logit_softcap, block_size, precision, axis_name, batch_axis_name: as in `linear_cross_entropy`.

    Returns:
        `TopK`: `ids`, int32, and `log_probabilities`, float32 or float64, both `[*samples, k]`, sorted as
        `jax.lax.top_k` sorts. Where fewer than k classes exist, the last ones have log-probability −inf. The gradient
        is that of `linear_log_probabilities` at these ids.

    Raises:
        TypeError: `hidden`, `kernel` or `bias` that are not real floating, `k` that is not an integer.
        ValueError: `k` larger than the number of classes, shapes that do not fit, or a value out of range.

    Source: the labels of a teacher at its most probable classes are those of sparse knowledge distillation, Anshumann
    et al. 2025, arXiv:2503.16870.

    >>> import math, jax.numpy as jnp, softjax
    >>> kernel = jnp.array([[0.0, 1.0, 2.0], [0.0, 4.0, 9.0]])
    >>> top = softjax.linear_top_k(jnp.array([[1.0, 0.0]]), kernel, 2, base=math.e)
    >>> print(top.ids, jnp.exp(top.log_probabilities).round(4))
    [[2 1]] [[0.6652 0.2447]]
    """
    layer, largest = check_layer(hidden, kernel, bias), TopKClasses(arrays.positive_integer("k", k))
    given = LayerOptions(where, logit_softcap, block_size, precision, axis_name, batch_axis_name)
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
    """log_b q at k classes of each sample, exact for confident rows, without an array of all log-probabilities.

    Args:
        logits: `[*samples, classes]`, real floating; the class axis is `axis`.
        ids: integer class ids `[*samples, k]`, k last whatever `axis` is.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats.
        axis: the class axis of `logits`.
        where: boolean, broadcastable to `logits`: the classes that exist.
        axis_name: as in `softmax`; ids stay global.

    Returns:
        `[*samples, k]`, float32, or float64 if `logits` are; NaN with gradient 0 for an id out of range, −inf with
        gradient 0 for a class that `where` leaves out.

    Raises:
        TypeError: `logits` that are not real floating, `ids` that are not integer, `where` not boolean.
        ValueError: a shape, an axis or a `base` that does not fit.

    Source: the gradient is that of the DeepLibs softmax document, summed over the k classes.

    >>> import jax.numpy as jnp, softjax
    >>> print(softjax.log_probabilities(jnp.array([0.0, 10.0, 15.0, 18.0, 20.0]), jnp.array([4, 2])).round(4))
    [-0.0577 -2.2292]
    """
    logits, axis = arrays.logits(logits, axis)
    ids = check_ids("ids", ids, arrays.samples_shape(logits.shape, axis))
    split, base = split_for_logits(axis_name, None, logits, axis), options.base(base)
    surprisals = logits_rows(
        _surprisals_last, axis, split, STATISTICS, logits, ids_without_mass(ids), arrays.where(where, logits)
    )
    return from_nats(-surprisals, base)


def _surprisals_last(classes: ClassAxis, values: RowValues, any_class: Array | None) -> Float[Array, "*samples k"]:
    surprisals = values.surprisals
    surprisals = surprisals if any_class is None else jnp.where(any_class, surprisals, jnp.inf)
    return jnp.moveaxis(surprisals, classes.axis, -1)
