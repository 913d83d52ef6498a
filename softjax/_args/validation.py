"""Checks of labels: `check_labels` by dtype and shape for every loss, `validate_labels` by value for the user."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

from softjax._args import arrays
from softjax._args.labels import Labels, SparseLabels, canonical_ids
from softjax._args.types import Array, ArrayLike, Count, Integer, Shape


def check_labels(value: Any, logits_shape: Shape, axis: int = -1, name: str = "logits") -> Labels:
    """Returns class ids, a distribution or `SparseLabels`. Refuses dtypes and shapes that do not fit the logits.

    Class ids have the shape of the samples, a distribution that of the logits. Messages call the logits `name`.
    """
    if isinstance(value, SparseLabels):
        return _check_sparse(value, arrays.samples_shape(logits_shape, axis))
    array = _label_array("labels", value)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return _check_class_ids(array, logits_shape, axis, name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`labels` must be integer class ids or a floating distribution, got {array.dtype}.")
    array = arrays.floating("labels", array)
    if array.shape == logits_shape:
        return array
    hint = ""
    if array.shape == arrays.samples_shape(logits_shape, axis):
        hint = " Class ids must be integer: labels.astype(int)."
    raise ValueError(
        f"Floating `labels` are distributions over the classes and need the shape of `{name}`, "
        f"{logits_shape}; got {array.shape}.{hint}"
    )


def _check_class_ids(array: Array, logits_shape: Shape, axis: int, name: str) -> Integer[Array, "*samples"]:
    """Returns the class ids. Refuses any shape but that of the samples, with a hint for common mistakes."""
    samples_shape, shape = arrays.samples_shape(logits_shape, axis), array.shape
    if shape == samples_shape:
        return array
    hint = ""
    if shape == logits_shape:
        hint = f" A one-hot or other distribution must be floating: labels.astype({name.split()[0]}.dtype)."
    elif shape == (*logits_shape[:axis], 1, *logits_shape[len(logits_shape) + axis + 1 :]):
        hint = f" Drop the class axis: labels.squeeze({axis})."
    elif len(shape) == len(samples_shape) and (other := _other_axis(shape, logits_shape, axis)) is not None:
        hint = f" If the classes are axis {other} of `{name}`, say axis={other}."
    raise ValueError(
        f"Integer `labels` are class ids and need the shape of `{name}` {logits_shape} without its class axis, "
        f"{samples_shape}; got {shape}.{hint}"
    )


def _other_axis(ids_shape: Shape, logits_shape: Shape, axis: int) -> int | None:
    """Returns the one axis other than `axis` that would fit as class axis to these ids, or None."""
    others = [i for i in range(len(logits_shape)) if i != axis % len(logits_shape)]
    fitting = [i for i in others if arrays.samples_shape(logits_shape, i) == ids_shape]
    return fitting[0] if len(fitting) == 1 else None


def _check_sparse(labels: SparseLabels, samples_shape: Shape | None) -> SparseLabels:
    """Returns the labels as arrays. Refuses ids that `check_ids` refuses, and probabilities of another shape."""
    ids = check_ids("labels.ids", labels.ids, samples_shape)
    p = arrays.floating("labels.probabilities", labels.probabilities)
    if p.shape != ids.shape:
        raise ValueError(f"`labels.probabilities` need the shape of `labels.ids`, {ids.shape}; got {p.shape}.")
    return SparseLabels(ids, p)


def check_ids(name: str, value: Any, samples_shape: Shape | None) -> Integer[Array, "*samples k"]:
    """Returns k class ids per sample. Refuses other shapes than `[*samples, k]`; None allows any samples."""
    array = _integer_array(name, value)
    if array.ndim == 0 or samples_shape not in (None, array.shape[:-1]):
        hint = f" Give one class an axis of length 1: {name}[..., None]." if array.shape == samples_shape else ""
        samples = "them" if samples_shape is None else samples_shape
        raise ValueError(f"`{name}` must be [*samples, k], k ids for each of {samples}; got shape {array.shape}.{hint}")
    return array


def _integer_array(name: str, value: Any) -> Array:
    """Returns an integer array. Refuses other dtypes."""
    array = _label_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integer class ids, got {array.dtype}.")
    return array


def _label_array(name: str, value: Any) -> Array:
    """Returns the labels as an array of any dtype, as `to_array` does."""
    # Without 64-bit types JAX wraps a wide id around to int32, where it may be a valid class. Clipped to the limits of
    # int32 first, it stays out of range.
    is_integer = isinstance(value, int) or (isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "iu")
    is_refused = isinstance(value, (bool, np.ma.MaskedArray))
    if is_integer and not is_refused and not jax.config.read("jax_enable_x64"):
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
    num_classes = arrays.positive_integer("num_classes", num_classes)
    if isinstance(labels, SparseLabels):
        ids, p = _check_sparse(labels, None)
        samples_shape, name, has_mass = ids.shape[:-1], "labels.ids", p != 0
    else:
        ids = _integer_array("labels", labels)
        samples_shape, name, has_mass = ids.shape, "labels", True
    active = arrays.weights(weights, samples_shape)
    invalid = (canonical_ids(ids, num_classes) < 0) & has_mass
    if active is not None:
        active = jnp.broadcast_to(active.astype(bool), samples_shape)
        invalid &= active.reshape(active.shape + (1,) * (ids.ndim - active.ndim))
    _refuse_first(name, ids, invalid, num_classes)


def _refuse_first(name: str, ids: Array, invalid: Array, num_classes: int) -> None:
    """Raises an error that names the first invalid id; under `jit`, a `checkify` error."""
    index = jnp.unravel_index(jnp.argmax(invalid), ids.shape) if ids.size else ()
    place = f"[{', '.join('{}' for _ in index)}]" if ids.ndim else ""
    message = f"{name}{place} is {{}}, outside 0 … {num_classes - 1}."
    first_id = ids[index] if ids.size else 0
    if isinstance(invalid, Tracer):
        checkify.check(~jnp.any(invalid), message, *index, first_id)
    elif np.any(invalid):
        raise ValueError(message.format(*index, first_id))
