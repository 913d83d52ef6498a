"""Argument checks of labels, and `validate_labels`, which names the first bad one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

from softjax._args import arrays
from softjax._args.labels import Labels, SparseLabels, canonical_ids
from softjax._args.types import Array, ArrayLike, Count, Integer, Shape


def check_labels(value: Any, logits: Shape, axis: int = -1, name: str = "logits") -> Labels:
    """Class ids in the shape of the samples, a distribution in the shape of the logits, or `SparseLabels`."""
    if isinstance(value, SparseLabels):
        return _check_sparse(value, arrays.samples_shape(logits, axis))
    array = _label_array("labels", value)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return _check_class_ids(array, logits, axis, name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`labels` must be integer class ids or a floating distribution, got {array.dtype}.")
    if array.shape == logits:
        return array
    hint = (
        " Class ids must be integer: labels.astype(int)." if array.shape == arrays.samples_shape(logits, axis) else ""
    )
    raise ValueError(
        f"Floating `labels` are distributions over the classes and need the shape of `{name}`, "
        f"{logits}; got {array.shape}.{hint}"
    )


def _check_class_ids(array: Array, logits: Shape, axis: int, name: str) -> Integer[Array, "*samples"]:
    ids, shape = arrays.samples_shape(logits, axis), array.shape
    if shape == ids:
        return array
    hint = ""
    if shape == logits:
        hint = f" A one-hot or other distribution must be floating: labels.astype({name.split()[0]}.dtype)."
    elif shape == (*logits[:axis], 1, *logits[len(logits) + axis + 1 :]):
        hint = f" Drop the class axis: labels.squeeze({axis})."
    elif len(shape) == len(ids) and (other := _other_axis(shape, logits, axis)) is not None:
        hint = f" If the classes are axis {other} of `{name}`, say axis={other}."
    raise ValueError(
        f"Integer `labels` are class ids and need the shape of `{name}` {logits} without its class axis, "
        f"{ids}; got {shape}.{hint}"
    )


def _other_axis(ids: Shape, logits: Shape, axis: int) -> int | None:
    """The only other axis of the logits that fits as class axis to ids of this shape; None if there are several."""
    fitting = [i for i in range(len(logits)) if arrays.samples_shape(logits, i) == ids and i != axis % len(logits)]
    return fitting[0] if len(fitting) == 1 else None


def _check_sparse(labels: SparseLabels, samples: Shape | None) -> SparseLabels:
    ids, p = check_ids("labels.ids", labels.ids, samples), arrays.floating("labels.probabilities", labels.probabilities)
    if p.shape != ids.shape:
        raise ValueError(f"`labels.probabilities` need the shape of `labels.ids`, {ids.shape}; got {p.shape}.")
    return SparseLabels(ids, p)


def check_ids(name: str, value: Any, samples: Shape | None) -> Integer[Array, "*samples k"]:
    """Class ids `[*samples, k]`; of samples of any shape if `samples` is None."""
    array = _integer_array(name, value)
    if array.ndim == 0 or samples not in (None, array.shape[:-1]):
        hint = f" Give one class an axis of length 1: {name}[..., None]." if array.shape == samples else ""
        whom = "them" if samples is None else samples
        raise ValueError(f"`{name}` must be [*samples, k], k ids for each of {whom}; got shape {array.shape}.{hint}")
    return array


def _integer_array(name: str, value: Any) -> Array:
    array = _label_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integer class ids, got {array.dtype}.")
    return array


def _label_array(name: str, value: Any) -> Array:
    """An array; without 64-bit types, wide ids are clipped, since JAX would wrap them around into the range."""
    ids = isinstance(value, int) or (isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "iu")
    masked = isinstance(value, (bool, np.ma.MaskedArray))
    if ids and not masked and not jax.config.read("jax_enable_x64"):
        limits = np.iinfo(np.int32)
        value = np.asarray(np.clip(value, limits.min, limits.max), np.int32)
    return arrays.to_array(name, value)


def validate_labels(labels: ArrayLike | SparseLabels, num_classes: Count, *, weights: ArrayLike | None = None) -> None:
    """Raises an error that names the first label outside 0 … num_classes − 1.

    Use it to find bad labels, which the losses turn into NaN. An eager call raises at once. Under `jit` a value cannot
    raise: wrap the function in `jax.experimental.checkify.checkify`, and the error that it returns holds the same
    message.

    Labels of weight 0 are not checked, nor are ids of `SparseLabels` with probability 0.

    Args:
        labels: integer class ids `[*samples]`, or `SparseLabels`.
        num_classes: the number of classes C, at least 1.
        weights: boolean or real, broadcastable to the samples.

    Raises:
        TypeError: `labels` are not integers.
        ValueError: a label is out of range, `weights` do not broadcast to the samples, or `num_classes` is less than 1.

    >>> import jax.numpy as jnp, softjax
    >>> softjax.validate_labels(jnp.array([0, 4, 5]), 5)
    Traceback (most recent call last):
        ...
    ValueError: labels[2] is 5, outside 0 … 4.
    """
    count = arrays.positive_integer("num_classes", num_classes)
    if isinstance(labels, SparseLabels):
        ids, p = _check_sparse(labels, None)
        samples, name, has_mass = ids.shape[:-1], "labels.ids", p != 0
    else:
        ids = _integer_array("labels", labels)
        samples, name, has_mass = ids.shape, "labels", True
    active = arrays.weights(weights, samples)
    bad = (canonical_ids(ids, count) < 0) & has_mass
    if active is not None:
        active = jnp.broadcast_to(active.astype(bool), samples)
        bad &= active.reshape(active.shape + (1,) * (ids.ndim - active.ndim))
    _refuse_first(name, ids, bad, count)


def _refuse_first(name: str, ids: Array, bad: Array, count: int) -> None:
    first = jnp.unravel_index(jnp.argmax(bad), ids.shape) if ids.size else ()
    place = f"[{', '.join('{}' for _ in first)}]" if ids.ndim else ""
    message = f"{name}{place} is {{}}, outside 0 … {count - 1}."
    value = ids[first] if ids.size else 0
    if isinstance(bad, Tracer):
        checkify.check(~jnp.any(bad), message, *first, value)
    elif np.any(bad):
        raise ValueError(message.format(*first, value))
