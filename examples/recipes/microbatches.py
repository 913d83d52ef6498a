"""Accumulate gradients over microbatches, and average the loss over all tokens of the batch.

Use this when a batch does not fit into memory and its microbatches hold different numbers of tokens. A mean of
microbatch means would give tokens of short sequences a larger weight. Instead, `softjax.linear_cross_entropy` with
`reduction="sum"` returns the sum over each microbatch, in three matmuls with its gradients. Loss and gradients then
equal those of the batch in one piece.
"""

import math

import jax
import jax.numpy as jnp
import optax

import softjax

FEATURES = 32
HIDDEN = 64
CLASSES = 256
IGNORED = -100  # the label of padded positions

# Synthetic data: 4 microbatches of 2 sequences, with inputs [microbatches, batch, positions, features].
# A label is the index of the largest input feature.
layer_key, head_key, inputs_key = jax.random.split(jax.random.key(0), 3)
inputs = jax.random.normal(inputs_key, (4, 2, 16, FEATURES))
lengths = jnp.array([[16, 16], [16, 9], [5, 3], [2, 1]])
is_token = jnp.arange(16).reshape(1, 1, 16) < lengths[:, :, None]
labels = jnp.where(is_token, jnp.argmax(inputs, axis=-1), IGNORED)

params = {
    "layer": 0.1 * jax.random.normal(layer_key, (FEATURES, HIDDEN)),
    "head": 0.1 * jax.random.normal(head_key, (HIDDEN, CLASSES)),
}


def count_tokens(labels: jax.Array) -> jax.Array:
    return jnp.sum(labels != IGNORED, dtype=jnp.float32)


def loss_fn(params, inputs: jax.Array, labels: jax.Array, tokens_in_batch: jax.Array) -> jax.Array:
    """Returns the contribution of these samples to the mean over `tokens_in_batch` tokens, in nats.

    The default base of `linear_cross_entropy`, 10, would give hartleys.
    """
    hidden = jax.nn.gelu(inputs @ params["layer"])
    summed_nats = softjax.linear_cross_entropy(
        hidden, params["head"], labels, weights=labels != IGNORED, reduction="sum", base=math.e
    )
    return summed_nats / tokens_in_batch


def accumulated_value_and_grad(params, inputs: jax.Array, labels: jax.Array):
    """Returns the mean loss over the tokens of all microbatches, and its gradient."""
    tokens_in_batch = count_tokens(labels)

    def add_microbatch(accumulated, microbatch):
        microbatch_inputs, microbatch_labels = microbatch
        contribution = jax.value_and_grad(loss_fn)(params, microbatch_inputs, microbatch_labels, tokens_in_batch)
        return jax.tree.map(jnp.add, accumulated, contribution), None

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    loss_and_gradients, _ = jax.lax.scan(add_microbatch, zeros, (inputs, labels))
    return loss_and_gradients


optimiser = optax.adam(learning_rate=1e-2)
opt_state = optimiser.init(params)


@jax.jit
def train_step(params, opt_state, inputs, labels):
    loss, gradients = accumulated_value_and_grad(params, inputs, labels)
    updates, opt_state = optimiser.update(gradients, opt_state)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss


@jax.jit
def compare(params, inputs, labels):
    """Returns the loss of the batch in one piece, and the mean of the microbatches' means."""
    in_one_piece = loss_fn(params, inputs, labels, count_tokens(labels))
    means = []
    for microbatch_inputs, microbatch_labels in zip(inputs, labels, strict=True):
        means.append(loss_fn(params, microbatch_inputs, microbatch_labels, count_tokens(microbatch_labels)))
    return in_one_piece, sum(means) / len(means)


for step in range(21):
    in_one_piece, mean_of_means = compare(params, inputs, labels)
    params, opt_state, loss = train_step(params, opt_state, inputs, labels)
    if step % 20 == 0:
        print(
            f"step {step:2}: accumulated {loss:.4f}, in one piece {in_one_piece:.4f}, "
            f"mean of means {mean_of_means:.4f} nats per token"
        )
