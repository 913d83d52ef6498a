"""The head of an Equinox language model, trained without its logits.

`linear_cross_entropy` takes the place of the last `eqx.nn.Linear` and the loss after it. The weight is [classes,
features]; its transpose, the kernel, is not copied inside `jit`. Map the model over the tokens, not the loss: called
once with all leading axes, it makes one gradient of the kernel, and under `vmap` one for each token.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import softjax


class Model(eqx.Module):
    embed: eqx.nn.Embedding
    layer: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, vocabulary: int, features: int, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(vocabulary, features, key=keys[0])
        self.layer = eqx.nn.Linear(features, features, key=keys[1])
        self.head = eqx.nn.Linear(features, vocabulary, key=keys[2])

    def hidden(self, token):
        return jax.nn.gelu(self.layer(self.embed(token)))


def loss(model, inputs, targets):
    hidden = jax.vmap(jax.vmap(model.hidden))(inputs)
    return softjax.linear_cross_entropy(hidden, model.head.weight.T, targets, bias=model.head.bias, base=math.e)


@eqx.filter_jit
def step(model, state, inputs, targets):
    value, gradients = eqx.filter_value_and_grad(loss)(model, inputs, targets)
    updates, state = optimiser.update(gradients, state)
    return eqx.apply_updates(model, updates), state, value


# Sequences in which 5 t + 3 follows upon the token t.
tokens = [jax.random.randint(jax.random.key(0), (8,), 0, 256)]
for _ in range(32):
    tokens.append((5 * tokens[-1] + 3) % 256)
tokens = jnp.stack(tokens, axis=1)
inputs, targets = tokens[:, :-1], tokens[:, 1:]

model, optimiser, losses = Model(256, 64, jax.random.key(1)), optax.adam(1e-2), []
state = optimiser.init(eqx.filter(model, eqx.is_array))
for _ in range(30):
    model, state, value = step(model, state, inputs, targets)
    losses.append(value)
print(f"loss {losses[0]:.2f} → {losses[-1]:.2f} nats")
