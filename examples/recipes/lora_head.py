"""Train a LoRA adapter of the last layer without forming the merged kernel or the logits.

Use this to fine-tune a frozen kernel W with two small matrices B and A. The merged kernel W + s B A would lose small
updates to rounding in bfloat16. Instead, append the adapter to the inputs of `softjax.linear_cross_entropy`, because
hidden @ (W + s B A) = concat(hidden, s hidden @ B) @ concat(W, A). Value and gradients cost three matmuls.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

import math

import jax
import jax.numpy as jnp
import optax

import softjax

FEATURES = 64
CLASSES = 1024
SAMPLES = 1024
RANK = 8
SCALE = 2.0  # s, which is α / rank in the paper

# Synthetic data: a frozen bfloat16 kernel, and labels of a kernel that differs from it by a matrix of rank 4.
keys = jax.random.split(jax.random.key(0), 5)
kernel = (0.2 * jax.random.normal(keys[0], (FEATURES, CLASSES))).astype(jnp.bfloat16)
hidden = jax.random.normal(keys[1], (SAMPLES, FEATURES)).astype(jnp.bfloat16)
difference = 0.3 * jax.random.normal(keys[2], (FEATURES, 4)) @ jax.random.normal(keys[3], (4, CLASSES))
labels = jnp.argmax(hidden.astype(jnp.float32) @ (kernel.astype(jnp.float32) + difference), axis=-1)

# The adapter is trained in float32. A starts at 0, so training starts from W.
adapter = {
    "B": jax.random.normal(keys[4], (FEATURES, RANK)) / math.sqrt(FEATURES),
    "A": jnp.zeros((RANK, CLASSES)),
}


def loss_fn(adapter, kernel: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy in nats per sample. The default base, 10, would give hartleys."""
    adapter_features = SCALE * hidden @ adapter["B"].astype(hidden.dtype)
    adapter_rows = adapter["A"].astype(kernel.dtype)
    extended_hidden = jnp.concatenate([hidden, adapter_features], axis=-1)  # [samples, features + rank]
    extended_kernel = jnp.concatenate([kernel, adapter_rows], axis=0)  # [features + rank, classes]
    return softjax.linear_cross_entropy(extended_hidden, extended_kernel, labels, base=math.e)


def merged_loss_fn(adapter, kernel: jax.Array, hidden: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the same loss from the merged kernel and materialised logits, in float32."""
    merged_kernel = kernel.astype(jnp.float32) + SCALE * adapter["B"] @ adapter["A"]
    logits = hidden.astype(jnp.float32) @ merged_kernel
    return softjax.cross_entropy(logits, labels, base=math.e)


optimiser = optax.adam(learning_rate=1e-2)
opt_state = optimiser.init(adapter)


@jax.jit
def train_step(adapter, opt_state, kernel, hidden, labels):
    loss, gradients = jax.value_and_grad(loss_fn)(adapter, kernel, hidden, labels)
    updates, opt_state = optimiser.update(gradients, opt_state)
    adapter = optax.apply_updates(adapter, updates)
    return adapter, opt_state, loss


merged_loss = jax.jit(merged_loss_fn)
for step in range(61):
    merged = merged_loss(adapter, kernel, hidden, labels)
    adapter, opt_state, loss = train_step(adapter, opt_state, kernel, hidden, labels)
    if step % 20 == 0:
        print(f"step {step:2}: loss {loss:.3f} nats per sample, merged kernel {merged:.3f} nats per sample")
