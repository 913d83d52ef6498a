"""Argument checks of arrays: shapes and dtypes, checked when a function is called or traced.

Each function takes what the caller passed and returns the array that the computation expects. It refuses anything else
with a message that names the argument.
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
    """An array; refuses what is none, and a NumPy mask."""
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
    """A real floating array of 16 bits or more."""
    array = to_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be a real floating array, got {array.dtype}.")
    if array.dtype.itemsize < 2:
        cast = f"{name}.astype(jnp.bfloat16)"
        raise TypeError(f"`{name}` must be a floating array of 16 bits or more, got {array.dtype}; cast it: {cast}.")
    return array


def logits(value: Any, axis: Any) -> tuple[Array, int]:
    """The logits, and their class axis counted from the end."""
    array = floating("logits", value)
    return array, class_axis("logits", array, axis)


def class_axis(name: str, array: Array, axis: Any) -> int:
    """`axis` counted from the end, so that it stays the same axis when `vmap` adds one in front."""
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
    """Several axes counted from the end, each once."""
    found = tuple(class_axis(name, array, axis) for axis in value)
    if len(set(found)) < max(len(found), 1):
        raise ValueError(f"`axis` must name each axis of `{name}` once, and at least one, got {tuple(value)}.")
    return found


def samples_shape(shape: Shape, axis: int) -> Shape:
    """The shape of the logits without their class axis."""
    axis = axis % len(shape)
    return shape[:axis] + shape[axis + 1 :]


def _broadcastable(name: str, array: Array, shape: Shape, to: str) -> Array:
    """`array` with leading axes of length 1 up to the rank of `shape`; refuses what does not broadcast to it."""
    short = len(shape) - array.ndim
    padded = (1,) * short + array.shape
    if short < 0 or any(a not in (1, b) for a, b in zip(padded, shape, strict=True)):
        raise ValueError(f"`{name}` must broadcast to the shape of {to}, {shape}; got {array.shape}.")
    return array.reshape(padded)


def where(value: Any, logits: Array) -> Array | None:
    """None, or a boolean mask of the rank of the logits, which broadcasts to them."""
    return None if value is None else _broadcastable("where", _boolean("where", value), logits.shape, "`logits`")


def class_mask(value: Any, classes: int) -> Array | None:
    """None, or a boolean mask `[classes]`."""
    if value is None:
        return None
    mask = _broadcastable("where", _boolean("where", value), (classes,), "the classes of `kernel`")
    return jnp.broadcast_to(mask, (classes,))


def _boolean(name: str, value: Any) -> Array:
    array = to_array(name, value)
    if array.dtype != jnp.bool_:
        raise TypeError(f"`{name}` must be boolean, got {array.dtype}.")
    return array


def weights(value: Any, shape: Shape) -> Array | None:
    """None, or boolean or real weights of the rank of the samples, which broadcast to them."""
    if value is None:
        return None
    array = to_array("weights", value)
    if array.dtype != jnp.bool_ and not jnp.issubdtype(array.dtype, jnp.integer):
        array = floating("weights", array)
    return _broadcastable("weights", array, shape, "`labels` (one weight for each sample)")


def positive_integer(name: str, value: Any) -> int:
    """A Python integer of at least 1."""
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"`{name}` must be at least 1, got {number}.")
    return number


def layer_arrays(hidden: Any, kernel: Any, bias: Any, prefix: str = "") -> tuple[Array, Array, Array | None]:
    """`[*samples, features]`, `[features, classes]` and `[classes]`, all real floating."""
    h, k = floating(f"{prefix}hidden", hidden), floating(f"{prefix}kernel", kernel)
    if h.ndim == 0:
        raise ValueError(f"`{prefix}hidden` must have an axis of features, got a scalar.")
    if k.ndim != 2:
        raise ValueError(f"`{prefix}kernel` must be [features, classes], got shape {k.shape}.")
    if not all(isinstance(length, int) for length in (h.shape[-1], *k.shape)):
        raise ValueError(f"`{prefix}kernel` must have a known shape, where only samples may be open; got {k.shape}.")
    if k.shape[0] != h.shape[-1]:
        hint = f" Pass its transpose: {prefix}kernel.T." if k.shape[1] == h.shape[-1] else ""
        raise ValueError(
            f"`{prefix}kernel` must be [features, classes] with the {h.shape[-1]} features of `{prefix}hidden` "
            f"{h.shape}, got {k.shape}.{hint}"
        )
    if k.shape[1] == 0 and math.prod(h.shape[:-1]) > 0:
        raise ValueError(f"`{prefix}kernel` must have at least one class, got shape {k.shape}.")
    if bias is None:
        return h, k, None
    b = floating(f"{prefix}bias", bias)
    if b.shape != k.shape[1:]:
        raise ValueError(f"`{prefix}bias` must have one entry for each class, {k.shape[1:]}; got {b.shape}.")
    return h, k, b


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
    """The result of a caller's row loss for one sample: a real floating scalar, and aux."""
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
    """A Python integer; refuses a boolean."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be an integer, got bool: {value!r}.")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, got {type(value).__name__}: {value!r:.60}.") from None


def accumulation_dtype(*arrays: Array) -> Any:
    """The type that numbers are accumulated in: float64 if any of the arrays is, else float32."""
    return jnp.float64 if any(a.dtype == jnp.float64 for a in arrays) else jnp.float32
