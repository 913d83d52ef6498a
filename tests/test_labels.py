"""What a target is, and validate_labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

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


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.int32, jnp.uint32])
def test_good_labels_pass(dtype):
    softjax.validate_labels(jnp.array([0, 4, 2], dtype), 5)
    softjax.validate_labels(jnp.array([0, 4, 2], dtype), 300)
    softjax.validate_labels(np.zeros((0, 3), np.int32), 5)
    softjax.validate_labels(jnp.array(4, dtype), 5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (jnp.array([0, 5, -1]), r"labels\[1\] is 5, outside 0 … 4\."),
        (jnp.array([[0, 1], [2, -100]]), r"labels\[1, 1\] is -100, outside 0 … 4\."),
        (jnp.array(7), r"labels is 7, outside 0 … 4\."),
        (np.array([255], np.uint8), r"labels\[0\] is 255, outside 0 … 4\."),
    ],
)
def test_the_first_bad_label_is_named(labels, message):
    with pytest.raises(ValueError, match=message):
        softjax.validate_labels(labels, 5)
    error, _ = jax.jit(checkify.checkify(lambda y: softjax.validate_labels(y, 5)))(labels)
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()


def test_weight_0_is_not_looked_at():
    labels = jnp.array([[0, -100], [9, -100]])
    with pytest.raises(ValueError, match=r"labels\[1, 0\] is 9"):
        softjax.validate_labels(labels, 5, weights=labels != -100)
    softjax.validate_labels(labels, 5, weights=jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    error, _ = checkify.checkify(lambda y: softjax.validate_labels(y, 5, weights=y >= 0))(jnp.array([1, -1]))
    error.throw()


def test_refusals():
    with pytest.raises(TypeError, match="`labels` must be integer class ids, got float32"):
        softjax.validate_labels(jnp.zeros(3), 5)
    with pytest.raises(ValueError, match="`num_classes` must be at least 1, got 0"):
        softjax.validate_labels(jnp.array([0]), 0)
    with pytest.raises(TypeError, match=r"`num_classes` must be an integer, got float: 5\.0"):
        softjax.validate_labels(jnp.array([0]), 5.0)
    with pytest.raises(ValueError, match="`weights` must broadcast"):
        softjax.validate_labels(jnp.array([0, 1]), 5, weights=jnp.ones(3))
