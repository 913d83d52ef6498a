"""Reads and updates some classes of each row, by comparison with class ids or by gather and scatter."""

import cases
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering

from softjax._xla import gather


def test_class_iota_counts_along_the_class_axis(route):
    x, ids = jnp.zeros((2, 3)), jnp.ones((2, 1), jnp.int32)
    assert ((gather.class_iota(x, -1, ids) == ids) == jnp.array([[False, True, False]] * 2)).all()
    assert (jnp.broadcast_to(gather.class_iota(x, -2, ids), x.shape) == jnp.array([[0] * 3, [1] * 3])).all()


def test_take_classes_reads_one_class_of_each_row(route):
    """NaN and inf elsewhere in the row do not matter."""
    x = jnp.array([[1.0, jnp.nan, jnp.inf], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    ids = jnp.array([[0], [2], [-1]])
    np.testing.assert_array_equal(gather.take_classes(x, ids, -1), [[1], [6], [0]])


@pytest.mark.parametrize(("k", "axis"), covering([0, 1, 4, 9], [-1, -2, -3]))
def test_take_and_add_several_classes_of_each_row(k, axis, route):
    """Repeated classes add up. Classes out of range read 0 and add nothing."""
    x = jnp.moveaxis(cases.logits(7, samples=6).reshape(2, 3, 7), -1, axis)
    local = np.random.default_rng(k).integers(-2, 9, (2, 3, k))
    values = np.random.default_rng(k).normal(size=local.shape).astype(np.float32)
    taken, added = np.zeros(local.shape, np.float32), np.array(jnp.moveaxis(x, axis, -1))
    for place, j in np.ndenumerate(local):
        if 0 <= j < 7:
            taken[place] = np.moveaxis(np.asarray(x), axis, -1)[*place[:-1], j]
            added[*place[:-1], j] += values[place]
    local, values = (jnp.moveaxis(jnp.asarray(a), -1, axis) for a in (local, values))
    np.testing.assert_array_equal(jnp.moveaxis(gather.take_classes(x, local, axis), axis, -1), taken)
    np.testing.assert_allclose(jnp.moveaxis(gather.add_at_classes(x, local, axis, values), axis, -1), added, rtol=1e-6)
