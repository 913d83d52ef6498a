"""Sequence packing: documents of unequal lengths share rows, and the loss is that of each document by itself.

A token's label is the next of its row, of weight 1 if both are of one document; attention sees a token's own document,
and positions count from its beginning. So Σ w h / Σ w is that of the documents in rows of their own. Source: Krell et
al. 2021, arXiv:2107.02027.
"""

import math

import jax
import jax.numpy as jnp
import optax

import softjax

VOCABULARY, FEATURES, LENGTH = 64, 32, 32


def packed(documents):
    """Tokens, document numbers (0 is padding) and positions, `[rows, length]`: each goes to the first row with room."""
    rows = []
    for number, document in enumerate(documents, 1):
        row = next((row for row in rows if len(row) + len(document) <= LENGTH), None)
        if row is None:
            rows.append(row := [])
        row.extend((token, number, position) for position, token in enumerate(document))
    return jnp.moveaxis(jnp.array([row + (LENGTH - len(row)) * [(0, 0, 0)] for row in rows]), -1, 0)


def loss(params, tokens, documents, positions):
    x = params["embedding"][tokens] + params["position"][positions]
    query, key, value = (x @ params[name] for name in ("query", "key", "value"))
    seen = (documents[:, :, None] == documents[:, None, :]) & jnp.tri(LENGTH, dtype=bool)[None]
    attention = softjax.softmax(query @ key.mT / math.sqrt(FEATURES), where=seen)
    hidden = x + attention @ value
    weights = (documents[:, :-1] == documents[:, 1:]) & (documents[:, 1:] > 0)
    return softjax.linear_cross_entropy(hidden[:, :-1], params["head"], tokens[:, 1:], weights=weights, base=math.e)


@jax.jit
def step(params, state, batch):
    updates, state = optimiser.update(jax.grad(loss)(params, *batch), state)
    return optax.apply_updates(params, updates), state


# Documents that count upwards, from some token, by one to three.
lengths = jax.random.randint(jax.random.key(0), (40,), 2, LENGTH + 1).tolist()
documents = [[(7 * i + (1 + i % 3) * t) % VOCABULARY for t in range(n)] for i, n in enumerate(lengths)]
batch, apart = packed(documents), jnp.concatenate([packed([document]) for document in documents], axis=1)
print(f"{len(batch[0])} rows instead of {len(apart[0])}")

shapes = {"embedding": (VOCABULARY, FEATURES), "position": (LENGTH, FEATURES), "head": (FEATURES, VOCABULARY)}
shapes |= dict.fromkeys(("query", "key", "value"), (FEATURES, FEATURES))
params = {k: 0.1 * jax.random.normal(jax.random.key(i), shape) for i, (k, shape) in enumerate(shapes.items())}
optimiser = optax.adam(1e-2)
state = optimiser.init(params)
for i in range(61):
    if i % 20 == 0:
        print(f"step {i:2}  loss {loss(params, *batch):.4f}  of the documents apart {loss(params, *apart):.4f}")
    params, state = step(params, state, batch)
