"""Labels: what the target of a loss is, and the check that says which label is wrong."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

from softjax import _checks as checks
from softjax._types import Array, ArrayLike, Count, Float, Integer


class Ids(NamedTuple):
    """A class id for each row, −1 for one that is no class, the class axis kept at length 1."""

    ids: Integer[Array, "..."]


class Distribution(NamedTuple):
    """The probability of each class, in each row."""

    probabilities: Float[Array, "..."]


def is_ids(labels: Array) -> bool:
    """Whether the labels are class ids, not distributions."""
    return jnp.issubdtype(labels.dtype, jnp.integer)


def target_of(labels: Array, classes: int, axis: int) -> Ids | Distribution:
    """The labels as what they are; `classes` counts those of all devices."""
    if isinstance(classes, int) and classes > jnp.iinfo(jnp.int32).max:
        raise ValueError(f"Classes are counted in int32: there may be at most 2³¹ − 1, got {classes}.")
    if is_ids(labels):
        return Ids(jnp.expand_dims(canonical(labels, classes), axis))
    return Distribution(labels)


def canonical(labels: Integer[Array, "*samples"], classes: Any) -> Integer[Array, "*samples"]:
    """int32 ids, −1 for every id that is no class: one meaning for every integer type, narrow, wide or unsigned."""
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    valid = labels >= 0
    if not isinstance(classes, int) or classes <= jnp.iinfo(labels.dtype).max:
        valid &= labels < classes
    return jnp.where(valid, labels.astype(jnp.int32), -1)


def validate_labels(labels: ArrayLike, num_classes: Count, *, weights: ArrayLike | None = None) -> None:
    """Raises an error that names the first label outside 0 … num_classes − 1.

    A label of weight 0 may be anything. Called eagerly it raises at once. Under `jit` no value can raise: wrap the
    function in `jax.experimental.checkify.checkify`, and the returned error holds the same message.

    Args:
        labels: `[*samples]`, integer class ids.
        num_classes: the number of classes C, at least 1.
        weights: boolean or real, broadcastable to `labels`.

    Raises:
        TypeError: `labels` are not integers.
        ValueError: `weights` do not broadcast to `labels`, `num_classes` is less than 1, or a label is out of range.

    >>> import jax.numpy as jnp, softjax
    >>> softjax.validate_labels(jnp.array([0, 4, 5]), 5)
    Traceback (most recent call last):
        ...
    ValueError: labels[2] is 5, outside 0 … 4.
    """
    array, count = checks.class_labels(labels), checks.count("num_classes", num_classes)
    counted = checks.weights(weights, array.shape)
    bad = canonical(array, count) < 0
    if counted is not None:
        bad &= counted.astype(bool)
    first = jnp.unravel_index(jnp.argmax(bad), array.shape) if array.size else ()
    value = array[first] if array.size else 0
    message = f"labels[{', '.join('{}' for _ in first)}] is {{}}, outside 0 … {count - 1}."
    if array.ndim == 0:
        message = message.replace("[]", "")
    if isinstance(bad, Tracer):
        checkify.check(~jnp.any(bad), message, *first, value)
    elif np.any(bad):
        raise ValueError(message.format(*first, value))
