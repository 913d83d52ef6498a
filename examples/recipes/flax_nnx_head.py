"""The head of a Flax NNX language model, trained without its logits.

`linear_cross_entropy(hidden, head.kernel, targets, bias=head.bias)` is `cross_entropy(head(hidden), targets)`, but the
[batch, positions, vocabulary] array of logits, the largest of a language model, never exists. The layer stays where it
is, for checkpoints and sampling.
"""

import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import softjax


class Model(nnx.Module):
    def __init__(self, vocabulary: int, features: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, features, rngs=rngs)
        self.layer = nnx.Linear(features, features, rngs=rngs)
        self.head = nnx.Linear(features, vocabulary, rngs=rngs)

    def hidden(self, tokens):
        return nnx.gelu(self.layer(self.embed(tokens)))

    def __call__(self, tokens):  # the logits, for sampling
        return self.head(self.hidden(tokens))


def loss(model, inputs, targets):
    head = model.head
    hidden = model.hidden(inputs)
    return softjax.linear_cross_entropy(hidden, head.kernel[...], targets, bias=head.bias[...], base=math.e)


@nnx.jit
def step(model, optimizer, inputs, targets):
    value, gradients = nnx.value_and_grad(loss)(model, inputs, targets)
    optimizer.update(model, gradients)
    return value


# Sequences in which 5 t + 3 follows upon the token t.
tokens = [jax.random.randint(jax.random.key(0), (8,), 0, 256)]
for _ in range(32):
    tokens.append((5 * tokens[-1] + 3) % 256)
tokens = jnp.stack(tokens, axis=1)
inputs, targets = tokens[:, :-1], tokens[:, 1:]

model = Model(256, 64, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
losses = [step(model, optimizer, inputs, targets) for _ in range(30)]
print(f"loss {losses[0]:.2f} → {losses[-1]:.2f} nats")
accuracy = jnp.mean(model(inputs).argmax(axis=-1) == targets)
print(f"next tokens right {accuracy:.0%}")
