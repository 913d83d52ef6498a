"""What a target is."""

import jax
import jax.numpy as jnp

import softjax
from softjax import _labels


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
