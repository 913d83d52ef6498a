"""Train a language model that predicts the next three tokens at each position, with three heads over one last layer.

Use this for speculative decoding or for a denser training signal. The hidden states of all heads are stacked, so one
call of `softjax.linear_loss` handles all heads. It returns the weighted loss, and the cross-entropy of each token as a
metric. With the gradients that takes three matmuls, and the logits are never materialised.

Sources: Gloeckle et al. 2024, arXiv:2404.19737; DeepSeek-V3, arXiv:2412.19437.
"""

import jax
import jax.numpy as jnp
import optax

import softjax

VOCABULARY = 256
FEATURES = 64
HEADS = 3  # head k predicts the token k + 1 positions ahead
HEAD_WEIGHTS = jnp.array([1.0, 0.15, 0.15])
NO_LABEL = -1

# Synthetic data: 8 sequences of 32 tokens that count upwards in steps of 5.
first_tokens = jax.random.randint(jax.random.key(0), (8, 1), 0, VOCABULARY)
tokens = (first_tokens + 5 * jnp.arange(32).reshape(1, 32)) % VOCABULARY

embedding_key, heads_key, kernel_key = jax.random.split(jax.random.key(1), 3)
params = {
    "embedding": 0.1 * jax.random.normal(embedding_key, (VOCABULARY, FEATURES)),
    "heads": 0.1 * jax.random.normal(heads_key, (HEADS, FEATURES, FEATURES)),
    "kernel": 0.1 * jax.random.normal(kernel_key, (FEATURES, VOCABULARY)),
}


def token_loss(statistics: softjax.Statistics):
    """Returns the cross-entropy of a token in nats, twice: as loss, which is weighted, and as metric, which is not."""
    return statistics.cross_entropy, statistics.cross_entropy


def loss_fn(params, tokens: jax.Array):
    """Returns Σ_k λ_k · (mean cross-entropy of head k), and these means. λ is `HEAD_WEIGHTS`."""
    trunk = params["embedding"][tokens]
    # Letters of the einsum: h heads, b batch, t positions, f and g features.
    head_outputs = jnp.einsum("btf,hfg->hbtg", trunk, params["heads"])
    hidden = trunk[None, :, :, :] + jax.nn.gelu(head_outputs)

    # The labels of a head are the tokens, shifted to the left. No label remains at the end of a sequence.
    labels_by_head = []
    for shift in range(1, HEADS + 1):
        padding = ((0, 0), (0, shift))
        labels_by_head.append(jnp.pad(tokens[:, shift:], padding, constant_values=NO_LABEL))
    labels = jnp.stack(labels_by_head)

    has_label = labels != NO_LABEL
    tokens_per_head = jnp.sum(has_label, axis=(1, 2), keepdims=True, dtype=jnp.float32)
    weights = jnp.where(has_label, HEAD_WEIGHTS.reshape(HEADS, 1, 1) / tokens_per_head, 0)

    loss, token_nats = softjax.linear_loss(
        token_loss, hidden, params["kernel"], labels, weights=weights, reduction="sum", has_aux=True
    )
    return loss, jnp.mean(token_nats, axis=(1, 2), where=has_label)


optimiser = optax.adam(learning_rate=1e-2)
opt_state = optimiser.init(params)


@jax.jit
def train_step(params, opt_state, tokens):
    (loss, head_losses), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, tokens)
    updates, opt_state = optimiser.update(gradients, opt_state)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss, head_losses


for step in range(41):
    params, opt_state, loss, head_losses = train_step(params, opt_state, tokens)
    if step % 20 == 0:
        losses = ", ".join(f"{head_loss:.3f}" for head_loss in head_losses)
        print(f"step {step:2}: loss {loss:.3f}, of the heads {losses} nats per token")
