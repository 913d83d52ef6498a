"""Labels: what a class id picks out of a row, and the check that says which label is wrong."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

from softjax import _checks as checks
from softjax import _mesh as mesh
from softjax import _placement as placement
from softjax._types import Array, ArrayLike, Bool, Count, Float, Integer
from softjax._widen import widen


def is_ids(labels: Array) -> bool:
    """Whether the labels are class ids, not distributions."""
    return jnp.issubdtype(labels.dtype, jnp.integer)


def canonical(labels: Integer[Array, "*samples"], classes: Any) -> Integer[Array, "*samples"]:
    """int32 ids, −1 for every id that is no class: one meaning for every integer type, narrow, wide or unsigned."""
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    valid = labels >= 0
    if not isinstance(classes, int) or classes <= jnp.iinfo(labels.dtype).max:
        valid &= labels < classes
    return jnp.where(valid, labels.astype(jnp.int32), -1)


def matches(ids: Integer[Array, "*rows"], logits: Array, axis: int, names: mesh.Names) -> Bool[Array, "..."]:
    """[j = y]: compared with an iota, which fuses, is safe for any id, and stays local when classes are sharded."""
    local = ids - mesh.first(names, logits.shape[axis])
    return local == placement.class_ids(logits, axis, local)


def pick(
    x: Float[Array, "..."], ids: Integer[Array, "*rows"], axis: int, dense: bool, names: mesh.Names
) -> Float[Array, "*rows"]:
    """x_y, widened, NaN for an id that is no class; `dense` says that `x` lies in memory and need not be computed."""
    if dense and placement.on_one_cpu(x) and x.shape[axis] > 0:
        local = ids - mesh.first(names, x.shape[axis])
        picked = jnp.take_along_axis(x, jnp.clip(local, 0, x.shape[axis] - 1), axis, mode="clip")
        if names:
            picked = jnp.where((local >= 0) & (local < x.shape[axis]), picked, 0)
    else:
        picked = jnp.sum(jnp.where(matches(ids, x, axis, names), x, 0), axis, keepdims=True)
    return jnp.where(ids < 0, jnp.nan, mesh.total(widen(picked), names))


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
