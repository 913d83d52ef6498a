"""Sums, maxima and places along the class axis; over devices they are tested by test_mesh.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax._mesh import axes
from softjax._mesh.axes import NO_CLASS, ClassAxis

X = jnp.array([[1.0, 3.0, 3.0], [2.0, -jnp.inf, 0.0]])


@pytest.mark.parametrize("axis", [-1, -2])
def test_along_the_axis(axis, route):
    classes, x = ClassAxis(axis), X if axis == -1 else X.T
    assert classes.num_classes(x) == 3
    np.testing.assert_array_equal(classes.squeeze(classes.max(x)), [3, 2])
    np.testing.assert_array_equal(classes.sum(jnp.where(x > -jnp.inf, x, 0)), [7, 2])
    np.testing.assert_array_equal(classes.sum(x > 0), [3, 1])
    np.testing.assert_array_equal(classes.squeeze(classes.any(x < 0)), [False, True])
    np.testing.assert_array_equal(classes.squeeze(classes.first_equal(x, classes.max(x))), [1, 0])
    ids = jnp.broadcast_to(classes.ids(x, classes.max(x)), x.shape)
    np.testing.assert_array_equal(ids if axis == -1 else ids.T, [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(classes.squeeze(classes.min(ids)), [0, 0])


def test_the_first_of_those_that_exist():
    classes, exists = ClassAxis(-1), jnp.array([[True, False, True]])
    most = classes.max(X)
    np.testing.assert_array_equal(classes.first_equal(X, most, exists)[:, 0], [2, 0])
    np.testing.assert_array_equal(classes.first_equal(X, jnp.full((2, 1), jnp.nan))[:, 0], [-1, -1])
    np.testing.assert_array_equal(classes.first_equal(X, most, None, jnp.int32(10))[:, 0], [11, 10])
    assert jnp.iinfo(jnp.int32).max == NO_CLASS


def test_no_classes():
    empty = jnp.zeros((2, 0))
    assert (ClassAxis(-1).max(empty) == -jnp.inf).all()
    assert not ClassAxis(-1).sum_keepdims(empty).any()


def test_present():
    x = jnp.array([1.0, 2.0], jnp.bfloat16)
    assert axes.existing_logits(x, None).dtype == jnp.float32
    np.testing.assert_array_equal(axes.existing_logits(x, jnp.array([False, True])), [-jnp.inf, 2])


def test_axes_that_a_vmap_binds_are_not_those_of_a_shard_map():
    seen = []
    jax.vmap(lambda x: seen.append((axes.manual_names(("i",)), axes.vmap_names(("i",)))) or x, axis_name="i")(X)
    assert seen == [((), ("i",))]
