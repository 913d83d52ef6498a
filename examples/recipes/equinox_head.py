"""Train an Equinox language model without materialising its logits.

Use this when the `[batch, positions, vocabulary]` logits are the largest array of your training step.
`softjax.linear_cross_entropy` replaces the call of the last `eqx.nn.Linear` and the loss after it. Value and gradients
cost three matmuls of the last layer, as many as the unfused baseline. The layer stays in the model, for checkpoints and
sampling.
"""

import math

import equinox as eqx
import jax
import optax

import softjax

VOCABULARY = 256
FEATURES = 64


class LanguageModel(eqx.Module):
    """Predicts the next token from the current token."""

    embed: eqx.nn.Embedding
    layer: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, vocabulary: int, features: int, key: jax.Array):
        embed_key, layer_key, head_key = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(vocabulary, features, key=embed_key)
        self.layer = eqx.nn.Linear(features, features, key=layer_key)
        self.head = eqx.nn.Linear(features, vocabulary, key=head_key)

    def hidden_state(self, token: jax.Array) -> jax.Array:
        """Returns the input of the last layer for one token, `[features]`."""
        return jax.nn.gelu(self.layer(self.embed(token)))

    def __call__(self, token: jax.Array) -> jax.Array:
        """Returns the logits of one token, for sampling. Training does not call this."""
        return self.head(self.hidden_state(token))


def loss_fn(model: LanguageModel, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy in nats per token. The default base, 10, would give hartleys."""
    # Map the model over batch and positions, but not the loss: `vmap` of the loss makes one kernel gradient per token.
    hidden = jax.vmap(jax.vmap(model.hidden_state))(inputs)
    kernel = model.head.weight.T  # [features, classes]; `jit` does not copy the transpose
    return softjax.linear_cross_entropy(hidden, kernel, targets, bias=model.head.bias, base=math.e)


# Synthetic data: the target of token t is (5 t + 3) mod 256.
inputs = jax.random.randint(jax.random.key(0), (8, 32), 0, VOCABULARY)
targets = (5 * inputs + 3) % VOCABULARY

model = LanguageModel(VOCABULARY, FEATURES, key=jax.random.key(1))
optimiser = optax.adam(learning_rate=1e-2)
opt_state = optimiser.init(eqx.filter(model, eqx.is_array))


@eqx.filter_jit
def train_step(model, opt_state, inputs, targets):
    loss, gradients = eqx.filter_value_and_grad(loss_fn)(model, inputs, targets)
    updates, opt_state = optimiser.update(gradients, opt_state)
    model = eqx.apply_updates(model, updates)
    return model, opt_state, loss


for step in range(31):
    model, opt_state, loss = train_step(model, opt_state, inputs, targets)
    if step % 10 == 0:
        print(f"step {step:2}: loss {loss:.3f} nats per token")
