"""The door of the functions of `Statistics`: what they are given, checked and made arrays."""

from typing import TYPE_CHECKING, Annotated, Any

import jax.numpy as jnp

from softjax import _checks as checks
from softjax import _options as options
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
    return jnp.asarray(options.scalar(name, value, "finite", lambda _: True)).astype(dtype)


def at_least_zero(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    return jnp.asarray(options.scalar(name, value, "finite and at least 0", lambda number: number >= 0)).astype(dtype)


def positive(name: str, value: Any, dtype: Any) -> Float[Array, ""]:
    number = options.scalar(name, value, "finite and greater than 0", lambda number: number > 0)
    return jnp.asarray(number).astype(dtype)


def margin_and_scale(margin: Any, scale: Any, dtype: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
    return at_least_zero("margin", margin, dtype), positive("scale", scale, dtype)
