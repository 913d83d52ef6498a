"""A block of logits and its target; ignored rows are set to 0."""

import jax.numpy as jnp
import numpy as np
import pytest

from softjax._args.labels import ClassIds, Distribution
from softjax._mesh.axes import NO_CLASS, ClassAxis
from softjax._rows.block import make_block
from softjax._rows.edges import zero_ignored

LAST = ClassAxis(-1)
X = jnp.array([[1.0, 3.0, 3.0, 2.0], [jnp.nan, 0.0, jnp.inf, 1.0]])
IDS = ClassIds(jnp.array([[2], [0]], jnp.int32))


def test_zero_ignored_replaces_non_finite_values():
    array, active = jnp.array([[1.0, jnp.nan], [jnp.inf, 0.0]]), jnp.array([[False], [True]])
    np.testing.assert_array_equal(zero_ignored(array, active), [[1, 0], [jnp.inf, 0]])
    assert zero_ignored(array, None) is array
    ids = jnp.array([[1], [2]])
    assert zero_ignored(ids, active) is ids


def test_values_of_ignored_rows_are_finite(route):
    block = make_block(LAST, X, IDS, None, jnp.array([[True], [False]]))
    floats, integers = block.zero_ignored((jnp.array([jnp.inf, jnp.nan]), jnp.array([1, 2])))
    np.testing.assert_array_equal(floats, [jnp.inf, 0])
    np.testing.assert_array_equal(integers, [1, 2])
    dropped = jnp.array([[False], [True]])
    np.testing.assert_array_equal(block.wide_logits(dropped), [[1, 3, 3, 2], [0, 0, 0, 0]])


def test_the_logit_and_the_rank_of_the_label(route):
    block = make_block(LAST, X, IDS, None, None)
    np.testing.assert_array_equal(block.logits_at(IDS.ids)[:, 0], [3, np.nan])
    assert block.rank(X, IDS.ids)[0, 0] == 1
    assert (block.num_classes() == 4).all()


def test_masked_classes(route):
    exists = jnp.array([[True, False, True, True]])
    block = make_block(LAST, X, ClassIds(jnp.array([[1], [3]])), exists, None)
    np.testing.assert_array_equal(block.logits_at(block.target.ids)[:, 0], [-jnp.inf, 1])
    np.testing.assert_array_equal(block.rank(X, block.target.ids)[:1, 0], [NO_CLASS])
    np.testing.assert_array_equal(block.num_classes()[:, 0], [3, 3])
    np.testing.assert_array_equal(block.zero_masked(X)[0], [1, 0, 3, 2])
    p = Distribution(jnp.array([[0.25] * 4, [jnp.nan] * 4]))
    soft = make_block(LAST, X, p, exists, jnp.array([[True], [False]]))
    np.testing.assert_array_equal(soft.wide_probabilities(), [[0.25, 0, 0.25, 0.25], [0] * 4])


@pytest.mark.parametrize("first", [None, 10])
def test_a_block_whose_first_class_has_another_id(first, route):
    block = make_block(LAST, X, IDS, None, None)._replace(first_id=None if first is None else jnp.int32(first))
    ids = IDS.ids + (first or 0)
    np.testing.assert_array_equal(block.logits_at(ids)[:, 0], [3, np.nan])
    assert block.logits_at(jnp.full((2, 1), (first or 0) + 4)).tolist() == [[0], [0]]
    assert block.first_equal(X, jnp.full((2, 1), 3.0)).tolist() == [[1 + (first or 0)], [-1]]
