"""The loss of the language model, by three routes, and its gradient over a batch in parts."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _lm_config import Config
from _lm_model import Transformer
from jaxtyping import Array, Bool, Float, Int

import softjax


def token_losses(
    model: Transformer, rows: Int[Array, "sequences tokens"], config: Config, *, z_loss: float, reduction: str
) -> Array:
    """The loss in nats of each token of `rows` but the first of each, given those before it: "none", or their "sum"."""
    inputs, labels = rows[:, :-1], rows[:, 1:]
    # What follows the end of a file is another file, which nothing foretells; so are rows that only fill up a batch.
    weights = inputs != config.end
    model = jax.tree.map(lambda p: p.astype(config.compute_dtype), model)
    hidden = jax.vmap(model)(inputs)
    # One axis of samples: of logits with two, XLA on a CPU makes the gradient twice. The fused route does not care.
    samples = (array.reshape(-1, *array.shape[2:]) for array in (hidden, labels, weights))
    options = {"z_loss": z_loss, "reduction": reduction, **config.axis_names}
    losses = ROUTES[config.loss](model.kernel, *samples, **options)
    return losses.reshape(inputs.shape) if reduction == "none" else losses


def fused(kernel: Array, hidden: Array, labels: Array, weights: Bool[Array, "..."], **options: Any) -> Array:
    return softjax.linear_cross_entropy(hidden, kernel, labels, weights=weights, base=math.e, **options)


def on_logits(kernel: Array, hidden: Array, labels: Array, weights: Bool[Array, "..."], **options: Any) -> Array:
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return softjax.cross_entropy(logits, labels, weights=weights, base=math.e, **options)


def with_optax(
    kernel: Array,
    hidden: Array,
    labels: Array,
    weights: Bool[Array, "..."],
    *,
    z_loss: float,
    reduction: str,
    **axis_names: str,  # XLA finds by itself how to split what it is given
) -> Array:
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if z_loss:
        losses += z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    losses = jnp.where(weights, losses, 0)
    return losses if reduction == "none" else jnp.sum(losses)


ROUTES = {"fused": fused, "logits": on_logits, "optax": with_optax}


def mean_loss_and_gradient(
    model: Transformer, batch: Int[Array, "microbatches sequences tokens"], config: Config
) -> tuple[Float[Array, ""], Any]:
    """The mean over the tokens of the whole batch, and its gradient.

    A mean of the microbatches' means would weigh the tokens of a short one more. So each adds its sum, divided by the
    tokens of all.
    """
    tokens = jnp.sum(batch[..., :-1] != config.end, dtype=jnp.float32)

    def share(model: Transformer, rows: Array) -> Array:
        total = token_losses(model, rows, config, z_loss=config.z_loss, reduction="sum")
        return total / jnp.maximum(tokens, 1)

    def add(total: Any, rows: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(share)(model, rows)), None

    if len(batch) == 1:
        return jax.value_and_grad(share)(model, batch[0])
    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, model))
    return jax.lax.scan(add, zero, batch)[0]
