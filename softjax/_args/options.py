"""Checks of options: Python values such as `base` and `reduction`, and scalars that may be traced.

Each function returns the checked option, or raises a `TypeError` or `ValueError` that names the argument. The value of
a traced scalar is unknown, so only its dtype and shape are checked.
"""

import math
import numbers
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from softjax._args import arrays
from softjax._args.types import Array, Float, Shape

REDUCTIONS = ("mean", "sum", "none")


def base(value: Any) -> float:
    """Returns the base of the logarithm. Refuses all but positive finite Python numbers other than 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`base` must be a Python number, got {type(value).__name__}: {value!r:.60}.")
    try:
        checked = float(value)
    except OverflowError:
        checked = math.inf
    if not 0 < checked < math.inf or checked == 1:
        raise ValueError(f"`base` must be a positive finite number other than 1, got {value!r}.")
    return checked


def coefficient(name: str, value: Any, maximum: float = math.inf) -> Any | None:
    """Returns a coefficient in [0, maximum], and None for 0, whose term is left out.

    A traced scalar, as in a schedule, is returned unchanged: its term stays even where the value is 0.
    """
    expected = f"in [0, {maximum}]" if maximum < math.inf else "finite and at least 0"
    checked = scalar(name, value, expected, lambda c: 0 <= c <= maximum)
    return checked if isinstance(checked, Tracer) else checked or None


def scalar(name: str, value: Any, expected: str, is_allowed: Callable[[float], bool]) -> Any:
    """Returns a Python float, or a traced scalar array unchanged.

    Refuses what is not a real scalar, a number outside the range of float32 and one that `is_allowed` rejects.
    `expected` describes the allowed numbers in the message.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not abs(cast(float, value)) <= float(np.finfo(np.float32).max) or not is_allowed(cast(float, value)):
            raise ValueError(f"`{name}` must be {expected}, got {value!r}.")
        return float(value)
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__}: {value!r:.60}.")
    array = arrays.floating(name, value)
    if array.ndim != 0:
        raise ValueError(f"`{name}` must be a scalar, got shape {array.shape}.")
    return array if isinstance(array, Tracer) else scalar(name, array.item(), expected, is_allowed)


def real(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    """Returns a scalar array of `dtype`. Refuses numbers that are not finite, and what `scalar` refuses."""
    return jnp.asarray(scalar(name, value, "finite", lambda _: True)).astype(dtype)


def nonnegative(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    """Returns a scalar array of `dtype`. Refuses negative numbers, and what `scalar` refuses."""
    return jnp.asarray(scalar(name, value, "finite and at least 0", lambda x: x >= 0)).astype(dtype)


def positive(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    """Returns a scalar array of `dtype`. Refuses numbers that are not positive, and what `scalar` refuses."""
    return jnp.asarray(scalar(name, value, "finite and greater than 0", lambda x: x > 0)).astype(dtype)


def temperature(value: Any, samples_shape: Shape) -> Any | None:
    """Returns a temperature: None for the number 1, else a scalar or an array that broadcasts to the samples.

    An array has the rank of the samples. Refuses what `scalar` refuses, and numbers that are not positive.
    """
    if isinstance(value, (jax.Array, np.ndarray)) and value.ndim > 0:
        return arrays.per_sample("temperature", arrays.floating("temperature", value), samples_shape)
    checked = scalar("temperature", value, "finite and greater than 0", lambda number: number > 0)
    return None if isinstance(checked, float) and checked == 1 else jnp.asarray(checked)


def reduction(value: Any) -> str:
    """Returns "mean", "sum" or "none". Refuses everything else."""
    return choice("reduction", value, REDUCTIONS)


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Returns `value` if it is one of the strings `choices`. Refuses everything else."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    return value


def softcap(value: Any, name: str = "logit_softcap") -> float | None:
    """Returns a positive finite Python number, or None for no softcap. Refuses everything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a Python number or None, got {type(value).__name__}: {value!r:.60}.")
    if not 0 < cast(float, value) < float(np.finfo(np.float32).max):
        raise ValueError(f"`{name}` must be positive and finite, got {value!r}.")
    return float(value)


def precision(value: Any) -> Any:
    """Returns a precision for `lax.dot_general`. Refuses what `lax.dot` refuses.

    None becomes the current `jax.default_matmul_precision`, so that the backward pass uses it too, wherever it runs.
    """
    if value is None:
        return getattr(jax.config, "jax_default_matmul_precision") or lax.Precision.DEFAULT  # noqa: B009
    try:
        value = tuple(value) if isinstance(value, list) else value
        matrix = jax.ShapeDtypeStruct((1, 1), jnp.float32)
        jax.eval_shape(partial(lax.dot, precision=value, preferred_element_type=jnp.float32), matrix, matrix)
    except (TypeError, ValueError) as error:
        kinds = "a `jax.lax.Precision`, its name, a pair of them, or a `jax.lax.DotAlgorithmPreset`"
        raise ValueError(f"`precision` must be None, {kinds}, as in `jax.numpy.matmul`; got {value!r:.60}.") from error
    return value


def block_size(value: Any) -> int | None:
    """Returns a Python integer of at least 1, or None for the default. Refuses everything else."""
    return None if value is None else arrays.positive_integer("block_size", value)


def flag(name: str, value: Any) -> bool:
    """Returns True or False. Refuses everything else, also 0 and 1."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False, got {type(value).__name__}: {value!r:.60}.")
    return bool(value)
