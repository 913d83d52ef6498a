"""The door of the functions of `Statistics`: what they are given, checked and made arrays."""

import math
import numbers
from typing import TYPE_CHECKING, Annotated, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from softjax import _checks as checks
from softjax._rows import Statistics
from softjax._types import Array, Float

if TYPE_CHECKING:
    OfSamples = Statistics
else:
    OfSamples = Annotated[Any, "Statistics"]  # refused below, with a message that says what was meant


def statistics(value: Any) -> Statistics:
    """The numbers of the samples, not their logits."""
    if not isinstance(value, Statistics):
        raise TypeError(
            "`s` must be `Statistics`, as `softjax.statistics(logits, labels)` and `softjax.linear_statistics` give; "
            f"got {type(value).__name__}."
        )
    return value


def sample_weights(value: Any, s: Statistics) -> Float[Array, "*samples"]:
    """The weight of each sample, 1 for None. A row in which no class exists is not counted."""
    h = s.cross_entropy
    weights = checks.weights(value, h.shape)
    weights = jnp.ones_like(h) if weights is None else jnp.broadcast_to(weights, h.shape).astype(h.dtype)
    return jnp.where((s.log_normalizer == -jnp.inf) & (h == 0), 0, weights)


def real(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    """A finite number, or a traced scalar, whose value is not checked."""
    return _scalar(name, value, dtype, "finite", lambda _: True)


def at_least_zero(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    return _scalar(name, value, dtype, "finite and at least 0", lambda number: number >= 0)


def positive(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    return _scalar(name, value, dtype, "finite and greater than 0", lambda number: number > 0)


def _scalar(name: str, value: Any, dtype: Any, expected: str, fits: Any) -> Array:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        most = float(np.finfo(np.float32).max)
        if math.isnan(cast(float, value)) or not (-most <= cast(float, value) <= most and fits(value)):
            raise ValueError(f"`{name}` must be {expected}, got {value!r}.")
        return jnp.asarray(float(value), dtype)
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__}: {value!r:.60}.")
    array = checks.floating(name, value)
    if array.ndim != 0:
        raise ValueError(f"`{name}` must be a scalar, got shape {array.shape}.")
    if not isinstance(array, Tracer):
        _scalar(name, array.item(), dtype, expected, fits)
    return array.astype(dtype)
