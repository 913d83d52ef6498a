"""The numbers of each row of the last linear layer, without the logits: statistics, log-probabilities, the largest."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax import _checks as checks
from softjax import _options as options
from softjax._labels import Largest, SparseLabels, without_mass
from softjax._loss_sum import rows_of
from softjax._problem import Plan, Problem, arranged
from softjax._reduce import from_nats
from softjax._rows import MANY, Row, Statistics, without_classes
from softjax._types import Array, ArrayLike, AxisName, Count, Float, Integer, Number
from softjax._validation import checked, ids_of


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
    given = {"logit_softcap": logit_softcap, "block_size": block_size, "precision": precision}
    names = axis_name, batch_axis_name
    labelled = partial(checked, labels, name="hidden @ kernel")
    plan, problem = arranged(hidden, kernel, labelled, names=names, bias=bias, where=where, **given)
    return _rows(_statistics, plan, problem)


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
    given = {"logit_softcap": logit_softcap, "block_size": block_size, "precision": precision}

    def asked(logits: Any) -> SparseLabels:
        return without_mass(ids_of("ids", ids, logits[:-1]))

    names = axis_name, batch_axis_name
    plan, problem = arranged(hidden, kernel, asked, names=names, bias=bias, where=where, **given)
    _, surprisals = _rows(_few, plan, problem)
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
    given = {"logit_softcap": logit_softcap, "block_size": block_size, "precision": precision}
    most = Largest(checks.count("k", k))
    names = axis_name, batch_axis_name
    plan, problem = arranged(hidden, kernel, lambda _: most, names=names, bias=bias, where=where, **given)
    ids, surprisals = _rows(_few, plan, problem)
    return TopK(ids, from_nats(-surprisals, options.base(base)))


@partial(jax.jit, static_argnums=(0, 1))
def _rows(read, plan, problem):
    """What `read(plan, problem, row)` takes of the numbers of each row."""

    def local(problem: Problem, *_: Any) -> Any:
        return read(plan, problem, rows_of(plan.static(MANY), plan.blocks(problem), problem.shape))

    return plan.over_devices(local, problem, ((), ()), plan.split.result)(problem, (), ())


def _statistics(plan: Plan, problem: Problem, row: Row) -> Statistics:
    numbers, exists = row.statistics, problem.parameters.exists
    return numbers if exists is None else without_classes(numbers, jnp.broadcast_to(~plan.any(exists), problem.shape))


def _few(plan: Plan, problem: Problem, row: Row) -> tuple[Integer[Array, "*samples k"], Float[Array, "*samples k"]]:
    """The few classes, and −ln q there, +inf where no class exists."""
    exists = problem.parameters.exists
    return row.ids, row.surprisals if exists is None else jnp.where(plan.any(exists), row.surprisals, jnp.inf)
