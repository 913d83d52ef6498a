"""Checks of array arguments: dtype, shape and axes, which are static and so are known under `jit` too.

Each function returns the checked array or axis, or raises a `TypeError` or `ValueError` that names the argument.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from softjax._args.types import Array, Shape

_SCALARS = (bool, int, float, complex)


def to_array(name: str, value: Any) -> Array:
    """Returns `value` as a JAX array. Refuses lists, masked arrays and dtypes that JAX does not have."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`{name}` must not be a NumPy masked array, whose mask JAX drops; got {value.dtype}.")
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, *_SCALARS)) and not hasattr(value, "__jax_array__"):
        raise TypeError(f"`{name}` must be an array, got {type(value).__name__}: {value!r:.60}.")
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        kind = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"`{name}` must be an array that JAX can hold, got {kind}.") from error


def floating(name: str, value: Any) -> Array:
    """Returns a real floating array. Refuses other dtypes, and floats of less than 16 bits."""
    array = to_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be a real floating array, got {array.dtype}.")
    if array.dtype.itemsize < 2:
        cast = f"{name}.astype(jnp.bfloat16)"
        raise TypeError(f"`{name}` must be a floating array of 16 bits or more, got {array.dtype}; cast it: {cast}.")
    return array


def logits(value: Any, axis: Any) -> tuple[Array, int]:
    """Returns the logits and their class axis as a negative index, as `class_axis` does."""
    array = floating("logits", value)
    return array, class_axis("logits", array, axis)


def class_axis(name: str, array: Array, axis: Any) -> int:
    """Returns `axis` as a negative index, which stays valid when `vmap` adds an axis in front.

    Refuses an axis that the array does not have, and an axis without classes unless there are no samples.
    """
    index = integer("axis", axis)
    if array.ndim == 0:
        raise ValueError(f"`{name}` must have a class axis, got a scalar.")
    if not -array.ndim <= index < array.ndim:
        raise ValueError(f"`axis` must name an axis of `{name}` of shape {array.shape}, got {index}.")
    index = index % array.ndim - array.ndim
    if array.shape[index] == 0 and math.prod(samples_shape(array.shape, index)) > 0:
        raise ValueError(f"`{name}` must have at least one class, got shape {array.shape} with axis {index}.")
    return index


def axes(name: str, array: Array, value: Any) -> tuple[int, ...]:
    """Returns several class axes as negative indices. Refuses an empty list and an axis that occurs twice."""
    indices = tuple(class_axis(name, array, axis) for axis in value)
    if len(set(indices)) < max(len(indices), 1):
        raise ValueError(f"`axis` must name each axis of `{name}` once, and at least one, got {tuple(value)}.")
    return indices


def samples_shape(logits_shape: Shape, axis: int) -> Shape:
    """Returns the shape of the logits without their class axis."""
    axis = axis % len(logits_shape)
    return logits_shape[:axis] + logits_shape[axis + 1 :]


def _broadcastable(name: str, array: Array, shape: Shape, reference: str) -> Array:
    """Returns `array` with the rank of `shape`, by leading axes of length 1. Refuses one that does not broadcast.

    The message calls the array of that shape `reference`.
    """
    missing_axes = len(shape) - array.ndim
    full_rank = (1,) * missing_axes + array.shape
    if missing_axes < 0 or any(a not in (1, b) for a, b in zip(full_rank, shape, strict=True)):
        raise ValueError(f"`{name}` must broadcast to the shape of {reference}, {shape}; got {array.shape}.")
    return array.reshape(full_rank)


def where(value: Any, logits: Array) -> Array | None:
    """Returns a boolean mask with the rank of the logits that broadcasts to them, or None for no mask."""
    return None if value is None else _broadcastable("where", _boolean("where", value), logits.shape, "`logits`")


def class_mask(value: Any, num_classes: int) -> Array | None:
    """Returns a boolean mask `[num_classes]`, or None for no mask."""
    if value is None:
        return None
    mask = _broadcastable("where", _boolean("where", value), (num_classes,), "the classes of `kernel`")
    return jnp.broadcast_to(mask, (num_classes,))


def _boolean(name: str, value: Any) -> Array:
    """Returns a boolean array. Refuses other dtypes."""
    array = to_array(name, value)
    if array.dtype != jnp.bool_:
        raise TypeError(f"`{name}` must be boolean, got {array.dtype}.")
    return array


def weights(value: Any, samples_shape: Shape) -> Array | None:
    """Returns boolean or real weights with the rank of the samples that broadcast to them, or None for no weights."""
    if value is None:
        return None
    array = to_array("weights", value)
    if array.dtype != jnp.bool_ and not jnp.issubdtype(array.dtype, jnp.integer):
        array = floating("weights", array)
    return _broadcastable("weights", array, samples_shape, "`labels` (one weight for each sample)")


def per_sample(name: str, array: Array, samples_shape: Shape) -> Array:
    """Returns `array` with the rank of the samples. Refuses one that does not broadcast to them."""
    return _broadcastable(name, array, samples_shape, "the samples")


def class_weights(value: Any, num_classes: int) -> Array | None:
    """Returns boolean or real weights `[num_classes]`, or None for no class weights."""
    if value is None:
        return None
    array = to_array("class_weights", value)
    if array.dtype != jnp.bool_ and not jnp.issubdtype(array.dtype, jnp.integer):
        array = floating("class_weights", array)
    if array.shape != (num_classes,):
        raise ValueError(
            f"`class_weights` must have one weight for each class, {(num_classes,)}; got shape {array.shape}."
        )
    return array


def positive_integer(name: str, value: Any) -> int:
    """Returns a Python integer. Refuses integers less than 1, and whatever `integer` refuses."""
    checked = integer(name, value)
    if checked < 1:
        raise ValueError(f"`{name}` must be at least 1, got {checked}.")
    return checked


def layer_arrays(hidden: Any, kernel: Any, bias: Any, prefix: str = "") -> tuple[Array, Array, Array | None]:
    """Returns the arrays of a layer: hidden states `[*samples, features]`, kernel `[features, classes]` and bias.

    The bias is `[classes]` or None. Refuses shapes that do not fit together. `prefix` starts the names in messages.
    """
    hidden, kernel = floating(f"{prefix}hidden", hidden), floating(f"{prefix}kernel", kernel)
    if hidden.ndim == 0:
        raise ValueError(f"`{prefix}hidden` must have an axis of features, got a scalar.")
    if kernel.ndim != 2:
        raise ValueError(f"`{prefix}kernel` must be [features, classes], got shape {kernel.shape}.")
    # `jax.export` allows symbolic lengths. The size of a chunk depends on the features and the classes.
    if not all(isinstance(length, int) for length in (hidden.shape[-1], *kernel.shape)):
        raise ValueError(
            f"`{prefix}kernel` must have a known shape, where only samples may be open; got {kernel.shape}."
        )
    if kernel.shape[0] != hidden.shape[-1]:
        hint = f" Pass its transpose: {prefix}kernel.T." if kernel.shape[1] == hidden.shape[-1] else ""
        raise ValueError(
            f"`{prefix}kernel` must be [features, classes] with the {hidden.shape[-1]} features of `{prefix}hidden` "
            f"{hidden.shape}, got {kernel.shape}.{hint}"
        )
    if kernel.shape[1] == 0 and math.prod(hidden.shape[:-1]) > 0:
        raise ValueError(f"`{prefix}kernel` must have at least one class, got shape {kernel.shape}.")
    if bias is None:
        return hidden, kernel, None
    bias = floating(f"{prefix}bias", bias)
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"`{prefix}bias` must have one entry for each class, {kernel.shape[1:]}; got {bias.shape}.")
    return hidden, kernel, bias


def row_args(value: Any, samples: Shape) -> tuple[list[Array], Any]:
    """The leaves of the row arguments, which broadcast to the samples, and their tree.

    A leaf is a scalar, or has leading axes that equal those of the samples or are 1.
    """
    leaves, tree = jax.tree.flatten(value)
    arrays = [to_array("row_args", leaf) for leaf in leaves]
    for array in arrays:
        leading = array.shape[: len(samples)]
        fits = len(leading) == len(samples) and all(a in (1, b) for a, b in zip(leading, samples, strict=True))
        if array.ndim and not fits:
            missing = len(samples) - array.ndim
            cure = f" Add axes of length 1: row_arg[{', '.join([':'] * array.ndim + ['None'] * missing)}]."
            raise ValueError(
                f"`row_args` must have one entry for each sample, {samples}; got shape {array.shape}. Scalars and axes "
                f"of length 1 broadcast.{cure if missing > 0 else ''}"
            )
    return arrays, tree


def row_loss_result(value: Any, has_aux: bool) -> tuple[Array, Any]:
    """Returns the loss and the auxiliary arrays that `row_loss` computed for one sample.

    Refuses a loss that is not a real floating scalar. Without `has_aux` the auxiliary arrays are None.
    """
    if not has_aux and isinstance(value, tuple):
        raise TypeError(
            "`row_loss` must give a scalar for one sample, got a tuple; `(loss, aux)` needs `has_aux=True`."
        )
    if has_aux and not (isinstance(value, tuple) and len(value) == 2):
        raise TypeError(f"`row_loss` must give `(loss, aux)` with `has_aux=True`, got {type(value).__name__}.")
    loss, aux = value if has_aux else (value, None)
    array = floating("the result of row_loss", loss)
    if array.ndim != 0:
        raise ValueError(f"`row_loss` must give a scalar for one sample, got shape {array.shape}.")
    return array, jax.tree.map(lambda leaf: to_array("aux", leaf), aux)


def integer(name: str, value: Any) -> int:
    """Returns a Python integer. Refuses booleans and whatever `operator.index` refuses, such as 2.0."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be an integer, got bool: {value!r}.")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, got {type(value).__name__}: {value!r:.60}.") from None


def accumulation_dtype(*arrays: Array) -> Any:
    """Returns the dtype in which sums over these arrays accumulate: float64 if one of them is float64, else float32."""
    return jnp.float64 if any(array.dtype == jnp.float64 for array in arrays) else jnp.float32
