"""The cross-entropy of each row, as arithmetic on its statistics."""

import jax.numpy as jnp

from softjax import _labels
from softjax import _units as units
from softjax._statistics import Rows
from softjax._types import Array, Float


def row_cross_entropy(
    rows: Rows, labels: Array, smoothing: Array | float | None, z_loss: Array | float | None, base: float
) -> Float[Array, "*samples"]:
    """(P·z − a) / ln b, smoothed, with its penalty c·z²; NaN for a class id that is not canonical."""
    loss = units.from_nats(_nats(rows, smoothing), base)
    if z_loss is not None:
        # at a traced c of 0 an infinite z takes no part, as at a static one
        z_loss = _scalar(z_loss, loss)
        loss = loss + z_loss * jnp.where(z_loss > 0, rows.origin + rows.log_normalizer, 0) ** 2
    return jnp.where(labels < 0, jnp.nan, loss) if _labels.is_ids(labels) else loss


def _nats(rows: Rows, smoothing: Array | float | None) -> Float[Array, "*samples"]:
    """P·z − a, smoothed: (1 − ε)(P·z − a) + ε (z − m), the numbers measured from one origin."""
    z, a, m, mass = rows.log_normalizer, rows.label_logit, rows.mean_logit, rows.label_mass
    hard = (z if mass is None else mass * z) - a
    if smoothing is None:
        return hard
    smoothing = _scalar(smoothing, z)
    # at ε = 1 the label takes no part, also if its logit is −inf; at a traced ε of 0 nor does any other class
    return jnp.where(smoothing < 1, (1 - smoothing) * hard, 0) + jnp.where(smoothing > 0, smoothing * (z - m), 0)


def _scalar(number: Array | float, like: Array) -> Float[Array, ""]:
    return jnp.asarray(number, like.dtype)
