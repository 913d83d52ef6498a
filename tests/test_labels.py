"""What a target is."""

import math

import cases
import jax
import jax.numpy as jnp
import numpy as np

import softjax
from softjax import _cpu, _labels


def test_a_target_is_what_the_labels_are():
    ids = _labels.target_of(jnp.array([0, 4, 5, -1, -100]), 5, -1)
    assert isinstance(ids, _labels.Ids)
    assert ids.ids.tolist() == [[0], [4], [-1], [-1], [-1]]
    assert _labels.target_of(jnp.array([200], jnp.uint8), 300, -1).ids.tolist() == [[200]]
    assert _labels.target_of(jnp.array([200], jnp.uint8), 100, -1).ids.tolist() == [[-1]]
    p = jnp.ones((2, 3)) / 3
    assert _labels.target_of(p, 3, -1).probabilities is p


def test_one_cpu_gathers_and_others_compare(route):
    text = jax.jit(lambda x: softjax.cross_entropy(x, jnp.array([0, 1]))).lower(jnp.zeros((2, 3))).as_text()
    assert ("gather" in text) == (route == "one CPU")


def test_one_gpu_gathers_too(monkeypatch):
    monkeypatch.setattr(_cpu, "on_one_cpu", lambda x: False)
    x, labels = cases.logits(13, 30.0), jnp.arange(cases.SAMPLES) * 2 - 1  # two out of range

    def loss(x):
        return softjax.cross_entropy(x, labels, reduction="none", base=math.e)

    def both(here):
        monkeypatch.setattr(_cpu, "on_one_gpu", lambda x: here)
        with jax.default_matmul_precision("high" if here else "highest"):  # as in `route`
            assert ("gather" in jax.jit(lambda x: loss(x)).lower(x).as_text()) == here
            value, pull = jax.vjp(loss, x)
            return value, *pull(jnp.ones_like(value))

    compared = both(False)
    for one, other in zip(both(True), compared, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isnan(compared[0]).tolist() == [not 0 <= label < 13 for label in labels]
