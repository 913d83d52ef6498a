"""The loss of the language model by four routes, what is measured beside it, and its gradient of a batch in parts."""

import math
from typing import Any, NamedTuple, Protocol

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
    return *hidden_and_kernel(model, inputs, config), labels.reshape(-1), weights.reshape(-1)


def hidden_and_kernel(
    model: Transformer, inputs: Int[Array, "sequences positions"], config: Config
) -> tuple[Float[Array, "tokens features"], Float[Array, "features vocabulary"]]:
    """One axis of samples, whichever the route."""
    model = jax.tree.map(lambda p: p.astype(config.compute_dtype), model)
    hidden = jax.vmap(model)(inputs)
    return hidden.reshape(-1, hidden.shape[-1]), model.kernel


def fused(
    hidden: Array, kernel: Array, labels: Array, weights: Bool[Array, "..."], *, z_loss: float, **axis_names: str
) -> tuple[Array, dict[str, Array]]:
    def of_token(s: softjax.Statistics) -> tuple[Array, dict[str, Array]]:
        numbers = measure(s, z_loss)
        return s.cross_entropy + numbers["z_loss"], numbers

    options: dict[str, Any] = {"weights": weights, "has_aux": True, **axis_names}
    total, numbers = softjax.linear_loss(of_token, hidden, kernel, labels, **options)
    return total, jax.tree.map(lambda number: jnp.sum(jnp.where(weights, number, 0)), numbers)


def unlogged(
    hidden: Array, kernel: Array, labels: Array, weights: Bool[Array, "..."], **options: Any
) -> tuple[Array, dict[str, Array]]:
    options |= {"weights": weights, "base": math.e, "reduction": "sum"}
    return softjax.linear_cross_entropy(hidden, kernel, labels, **options), {}


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
ROUTES = {"fused": fused, "unlogged": unlogged, "logits": on_logits, "optax": with_optax}


def measured(config: Config) -> tuple[str, ...]:
    """The names of what a step on the text measures beside its loss."""
    return MEASURED if config.loss == "fused" else ()


class Loss(Protocol):
    """What a model learns from, a pytree: of sequences the sum of the tokens' losses, and those of what it measures."""

    def measured(self, config: Config) -> tuple[str, ...]:
        """The names of the numbers that it gives beside the loss."""
        ...

    def __call__(
        self, model: Transformer, rows: Int[Array, "sequences tokens"], beside: Any, config: Config
    ) -> tuple[Array, dict[str, Array]]:
        """`beside` is what else is known of these sequences, arrays whose first axis is theirs."""
        ...


class OfText(NamedTuple):
    """The text itself, by the route of the settings."""

    def measured(self, config: Config) -> tuple[str, ...]:
        return measured(config)

    def __call__(
        self, model: Transformer, rows: Int[Array, "sequences tokens"], beside: Any, config: Config
    ) -> tuple[Array, dict[str, Array]]:
        return ROUTES[config.loss](*last_layer(model, rows, config), z_loss=config.z_loss, **config.axis_names)


TEXT = OfText()


def mean_loss_and_gradient(
    model: Transformer,
    batch: Int[Array, "microbatches sequences tokens"],
    config: Config,
    loss: Loss = TEXT,
    beside: Any = (),
) -> tuple[tuple[Float[Array, ""], dict[str, Array]], Any]:
    """The mean over the tokens of the whole batch, that of each number measured beside it, and the loss's gradient.

    A mean of the microbatches' means would weigh the tokens of a short one more. So each adds its sum, divided by the
    tokens of all.
    """
    tokens = jnp.maximum(jnp.sum(batch[..., :-1] != config.end, dtype=jnp.float32), 1)

    def share(model: Transformer, part: tuple[Array, Any]) -> tuple[Array, dict[str, Array]]:
        return jax.tree.map(lambda total: total / tokens, loss(model, *part, config))

    of_part = jax.value_and_grad(share, has_aux=True)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(model, part)), None

    if len(batch) == 1:
        return of_part(model, jax.tree.map(lambda leaf: leaf[0], (batch, beside)))
    numbers = dict.fromkeys(loss.measured(config), jnp.float32(0))
    zero = ((jnp.float32(0), numbers), jax.tree.map(jnp.zeros_like, model))
    return jax.lax.scan(add, zero, (batch, beside))[0]
