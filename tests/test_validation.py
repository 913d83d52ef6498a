"""Argument checks of labels, and validate_labels."""

import cases
import few
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import softjax


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


def test_labels_of_ignored_samples_are_not_checked():
    labels = jnp.array([[0, -100], [9, -100]])
    with pytest.raises(ValueError, match=r"labels\[1, 0\] is 9"):
        softjax.validate_labels(labels, 5, weights=labels != -100)
    softjax.validate_labels(labels, 5, weights=jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    error, _ = checkify.checkify(lambda y: softjax.validate_labels(y, 5, weights=y >= 0))(jnp.array([1, -1]))
    error.throw()


def test_labels_of_a_wrong_dtype_or_shape_are_refused():
    with pytest.raises(TypeError, match="`labels` must be integer class ids, got float32"):
        softjax.validate_labels(jnp.zeros(3), 5)
    with pytest.raises(ValueError, match="`num_classes` must be at least 1, got 0"):
        softjax.validate_labels(jnp.array([0]), 0)
    with pytest.raises(TypeError, match=r"`num_classes` must be an integer, got float: 5\.0"):
        softjax.validate_labels(jnp.array([0]), 5.0)
    with pytest.raises(ValueError, match="`weights` must broadcast"):
        softjax.validate_labels(jnp.array([0, 1]), 5, weights=jnp.ones(3))


def test_sparse_labels_that_do_not_fit():
    x, labels = cases.logits(9), few.sparse(9, 4)
    for target, error, message in [
        (
            labels._replace(ids=labels.ids[0]),
            ValueError,
            r"`labels.ids` must be \[\*samples, k\], k ids for each of \(11,\)",
        ),
        (
            labels._replace(ids=labels.ids[:, 0]),
            ValueError,
            r"Give one class an axis of length 1: labels.ids\[\.\.\., None\]",
        ),
        (
            labels._replace(probabilities=jnp.ones(11)),
            ValueError,
            r"need the shape of `labels.ids`, \(11, 4\); got \(11,\)",
        ),
        (labels._replace(ids=labels.probabilities), TypeError, "`labels.ids` must be integer class ids, got float32"),
        (labels._replace(probabilities=labels.ids), TypeError, "`labels.probabilities`"),
    ]:
        for call in (
            lambda y: softjax.cross_entropy(x, y),
            lambda y: softjax.linear_cross_entropy(x, jnp.eye(9), y),
            lambda y: softjax.statistics(x, y),
        ):
            with pytest.raises(error, match=message):
                call(target)


def test_the_first_bad_id_with_mass_is_named():
    labels = few.sparse(9, 4)
    softjax.validate_labels(labels, 9)
    wrong = labels._replace(ids=labels.ids.at[4, 2].set(9))
    with pytest.raises(ValueError, match=r"labels.ids\[4, 2\] is 9, outside 0 … 8\."):
        softjax.validate_labels(wrong, 9)
    softjax.validate_labels(wrong, 9, weights=jnp.arange(11) != 4)
