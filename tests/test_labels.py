"""What a class id picks, and validate_labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import softjax
from softjax import _labels


@pytest.mark.parametrize("dense", [True, False])
def test_pick(dense, route):
    x = jnp.array([[1.0, jnp.nan, jnp.inf], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    picked = _labels.pick(x, jnp.array([[0], [2], [-1]]), -1, dense, ())
    np.testing.assert_array_equal(picked, [[1], [6], [np.nan]])


def test_one_cpu_gathers_and_others_compare(route):
    jaxpr = str(jax.make_jaxpr(lambda x: softjax.cross_entropy(x, jnp.array([0, 1])))(jnp.zeros((2, 3))))
    assert ("gather" in jaxpr) == (route == "one CPU")
    assert ("iota" in jaxpr) == (route != "one CPU")


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
