"""From nats in each row to what the caller asked for: the base, the weights, the reduction."""

import math

import jax
import jax.numpy as jnp

from softjax._args.types import Array, Float, Length
from softjax._mesh.axes import AxisNames, axis_size, psum


def from_nats(nats: Array, base: float) -> Array:
    """log_b x = ln x / ln b: a number of nats (base e) in bits (2), hartleys (10) or another unit."""
    return nats if base == math.e else nats / math.log(base)


def reduce(
    loss: Float[Array, "*samples"], weights: Float[Array, "*samples"] | None, reduction: str, names: AxisNames = ()
) -> Float[Array, "*samples"] | Float[Array, ""]:
    """`mean`: Σ w·l / Σ w (0 when Σ w is 0); `sum`: Σ w·l; `none`: w·l. The sums are those over the mesh axes, too."""
    if weights is not None:
        loss = weights * _zero_if_ignored(loss, weights)
    if reduction == "none":
        return loss
    total = psum(jnp.sum(loss), names)
    if reduction == "sum":
        return total
    return mean_from_sum(total, weights, loss.size, names)


def mean_from_sum(
    total: Float[Array, ""], weights: Float[Array, "*samples"] | None, samples: Length, names: AxisNames
) -> Float[Array, ""]:
    """Σ w·l / Σ w of a sum that is there already, 0 when Σ w is 0."""
    if weights is None:
        return total / max(samples * axis_size(names), 1)
    mass = psum(jnp.sum(weights), names)
    return jnp.where(mass == 0, 0, total / jnp.where(mass == 0, 1, mass))


@jax.custom_jvp
def _zero_if_ignored(loss: Array, weights: Array) -> Array:
    # A row of weight 0 contributes 0 · loss; only where that is not a number (0 · NaN, 0 · inf) is it put to 0 by
    # hand. A finite loss keeps its derivative with respect to the weight, even at weight 0.
    return jnp.where((weights == 0) & ~jnp.isfinite(loss), 0, loss)


@_zero_if_ignored.defjvp
def _zero_if_ignored_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # The cotangent has the factor 0 where the weight is, and need not ask the loss once more whether it is a number.
    return _zero_if_ignored(*primals), tangents[0]
