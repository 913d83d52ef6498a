"""Train a Flax NNX language model without materialising its logits.

Use this when the `[batch, positions, vocabulary]` logits are the largest array of your training step.
`softjax.linear_cross_entropy` replaces the call of the last `nnx.Linear` and the loss after it. Value and gradients
cost three matmuls of the last layer, as many as the unfused baseline. The layer stays in the model, for checkpoints and
sampling.
"""

import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import softjax

VOCABULARY = 256
FEATURES = 64


class LanguageModel(nnx.Module):
    """Predicts the next token from the current token."""

    def __init__(self, vocabulary: int, features: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, features, rngs=rngs)
        self.layer = nnx.Linear(features, features, rngs=rngs)
        self.head = nnx.Linear(features, vocabulary, rngs=rngs)

    def hidden_states(self, tokens: jax.Array) -> jax.Array:
        """Returns the input of the last layer, `[batch, positions, features]`."""
        return nnx.gelu(self.layer(self.embed(tokens)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns the logits, for sampling. Training does not call this."""
        return self.head(self.hidden_states(tokens))


def loss_fn(model, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy in nats per token. The default base, 10, would give hartleys."""
    hidden = model.hidden_states(inputs)
    kernel = model.head.kernel[...]  # nnx.Param to jax.Array
    bias = model.head.bias[...]
    return softjax.linear_cross_entropy(hidden, kernel, targets, bias=bias, base=math.e)


# Synthetic data: the target of token t is (5 t + 3) mod 256.
inputs = jax.random.randint(jax.random.key(0), (8, 32), 0, VOCABULARY)
targets = (5 * inputs + 3) % VOCABULARY

model = LanguageModel(VOCABULARY, FEATURES, rngs=nnx.Rngs(0))
optimiser = nnx.Optimizer(model, optax.adam(learning_rate=1e-2), wrt=nnx.Param)


@nnx.jit
def train_step(model, optimiser, inputs, targets):
    loss, gradients = nnx.value_and_grad(loss_fn)(model, inputs, targets)
    optimiser.update(model, gradients)
    return loss


for step in range(31):
    loss = train_step(model, optimiser, inputs, targets)
    if step % 10 == 0:
        print(f"step {step:2}: loss {loss:.3f} nats per token")

predictions = jnp.argmax(model(inputs), axis=-1)
print(f"accuracy {jnp.mean(predictions == targets):.0%}")
