"""Targets: which one each kind of labels becomes, and how the logit of a label is read."""

import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax._args import labels
from softjax._xla import one_cpu


def test_labels_become_the_target_of_their_kind():
    ids = labels.target_from_labels(jnp.array([0, 4, 5, -1, -100]), 5, -1)
    assert isinstance(ids, labels.ClassIds)
    assert ids.ids.tolist() == [[0], [4], [-1], [-1], [-1]]
    assert labels.target_from_labels(jnp.array([200], jnp.uint8), 300, -1).ids.tolist() == [[200]]
    assert labels.target_from_labels(jnp.array([200], jnp.uint8), 100, -1).ids.tolist() == [[-1]]
    p = jnp.ones((2, 3)) / 3
    assert labels.target_from_labels(p, 3, -1).probabilities is p


@pytest.mark.parametrize("classes", [2**31, 2**32 + 1])
def test_more_classes_than_int32_can_count_are_refused(classes):
    logits, ids = jax.ShapeDtypeStruct((2, classes), jnp.bfloat16), jax.ShapeDtypeStruct((2,), jnp.int32)
    for target in (ids, logits):
        with pytest.raises(ValueError, match="at most 2³¹ − 1"):
            jax.eval_shape(softjax.cross_entropy, logits, target)
    hidden, kernel = jax.ShapeDtypeStruct((2, 4), jnp.bfloat16), jax.ShapeDtypeStruct((4, classes), jnp.bfloat16)
    with pytest.raises(ValueError, match="at most 2³¹ − 1"):
        jax.eval_shape(softjax.linear_cross_entropy, hidden, kernel, ids)
    largest = jax.ShapeDtypeStruct((2, 2**31 - 1), jnp.bfloat16)
    assert jax.eval_shape(softjax.statistics, largest, ids).entropy.shape == (2,)
    assert jax.eval_shape(softjax.softmax, logits).shape == (2, classes)


def test_label_logits_use_a_gather_on_one_cpu_and_a_comparison_elsewhere(route):
    text = jax.jit(lambda x: softjax.cross_entropy(x, jnp.array([0, 1]))).lower(jnp.zeros((2, 3))).as_text()
    assert ("gather" in text) == (route == "one CPU")


def test_label_logits_use_a_gather_on_one_gpu(monkeypatch):
    """The gather gives the bits of the comparison, forward and backward."""
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: False)
    x, labels = cases.logits(13, 30.0), jnp.arange(cases.SAMPLES) * 2 - 1  # two out of range

    def loss(x):
        return softjax.cross_entropy(x, labels, reduction="none", base=math.e)

    def value_and_gradient(on_gpu):
        monkeypatch.setattr(one_cpu, "on_one_gpu", lambda x: on_gpu)
        with jax.default_matmul_precision("high" if on_gpu else "highest"):  # separates JAX's caches, as in `route`
            assert ("gather" in jax.jit(lambda x: loss(x)).lower(x).as_text()) == on_gpu
            value, vjp = jax.vjp(loss, x)
            return value, *vjp(jnp.ones_like(value))

    compared = value_and_gradient(False)
    for gathered, expected in zip(value_and_gradient(True), compared, strict=True):
        np.testing.assert_array_equal(gathered, expected)
    assert np.isnan(compared[0]).tolist() == [not 0 <= label < 13 for label in labels]
