"""Multi-token prediction: at each position a model foretells the next n tokens, by n heads over one last layer.

The heads' hidden states are stacked as further samples: one call takes all of them by the one kernel. The loss is
Σ_k λ_k · mean_k(h), by weights λ_k / (tokens of head k), 0 where a sequence has ended. Sources: Gloeckle et al. 2024,
arXiv:2404.19737; DeepSeek-V3, arXiv:2412.19437, whose λ is 0.3 shared by the further heads.
"""

import jax
import jax.numpy as jnp
import optax

import softjax

VOCABULARY, FEATURES, HEADS, LENGTH = 256, 64, 3, 32
LAMBDA = jnp.array([1.0, 0.15, 0.15])


def loss(params, tokens):
    trunk = params["embedding"][tokens]
    hidden = trunk[None] + jax.nn.gelu(jnp.einsum("btf,kfg->kbtg", trunk, params["heads"]))

    labels = jnp.stack([jnp.pad(tokens[:, k:], ((0, 0), (0, k)), constant_values=-1) for k in range(1, HEADS + 1)])
    valid = labels != -1
    count = jnp.sum(valid, axis=(1, 2), dtype=jnp.float32)
    weights = jnp.where(valid, (LAMBDA / count)[:, None, None], 0)

    def both(s):
        return s.cross_entropy, s.cross_entropy

    total, nats = softjax.linear_loss(both, hidden, params["kernel"], labels, weights=weights, has_aux=True)
    return total, jnp.mean(nats, axis=(1, 2), where=valid)


@jax.jit
def step(params, state, tokens):
    (value, of_head), gradient = jax.value_and_grad(loss, has_aux=True)(params, tokens)
    updates, state = optimiser.update(gradient, state)
    return optax.apply_updates(params, updates), state, value, of_head


# Sequences in which 5 t + 3 follows upon the token t.
tokens = [jax.random.randint(jax.random.key(0), (8,), 0, VOCABULARY)]
for _ in range(LENGTH - 1):
    tokens.append((5 * tokens[-1] + 3) % VOCABULARY)
tokens = jnp.stack(tokens, axis=1)

shapes = {"embedding": (VOCABULARY, FEATURES), "heads": (HEADS, FEATURES, FEATURES), "kernel": (FEATURES, VOCABULARY)}
params = {k: 0.1 * jax.random.normal(jax.random.key(i), shape) for i, (k, shape) in enumerate(shapes.items())}
optimiser = optax.adam(1e-2)
state = optimiser.init(params)
for i in range(41):
    params, state, value, of_head = step(params, state, tokens)
    if i % 20 == 0:
        print(f"step {i:2}  loss {value:.3f}  of the heads", *(f"{nats:.3f}" for nats in of_head), "nats")
