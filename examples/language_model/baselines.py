"""Other losses of the language model, to compare with the fused one of `train_lm.py`. They log nothing else."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

import softjax


def unlogged(hidden: Array, kernel: Array, labels: Array, weights: Bool[Array, "..."], **options: Any) -> Array:
    """Fused like the loss of `train_lm.py`, but without the metrics."""
    return softjax.linear_cross_entropy(
        hidden, kernel, labels, weights=weights, base=math.e, reduction="sum", **options
    )


def on_logits(hidden: Array, kernel: Array, labels: Array, weights: Bool[Array, "..."], **options: Any) -> Array:
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return softjax.cross_entropy(logits, labels, weights=weights, base=math.e, reduction="sum", **options)


def with_optax(
    hidden: Array,
    kernel: Array,
    labels: Array,
    weights: Bool[Array, "..."],
    *,
    z_loss: float,
    **axis_names: str,  # not needed: XLA shards the logits by itself
) -> Array:
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if z_loss:
        losses += z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    return jnp.sum(jnp.where(weights, losses, 0))


LOSSES = {"unlogged": unlogged, "logits": on_logits, "optax": with_optax}
"""By the setting `loss`. Each returns the sum over the tokens, in nats."""
