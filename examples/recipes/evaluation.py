"""Evaluate a classifier over batches: perplexity, accuracy, calibration, and temperature scaling.

Use this for exact metrics on a test set that does not fit into one batch. `softjax.statistics` computes everything that
the metrics need, in nats. Weighted sums and a `Calibration` add up over batches; means do not.
`softjax.metrics.fit_temperature` finds the temperature T that minimises the cross-entropy of logits / T.

Source: Guo et al. 2017, arXiv:1706.04599.
"""

import jax
import jax.numpy as jnp

import softjax

SAMPLES = 3000
VALIDATION_SAMPLES = 1000
BATCH = 128
CLASSES = 10
FEATURES = 32

# Synthetic data: one Gaussian cluster per class. The logits are those of the true posterior, times 4: overconfident.
label_key, centre_key, noise_key = jax.random.split(jax.random.key(0), 3)
labels = jax.random.randint(label_key, (SAMPLES,), 0, CLASSES)
centres = 0.4 * jax.random.normal(centre_key, (CLASSES, FEATURES))
points = centres[labels] + jax.random.normal(noise_key, (SAMPLES, FEATURES))
squared_lengths = jnp.sum(centres**2, axis=-1).reshape(1, CLASSES)
logits = 4 * (points @ centres.T - squared_lengths / 2)

validation_logits, validation_labels = logits[:VALIDATION_SAMPLES], labels[:VALIDATION_SAMPLES]
test_logits, test_labels = logits[VALIDATION_SAMPLES:], labels[VALIDATION_SAMPLES:]


@jax.jit
def batch_sums(logits: jax.Array, labels: jax.Array, weights: jax.Array):
    """Returns weighted sums over one batch. A padded sample has weight 0."""
    statistics = softjax.statistics(logits, labels)
    return {
        "weight": jnp.sum(weights),
        "nats": jnp.sum(weights * statistics.cross_entropy),
        # `label_rank` counts the classes that rank above the label.
        "correct": jnp.sum(weights, where=statistics.label_rank == 0),
        "top 3": jnp.sum(weights, where=statistics.label_rank < 3),
        "calibration": softjax.metrics.calibration(statistics, weights=weights),
    }


def evaluate(name: str, logits: jax.Array, labels: jax.Array):
    """Prints the metrics of all samples."""
    # Pad the last batch, so that all batches have one shape and JAX compiles once.
    padding = -len(labels) % BATCH
    padded_weights = jnp.pad(jnp.ones(len(labels)), (0, padding)).reshape(-1, BATCH)
    padded_logits = jnp.pad(logits, ((0, padding), (0, 0))).reshape(-1, BATCH, CLASSES)
    padded_labels = jnp.pad(labels, (0, padding)).reshape(-1, BATCH)

    sums = batch_sums(padded_logits[0], padded_labels[0], padded_weights[0])
    for batch in range(1, len(padded_labels)):
        further_sums = batch_sums(padded_logits[batch], padded_labels[batch], padded_weights[batch])
        sums = jax.tree.map(jnp.add, sums, further_sums)

    perplexity = jnp.exp(sums["nats"] / sums["weight"])
    accuracy = sums["correct"] / sums["weight"]
    top_3_accuracy = sums["top 3"] / sums["weight"]
    calibration_error = sums["calibration"].expected_error()
    print(
        f"{name}: perplexity {perplexity:.3f}, accuracy {accuracy:.1%}, top-3 accuracy {top_3_accuracy:.1%}, "
        f"expected calibration error {calibration_error:.1%}"
    )


temperature = softjax.metrics.fit_temperature(validation_logits, validation_labels)
evaluate("temperature 1.00", test_logits, test_labels)
evaluate(f"temperature {temperature:.2f}", test_logits / temperature, test_labels)
