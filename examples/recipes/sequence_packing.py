"""Pack several documents into one row, with the same loss as one document per row.

Use this to train on short documents with little padding. `softjax.softmax` masks attention between documents with
`where`. `softjax.linear_cross_entropy` takes weight 0 for the last token of each document, and for padding.

Source: Krell et al. 2021, arXiv:2107.02027.
"""

import math

import jax
import jax.numpy as jnp
import optax

import softjax

VOCABULARY = 64
FEATURES = 32
LENGTH = 32  # positions per row
Document = list[int]  # token ids


def assign_rows(documents: list[Document]) -> list[list[Document]]:
    """Puts each document into the first row that has room for it. A row is a list of documents."""
    rows = []
    for document in documents:
        rows_with_room = [row for row in rows if sum(len(other) for other in row) + len(document) <= LENGTH]
        if rows_with_room:
            rows_with_room[0].append(document)
        else:
            rows.append([document])
    return rows


def to_arrays(rows: list[list[Document]]) -> dict[str, jax.Array]:
    """Returns `[rows, positions]` arrays. Documents are numbered from 1 in each row; 0 marks padding."""
    batch = {"tokens": [], "documents": [], "positions": []}
    for row in rows:
        tokens, documents, positions = [], [], []
        for number, document in enumerate(row, start=1):
            tokens += document
            documents += [number] * len(document)
            positions += range(len(document))
        padding = [0] * (LENGTH - len(tokens))
        batch["tokens"].append(tokens + padding)
        batch["documents"].append(documents + padding)
        batch["positions"].append(positions + padding)
    return {name: jnp.array(values) for name, values in batch.items()}


# Synthetic data: 40 documents of 2 to 32 tokens, which count upwards in steps of 1, 2 or 3.
documents = []
for number in range(40):
    length = 2 + (11 * number) % 31
    stride = 1 + number % 3
    documents.append([(7 * number + stride * position) % VOCABULARY for position in range(length)])
packed = to_arrays(assign_rows(documents))
unpacked = to_arrays([[document] for document in documents])
print(f"{len(packed['tokens'])} packed rows instead of {len(unpacked['tokens'])}")

keys = jax.random.split(jax.random.key(0), 4)
params = {
    "embedding": 0.1 * jax.random.normal(keys[0], (VOCABULARY, FEATURES)),
    "position": 0.1 * jax.random.normal(keys[1], (LENGTH, FEATURES)),
    "attention": 0.1 * jax.random.normal(keys[2], (FEATURES, 3 * FEATURES)),
    "head": 0.1 * jax.random.normal(keys[3], (FEATURES, VOCABULARY)),
}


def loss_fn(params, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the mean cross-entropy in nats per token. The default base, 10, would give hartleys."""
    tokens, documents, positions = batch["tokens"], batch["documents"], batch["positions"]
    embedded = params["embedding"][tokens] + params["position"][positions]
    query, key, value = jnp.split(embedded @ params["attention"], 3, axis=-1)
    same_document = documents[:, :, None] == documents[:, None, :]
    causal = jnp.tri(LENGTH, dtype=bool)[None, :, :]
    attention = softjax.softmax(query @ key.mT / math.sqrt(FEATURES), where=same_document & causal)
    hidden = embedded + attention @ value
    # The last token of a document and padding have no label.
    has_label = (documents[:, :-1] == documents[:, 1:]) & (documents[:, 1:] > 0)
    return softjax.linear_cross_entropy(hidden[:, :-1], params["head"], tokens[:, 1:], weights=has_label, base=math.e)


optimiser = optax.adam(learning_rate=1e-2)
opt_state = optimiser.init(params)


@jax.jit
def train_step(params, opt_state, batch):
    loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt_state = optimiser.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss


evaluate = jax.jit(loss_fn)
for step in range(61):
    unpacked_loss = evaluate(params, unpacked)
    params, opt_state, loss = train_step(params, opt_state, packed)
    if step % 20 == 0:
        print(f"step {step:2}: loss {loss:.4f} nats per token, one document per row {unpacked_loss:.4f} nats per token")
