"""A language model whose embedding is its last layer, too, as in GPT-2 and Gemma.

The kernel is `embedding.T`, which is not copied inside `jit`, and the one gradient is the sum of the lookup's and the
layer's. What follows counts the memory of a step beside its arguments, without the logits and with them. Source: Press
and Wolf 2017, arXiv:1608.05859.
"""

import math
from functools import partial

import jax
import optax

import softjax

VOCABULARY, FEATURES = 16_384, 64


def hidden(params, tokens):
    x = params["embedding"][tokens]
    return x + jax.nn.gelu(x @ params["in"]) @ params["out"]


def loss(params, inputs, targets):
    return softjax.linear_cross_entropy(hidden(params, inputs), params["embedding"].T, targets, base=math.e)


def with_logits(params, inputs, targets):
    logits = hidden(params, inputs) @ params["embedding"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


@partial(jax.jit, static_argnames="loss")
def step(params, state, inputs, targets, loss=loss):
    value, gradients = jax.value_and_grad(loss)(params, inputs, targets)
    updates, state = optimiser.update(gradients, state)
    return optax.apply_updates(params, updates), state, value


keys = jax.random.split(jax.random.key(0), 4)
params = {
    "embedding": 0.1 * jax.random.normal(keys[0], (VOCABULARY, FEATURES)),
    "in": 0.1 * jax.random.normal(keys[1], (FEATURES, 4 * FEATURES)),
    "out": 0.1 * jax.random.normal(keys[2], (4 * FEATURES, FEATURES)),
}
inputs = jax.random.randint(keys[3], (4, 128), 0, VOCABULARY)
targets = (5 * inputs + 3) % VOCABULARY  # 5 t + 3 follows upon the token t
optimiser = optax.adam(1e-2)

for name, function in {"without logits": loss, "with logits": with_logits}.items():
    state = optimiser.init(params)
    memory = step.lower(params, state, inputs, targets, function).compile().memory_analysis()
    assert memory is not None
    trained, losses = params, []
    for _ in range(10):
        trained, state, value = step(trained, state, inputs, targets, function)
        losses.append(value)
    print(f"{name:14}  loss {losses[0]:.3f} → {losses[-1]:.3f} nats  memory {memory.temp_size_in_bytes / 1e6:.0f} MB")
