"""Argument checks of options: Python values, and scalars that may be traced."""

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
from softjax._args.types import Array, Float

REDUCTIONS = ("mean", "sum", "none")


def base(value: Any) -> float:
    """A Python number, positive, finite and not 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`base` must be a Python number, got {type(value).__name__}: {value!r:.60}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf or number == 1:
        raise ValueError(f"`base` must be a positive finite number other than 1, got {value!r}.")
    return number


def coefficient(name: str, value: Any, most: float = math.inf) -> Any | None:
    """A number in [0, most]; None if it is 0. It may be a traced scalar, for schedules, whose value is not checked."""
    expected = f"in [0, {most}]" if most < math.inf else "finite and at least 0"
    number = scalar(name, value, expected, lambda number: 0 <= number <= most)
    return number if isinstance(number, Tracer) else number or None


def scalar(name: str, value: Any, expected: str, fits: Callable[[float], bool]) -> Any:
    """A finite number for which `fits` holds, or a traced scalar, whose value is not checked."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not abs(cast(float, value)) <= float(np.finfo(np.float32).max) or not fits(cast(float, value)):
            raise ValueError(f"`{name}` must be {expected}, got {value!r}.")
        return float(value)
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__}: {value!r:.60}.")
    array = arrays.floating(name, value)
    if array.ndim != 0:
        raise ValueError(f"`{name}` must be a scalar, got shape {array.shape}.")
    return array if isinstance(array, Tracer) else scalar(name, array.item(), expected, fits)


def real(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    """A finite number, or a traced scalar, whose value is not checked."""
    return jnp.asarray(scalar(name, value, "finite", lambda _: True)).astype(dtype)


def nonnegative(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    return jnp.asarray(scalar(name, value, "finite and at least 0", lambda number: number >= 0)).astype(dtype)


def positive(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    number = scalar(name, value, "finite and greater than 0", lambda number: number > 0)
    return jnp.asarray(number).astype(dtype)


def reduction(value: Any) -> str:
    """One of "mean", "sum", "none"."""
    return choice("reduction", value, REDUCTIONS)


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}.")
    return value


def softcap(value: Any, name: str = "logit_softcap") -> float | None:
    """A positive finite Python number, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a Python number or None, got {type(value).__name__}: {value!r:.60}.")
    if not 0 < cast(float, value) < float(np.finfo(np.float32).max):
        raise ValueError(f"`{name}` must be positive and finite, got {value!r}.")
    return float(value)


def precision(value: Any) -> Any:
    """A precision of `lax.dot_general`; None is resolved to `jax.default_matmul_precision` as it stands now."""
    if value is None:
        return getattr(jax.config, "jax_default_matmul_precision") or lax.Precision.DEFAULT  # noqa: B009
    try:
        value, ones = tuple(value) if isinstance(value, list) else value, jax.ShapeDtypeStruct((1, 1), jnp.float32)
        jax.eval_shape(partial(lax.dot, precision=value, preferred_element_type=jnp.float32), ones, ones)
    except (TypeError, ValueError) as error:
        kinds = "a `jax.lax.Precision`, its name, a pair of them, or a `jax.lax.DotAlgorithmPreset`"
        raise ValueError(f"`precision` must be None, {kinds}, as in `jax.numpy.matmul`; got {value!r:.60}.") from error
    return value


def block_size(value: Any) -> int | None:
    """A Python integer of at least 1, or None."""
    return None if value is None else arrays.positive_integer("block_size", value)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False, got {type(value).__name__}: {value!r:.60}.")
    return bool(value)
