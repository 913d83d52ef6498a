"""From one loss per sample in nats to the result: base, weights, reduction."""

import math

import jax
import jax.numpy as jnp

from softjax._args.types import Array, Float, Length
from softjax._mesh.axes import AxisNames, axis_size, psum


def from_nats(nats: Array, base: float) -> Array:
    """Converts nats (base e) to bits (2), hartleys (10) or another unit: log_b x = ln x / ln b."""
    return nats if base == math.e else nats / math.log(base)


def reduce(
    loss: Float[Array, "*samples"],
    weights: Float[Array, "*samples"] | None,
    reduction: str,
    names: AxisNames = (),
    label_weights: Float[Array, "*samples"] | None = None,
) -> Float[Array, "*samples"] | Float[Array, ""]:
    """`mean`: Σ w·l / Σ w, 0 if Σ w is 0; `sum`: Σ w·l; `none`: w·l. Sums include the mesh axes `names`.

    With `label_weights` v, the class weights of the labels, the divisor of the mean is Σ w·v.
    """
    if weights is not None:
        loss = weights * _zero_if_ignored(loss, weights)
    if reduction == "none":
        return loss
    total = psum(jnp.sum(loss), names)
    if reduction == "sum":
        return total
    return mean_from_sum(total, weights, loss.size, names, label_weights)


def mean_from_sum(
    total: Float[Array, ""],
    weights: Float[Array, "*samples"] | None,
    samples: Length,
    names: AxisNames,
    label_weights: Float[Array, "*samples"] | None = None,
) -> Float[Array, ""]:
    """Σ w·l / Σ w from Σ w·l; 0 if Σ w is 0. With `label_weights` v the divisor is Σ w·v."""
    if label_weights is not None:
        weights = label_weights if weights is None else weights * label_weights
    if weights is None:
        count = max(samples * axis_size(names), 1)
        return total / (float(count) if isinstance(count, int) else count)  # an int32 holds no more than 2³¹ − 1
    weight = psum(jnp.sum(weights), names)
    return jnp.where(weight == 0, 0, total / jnp.where(weight == 0, 1, weight))


@jax.custom_jvp
def _zero_if_ignored(loss: Array, weights: Array) -> Array:
    # 0 · NaN and 0 · inf are NaN, so a non-finite loss of weight 0 is replaced by 0. A finite loss stays: it is the
    # derivative with respect to its weight, also at weight 0.
    return jnp.where((weights == 0) & ~jnp.isfinite(loss), 0, loss)


@_zero_if_ignored.defjvp
def _zero_if_ignored_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # The weight 0 makes the cotangent 0 already, so the derivative needs no second look at the loss.
    return _zero_if_ignored(*primals), tangents[0]
