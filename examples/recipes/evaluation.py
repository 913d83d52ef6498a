"""An evaluation over batches: perplexity, accuracy and calibration of all samples, and the temperature that mends it.

Sums of weights, w · h and w · hit, and a `Calibration`, add up over batches, as means do not. The last batch is filled
up with samples of weight 0; the temperature is fitted on other samples. Source: Guo et al. 2017, arXiv:1706.04599.
"""

import math

import jax
import jax.numpy as jnp

import softjax

BATCH, CLASSES, FEATURES = 128, 10, 32


@jax.jit
def sums(logits, labels, weights):
    s = softjax.statistics(logits, labels)
    return {
        "weight": jnp.sum(weights),
        "nats": softjax.cross_entropy(logits, labels, weights=weights, reduction="sum", base=math.e),
        "hits": jnp.sum(weights, where=s.label_rank == 0),
        "top 3": jnp.sum(weights, where=s.label_rank < 3),
        "calibration": softjax.metrics.calibration(s, weights=weights),
    }


def batches(*arrays):
    for start in range(0, len(arrays[0]), BATCH):
        parts = [array[start : start + BATCH] for array in arrays]
        missing = BATCH - len(parts[0])
        yield [jnp.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1)) for part in parts]


def evaluate(name, logits, labels):
    total, *others = (sums(*batch) for batch in batches(logits, labels, jnp.ones(len(labels))))
    for other in others:
        total = jax.tree.map(jnp.add, total, other)
    nats, hits, top = (total[key] / total["weight"] for key in ("nats", "hits", "top 3"))
    error = total["calibration"].expected_error()
    print(
        f"{name}  perplexity {jnp.exp(nats):.3f}  accuracy {hits:.1%}  top 3 {top:.1%}  calibration error {error:.1%}"
    )


# Ten clouds of points that overlap, and logits four times as large as those of the clouds.
keys = jax.random.split(jax.random.key(0), 3)
centres = 0.4 * jax.random.normal(keys[0], (CLASSES, FEATURES))
labels = jax.random.randint(keys[1], (3000,), 0, CLASSES)
points = centres[labels] + jax.random.normal(keys[2], (3000, FEATURES))
logits = 4 * (points @ centres.T - jnp.sum(centres**2, axis=1)[None] / 2)

temperature = softjax.metrics.fit_temperature(logits[:1000], labels[:1000])
logits, labels = logits[1000:], labels[1000:]
evaluate("temperature 1.00", logits, labels)
evaluate(f"temperature {temperature:.2f}", logits / temperature, labels)
