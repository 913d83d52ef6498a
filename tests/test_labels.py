"""Targets: class ids, distributions and a few classes, from the labels of a caller."""

import math

import cases
import jax
import jax.numpy as jnp
import numpy as np

import softjax
from softjax._args import labels
from softjax._xla import one_cpu


def test_the_type_of_a_target_follows_the_labels():
    ids = labels.target_from_labels(jnp.array([0, 4, 5, -1, -100]), 5, -1)
    assert isinstance(ids, labels.ClassIds)
    assert ids.ids.tolist() == [[0], [4], [-1], [-1], [-1]]
    assert labels.target_from_labels(jnp.array([200], jnp.uint8), 300, -1).ids.tolist() == [[200]]
    assert labels.target_from_labels(jnp.array([200], jnp.uint8), 100, -1).ids.tolist() == [[-1]]
    p = jnp.ones((2, 3)) / 3
    assert labels.target_from_labels(p, 3, -1).probabilities is p


def test_one_cpu_gathers_and_others_compare(route):
    text = jax.jit(lambda x: softjax.cross_entropy(x, jnp.array([0, 1]))).lower(jnp.zeros((2, 3))).as_text()
    assert ("gather" in text) == (route == "one CPU")


def test_one_gpu_gathers_too(monkeypatch):
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: False)
    x, labels = cases.logits(13, 30.0), jnp.arange(cases.SAMPLES) * 2 - 1  # two out of range

    def loss(x):
        return softjax.cross_entropy(x, labels, reduction="none", base=math.e)

    def both(here):
        monkeypatch.setattr(one_cpu, "on_one_gpu", lambda x: here)
        with jax.default_matmul_precision("high" if here else "highest"):  # as in `route`
            assert ("gather" in jax.jit(lambda x: loss(x)).lower(x).as_text()) == here
            value, pull = jax.vjp(loss, x)
            return value, *pull(jnp.ones_like(value))

    compared = both(False)
    for one, other in zip(both(True), compared, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isnan(compared[0]).tolist() == [not 0 <= label < 13 for label in labels]
