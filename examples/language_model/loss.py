"""The loss of the language model by three routes, what is measured beside it, and its gradient of a batch in parts."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

import softjax
from language_model.model import Transformer
from language_model.settings import Config
from softjax import metrics

MEASURED = ("cross_entropy", "z_loss", "accuracy", "top_5_accuracy", "entropy")


def measure(s: softjax.Statistics, z_loss: float) -> dict[str, Array]:
    """The `MEASURED` numbers of one token, in nats: what a run logs is their means over the tokens that count."""
    return {
        "cross_entropy": s.cross_entropy,
        # A weight of 0 does not read the log-normaliser: what a loss does not read costs nothing.
        "z_loss": z_loss * s.log_normalizer**2 if z_loss else jnp.zeros_like(s.cross_entropy),
        "accuracy": metrics.accuracy(s),
        "top_5_accuracy": metrics.top_k_accuracy(s, 5),
        "entropy": s.entropy,
    }


def last_layer(
    model: Transformer, rows: Int[Array, "sequences tokens"], config: Config
) -> tuple[Array, Array, Array, Array]:
    """What the losses take: hidden, kernel, labels and weights, of each token of `rows` but the first of each."""
    inputs, labels = rows[:, :-1], rows[:, 1:]
    # What follows the end of a file is another file, which nothing foretells; so are rows that only fill up a batch.
    weights = inputs != config.end
    model = jax.tree.map(lambda p: p.astype(config.compute_dtype), model)
    hidden = jax.vmap(model)(inputs)
    # One axis of samples, whichever the route.
    hidden, labels, weights = (array.reshape(-1, *array.shape[2:]) for array in (hidden, labels, weights))
    return hidden, model.kernel, labels, weights


def fused(
    hidden: Array, kernel: Array, labels: Array, weights: Bool[Array, "..."], *, z_loss: float, **axis_names: str
) -> tuple[Array, dict[str, Array]]:
    def of_token(s: softjax.Statistics) -> tuple[Array, dict[str, Array]]:
        numbers = measure(s, z_loss)
        return s.cross_entropy + numbers["z_loss"], numbers

    options: dict[str, Any] = {"weights": weights, "has_aux": True, **axis_names}
    total, numbers = softjax.linear_loss(of_token, hidden, kernel, labels, **options)
    return total, jax.tree.map(lambda number: jnp.sum(jnp.where(weights, number, 0)), numbers)


def on_logits(
    hidden: Array, kernel: Array, labels: Array, weights: Bool[Array, "..."], **options: Any
) -> tuple[Array, dict[str, Array]]:
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return softjax.cross_entropy(logits, labels, weights=weights, base=math.e, reduction="sum", **options), {}


def with_optax(
    hidden: Array,
    kernel: Array,
    labels: Array,
    weights: Bool[Array, "..."],
    *,
    z_loss: float,
    **axis_names: str,  # XLA finds by itself how to split what it is given
) -> tuple[Array, dict[str, Array]]:
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if z_loss:
        losses += z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    return jnp.sum(jnp.where(weights, losses, 0)), {}


# Each gives the sum of the losses and those of what it measures beside it, which only the fused one does.
ROUTES = {"fused": fused, "logits": on_logits, "optax": with_optax}


def measured(config: Config) -> tuple[str, ...]:
    """The names of what a step measures beside its loss."""
    return MEASURED if config.loss == "fused" else ()


def mean_loss_and_gradient(
    model: Transformer, batch: Int[Array, "microbatches sequences tokens"], config: Config
) -> tuple[tuple[Float[Array, ""], dict[str, Array]], Any]:
    """The mean over the tokens of the whole batch, that of each number measured beside it, and the loss's gradient.

    A mean of the microbatches' means would weigh the tokens of a short one more. So each adds its sum, divided by the
    tokens of all.
    """
    tokens = jnp.maximum(jnp.sum(batch[..., :-1] != config.end, dtype=jnp.float32), 1)

    def share(model: Transformer, rows: Array) -> tuple[Array, dict[str, Array]]:
        route = ROUTES[config.loss]
        sums = route(*last_layer(model, rows, config), z_loss=config.z_loss, **config.axis_names)
        return jax.tree.map(lambda total: total / tokens, sums)

    of_part = jax.value_and_grad(share, has_aux=True)

    def add(total: Any, rows: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(model, rows)), None

    if len(batch) == 1:
        return of_part(model, batch[0])
    numbers = dict.fromkeys(measured(config), jnp.float32(0))
    zero = ((jnp.float32(0), numbers), jax.tree.map(jnp.zeros_like, model))
    return jax.lax.scan(add, zero, batch)[0]
