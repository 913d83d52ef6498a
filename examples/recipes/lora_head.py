"""A LoRA adapter of the last layer: more features, with a kernel of as many more rows.

hidden @ (W + s B A) = concat(hidden, s hidden @ B) @ concat(W, A): W [features, classes] is frozen, B and A, of a low
rank, are trained, and s is α / rank. The sum W + s B A would round small updates away in bfloat16; here only logits are
added, in float32. Source: Hu et al. 2021, arXiv:2106.09685.
"""

import math

import jax
import jax.numpy as jnp
import optax

import softjax

FEATURES, CLASSES, RANK, SCALE = 64, 1024, 8, 2.0


def loss(adapter, kernel, hidden, labels):
    down, up = adapter["down"].astype(kernel.dtype), adapter["up"].astype(kernel.dtype)
    features = jnp.concatenate([hidden, SCALE * hidden @ down], axis=-1)
    rows = jnp.concatenate([kernel, up], axis=0)
    return softjax.linear_cross_entropy(features, rows, labels, base=math.e)


def merged(adapter, kernel, hidden, labels):
    """The plain way, with the kernel in float32."""
    update = SCALE * adapter["down"] @ adapter["up"]
    logits = hidden.astype(jnp.float32) @ (kernel.astype(jnp.float32) + update)
    return softjax.cross_entropy(logits, labels, base=math.e)


@jax.jit
def step(adapter, state, *batch):
    value, gradient = jax.value_and_grad(loss)(adapter, *batch)
    updates, state = optimiser.update(gradient, state)
    return optax.apply_updates(adapter, updates), state, value


# A frozen layer in bfloat16, and labels of one that differs from it by a matrix of low rank.
keys = jax.random.split(jax.random.key(0), 5)
kernel = (0.2 * jax.random.normal(keys[0], (FEATURES, CLASSES))).astype(jnp.bfloat16)
hidden = jax.random.normal(keys[1], (1024, FEATURES)).astype(jnp.bfloat16)
other = 0.3 * jax.random.normal(keys[2], (FEATURES, 4)) @ jax.random.normal(keys[3], (4, CLASSES))
labels = jnp.argmax(hidden.astype(jnp.float32) @ (kernel.astype(jnp.float32) + other), axis=-1)

# B at random and A at 0: the adapter begins as none.
adapter = {"down": jax.random.normal(keys[4], (FEATURES, RANK)) / FEATURES**0.5, "up": jnp.zeros((RANK, CLASSES))}
optimiser = optax.adam(1e-2)
state = optimiser.init(adapter)
for i in range(61):
    if i % 20 == 0:
        batch = kernel, hidden, labels
        print(f"step {i:2}  loss {loss(adapter, *batch):.3f}  of the merged kernel {merged(adapter, *batch):.3f}")
    adapter, state, _ = step(adapter, state, kernel, hidden, labels)
