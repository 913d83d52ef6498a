"""Train a Flax Linen language model without materialising its logits.

Use this when the `[batch, positions, vocabulary]` logits are the largest array of your training step.
`softjax.linear_cross_entropy` replaces the last `nn.Dense` and the loss after it. Value and gradients cost three
matmuls of the last layer, as many as the unfused baseline. The parameters stay as they are, for checkpoints and
sampling.
"""

import math

import jax
import optax
from flax import linen as nn

import softjax

VOCABULARY = 256
FEATURES = 64


class LanguageModel(nn.Module):
    """Predicts the next token from the current token."""

    vocabulary: int
    features: int

    def setup(self):
        self.embed = nn.Embed(self.vocabulary, self.features)
        self.layer = nn.Dense(self.features)
        self.head = nn.Dense(self.vocabulary)

    def hidden_states(self, tokens: jax.Array) -> jax.Array:
        """Returns the input of the last layer, `[batch, positions, features]`."""
        return nn.gelu(self.layer(self.embed(tokens)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits, for initialisation and sampling. Training does not call this."""
        return self.head(self.hidden_states(tokens))


# Synthetic data: the target of token t is (5 t + 3) mod 256.
inputs = jax.random.randint(jax.random.key(0), (8, 32), 0, VOCABULARY)
targets = (5 * inputs + 3) % VOCABULARY

model = LanguageModel(VOCABULARY, FEATURES)
params = model.init(jax.random.key(1), inputs)["params"]
apply_hidden_states = nn.apply(LanguageModel.hidden_states, model)  # like `model.apply`


def loss_fn(params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy in nats per token. The default base, 10, would give hartleys."""
    hidden = apply_hidden_states({"params": params}, inputs)
    head = params["head"]
    return softjax.linear_cross_entropy(hidden, head["kernel"], targets, bias=head["bias"], base=math.e)


optimiser = optax.adam(learning_rate=1e-2)
opt_state = optimiser.init(params)


@jax.jit
def train_step(params, opt_state, inputs, targets):
    loss, gradients = jax.value_and_grad(loss_fn)(params, inputs, targets)
    updates, opt_state = optimiser.update(gradients, opt_state)
    params = optax.apply_updates(params, updates)
    return params, opt_state, loss


for step in range(31):
    params, opt_state, loss = train_step(params, opt_state, inputs, targets)
    if step % 10 == 0:
        print(f"step {step:2}: loss {loss:.3f} nats per token")
