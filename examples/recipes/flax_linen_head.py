"""The head of a Flax Linen language model, trained without its logits.

`linear_cross_entropy` takes the place of the last `nn.Dense` and the loss after it: a method of the model ends at the
hidden states, and the loss reads kernel and bias of the head from the parameters, which stay as they were, for
checkpoints and sampling. The [batch, positions, vocabulary] array of logits never exists.
"""

import math

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import softjax


class Model(nn.Module):
    vocabulary: int
    features: int

    def setup(self):
        self.embed = nn.Embed(self.vocabulary, self.features)
        self.layer = nn.Dense(self.features)
        self.head = nn.Dense(self.vocabulary)

    def hidden(self, tokens):
        return nn.gelu(self.layer(self.embed(tokens)))

    def __call__(self, tokens):  # the logits, for `init` and sampling
        return self.head(self.hidden(tokens))


def loss(params, inputs, targets):
    hidden, head = nn.apply(Model.hidden, model)({"params": params}, inputs), params["head"]
    return softjax.linear_cross_entropy(hidden, head["kernel"], targets, bias=head["bias"], base=math.e)


@jax.jit
def step(params, state, inputs, targets):
    value, gradients = jax.value_and_grad(loss)(params, inputs, targets)
    updates, state = optimiser.update(gradients, state)
    return optax.apply_updates(params, updates), state, value


# Sequences in which 5 t + 3 follows upon the token t.
tokens = [jax.random.randint(jax.random.key(0), (8,), 0, 256)]
for _ in range(32):
    tokens.append((5 * tokens[-1] + 3) % 256)
tokens = jnp.stack(tokens, axis=1)
inputs, targets = tokens[:, :-1], tokens[:, 1:]

model, optimiser, losses = Model(256, 64), optax.adam(1e-2), []
params = model.init(jax.random.key(1), inputs)["params"]
state = optimiser.init(params)
for _ in range(30):
    params, state, value = step(params, state, inputs, targets)
    losses.append(value)
print(f"loss {losses[0]:.2f} → {losses[-1]:.2f} nats")
