"""Train a language model whose embedding is also its last layer, as in GPT-2 and Gemma.

Use this when one matrix embeds the tokens and predicts the next one. Pass `embedding.T` to
`softjax.linear_cross_entropy`: `jit` does not copy the transpose, and JAX adds up the gradients of both uses. The
program compares temporary memory with the unfused baseline. Both take three matmuls of the last layer for value and
gradients.

Source: Press and Wolf 2017, arXiv:1608.05859.
"""

import math
from functools import partial

import jax
import optax

import softjax

VOCABULARY = 16_384
FEATURES = 64

# Synthetic data: the target of token t is (5 t + 3) mod 16,384.
inputs = jax.random.randint(jax.random.key(0), (4, 128), 0, VOCABULARY)
targets = (5 * inputs + 3) % VOCABULARY

embedding_key, expand_key, project_key = jax.random.split(jax.random.key(1), 3)
initial_params = {
    "embedding": 0.1 * jax.random.normal(embedding_key, (VOCABULARY, FEATURES)),
    "expand": 0.1 * jax.random.normal(expand_key, (FEATURES, 4 * FEATURES)),
    "project": 0.1 * jax.random.normal(project_key, (4 * FEATURES, FEATURES)),
}


def hidden_states(params, tokens: jax.Array) -> jax.Array:
    embedded = params["embedding"][tokens]
    return embedded + jax.nn.gelu(embedded @ params["expand"]) @ params["project"]


def fused_loss_fn(params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy in nats per token. The default base, 10, would give hartleys."""
    kernel = params["embedding"].T  # [features, classes]
    return softjax.linear_cross_entropy(hidden_states(params, inputs), kernel, targets, base=math.e)


def unfused_loss_fn(params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the same loss from materialised logits."""
    logits = hidden_states(params, inputs) @ params["embedding"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


optimiser = optax.adam(learning_rate=1e-2)


@partial(jax.jit, static_argnames="loss_fn")
def train_step(params, opt_state, inputs, targets, loss_fn):
    loss, gradients = jax.value_and_grad(loss_fn)(params, inputs, targets)
    updates, opt_state = optimiser.update(gradients, opt_state)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss


for name, loss_fn in (("fused", fused_loss_fn), ("unfused", unfused_loss_fn)):
    params = initial_params
    opt_state = optimiser.init(params)

    # Compile ahead of time, because a compiled function reports its temporary memory.
    compiled_step = train_step.lower(params, opt_state, inputs, targets, loss_fn).compile()
    memory = compiled_step.memory_analysis()
    assert memory is not None, "this backend does not report memory"
    megabytes = memory.temp_size_in_bytes / 1e6

    losses = []
    for _ in range(10):
        params, opt_state, loss = compiled_step(params, opt_state, inputs, targets)
        losses.append(loss)
    print(f"{name}: loss {losses[0]:.3f} → {losses[-1]:.3f} nats per token, temporary memory {megabytes:.0f} MB")
