"""Gradient accumulation whose loss is the mean over the tokens of all microbatches.

With padding, the mean of the microbatches' means counts a token of a short one for more, and depends on how the batch
was cut. Here each gives its sum over the tokens of all, Σ_i w_mi h_mi / Σ_m Σ_i w_mi: value and gradient are those of
the batch at once, whatever the cut.
"""

import math

import jax
import jax.numpy as jnp
import optax

import softjax

PAD = -100


def count(labels):
    return jnp.sum(labels != PAD).astype(jnp.float32)


def share(params, x, labels, tokens):
    """What one microbatch adds to the mean over `tokens` tokens."""
    hidden, weights = jax.nn.gelu(x @ params["layer"]), labels != PAD
    total = softjax.linear_cross_entropy(hidden, params["head"], labels, weights=weights, reduction="sum", base=math.e)
    return total / tokens


@jax.jit
def accumulated(params, x, labels):
    """The mean over all microbatches, `[microbatches, batch, positions]`, and its gradient."""
    value_and_grad, tokens = jax.value_and_grad(share), count(labels)

    def add(total, microbatch):
        return jax.tree.map(jnp.add, total, value_and_grad(params, *microbatch, tokens)), None

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zero, (x, labels))[0]


keys = jax.random.split(jax.random.key(0), 3)
params = {"layer": 0.1 * jax.random.normal(keys[0], (32, 64)), "head": 0.1 * jax.random.normal(keys[1], (64, 256))}
x = jax.random.normal(keys[2], (4, 2, 16, 32))  # 4 microbatches of 2 sequences
lengths = jnp.array([[16, 16], [16, 9], [5, 3], [2, 1]])
labels = jnp.where(jnp.arange(16)[None, None] < lengths[..., None], jnp.argmax(x, axis=-1), PAD)

optimiser = optax.adam(1e-2)
state = optimiser.init(params)
for i in range(21):
    value, gradient = accumulated(params, x, labels)
    if i % 20 == 0:
        means = [share(params, a, b, count(b)) for a, b in zip(x, labels, strict=True)]
        print(f"step {i:2}  loss {value:.4f}  at once {share(params, x, labels, count(labels)):.4f}", end="  ")
        print(f"mean of means {sum(means) / len(means):.4f}")
    updates, state = optimiser.update(gradient, state)
    params = optax.apply_updates(params, updates)
