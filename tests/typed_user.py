# pyright: strict
"""A user's file that calls every public function. A strict type checker checks it."""

from typing import Any, assert_type

import jax
import jax.numpy as jnp

import softjax


def policy_gradient(s: softjax.Statistics, advantage: jax.Array) -> jax.Array:
    return advantage * s.cross_entropy


def loss_and_rank(s: softjax.Statistics) -> tuple[jax.Array, jax.Array]:
    return s.cross_entropy, s.label_rank


def every_call(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, hidden: jax.Array, kernel: jax.Array, ids: jax.Array
) -> None:
    assert_type(softjax.softmax(logits, where=logits > 0), jax.Array)
    assert_type(softjax.log_softmax(logits, base=2), jax.Array)
    assert_type(
        softjax.cross_entropy(logits, labels, weights=weights, label_smoothing=0.1, reduction="none"), jax.Array
    )
    assert_type(softjax.cross_entropy(logits, softjax.SparseLabels(ids, jnp.exp(-ids.astype(jnp.float32)))), jax.Array)
    assert_type(softjax.distribution_cross_entropy(logits, logits), jax.Array)
    assert_type(softjax.log_probabilities(logits, ids), jax.Array)
    assert_type(softjax.divergence(logits, logits, kind="reverse_kl", temperature=2.0), jax.Array)
    assert_type(softjax.linear_divergence(hidden, kernel, hidden, kernel, kind="jensen_shannon", beta=0.1), jax.Array)
    softjax.validate_labels(labels, logits.shape[-1])

    assert_type(softjax.linear_cross_entropy(hidden, kernel, labels, axis_name=None, block_size=2), jax.Array)
    assert_type(softjax.linear_log_probabilities(hidden, kernel, ids), jax.Array)
    top = softjax.linear_top_k(hidden, kernel, 2)
    assert_type(top, softjax.TopK)
    assert_type(softjax.SparseLabels(top.ids, jnp.exp(top.log_probabilities)).ids, jax.Array)

    s = softjax.statistics(logits, labels)
    assert_type(s, softjax.Statistics)
    assert_type(softjax.linear_statistics(hidden, kernel, labels).entropy, jax.Array)
    assert_type(
        softjax.linear_loss(policy_gradient, hidden, kernel, labels, weights), Any
    )  # a scalar, or (scalar, aux) with `has_aux`
    assert_type(softjax.linear_loss(loss_and_rank, hidden, kernel, labels, has_aux=True), Any)

    assert_type(softjax.losses.focal(s), jax.Array)
    assert_type(softjax.losses.poly(s), jax.Array)
    assert_type(softjax.losses.generalized(s), jax.Array)
    assert_type(softjax.losses.additive_margin(s, 0.1, 30.0), jax.Array)
    assert_type(softjax.losses.angular_margin(s, 0.1, 30.0), jax.Array)
    assert_type(softjax.metrics.accuracy(s), jax.Array)
    assert_type(softjax.metrics.top_k_accuracy(s, 2), jax.Array)
    assert_type(softjax.metrics.perplexity(s), jax.Array)
    assert_type(softjax.metrics.brier_score(s), jax.Array)
    assert_type(softjax.metrics.calibration(s).expected_error(), jax.Array)
    assert_type(softjax.metrics.fit_temperature(logits, labels), jax.Array)
