"""The arithmetic of a row's loss: smoothing at its ends, penalties that vanish, ids that are no class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax._row_loss import row_cross_entropy
from softjax._statistics import Rows

Z, A, M = jnp.array([1.0, 2.0]), jnp.array([-1.0, -jnp.inf]), jnp.array([-3.0, -2.0])
ROWS = Rows(Z, A, M, None, None, jnp.array([5.0, 7.0]))
IDS = jnp.array([0, 1])
SMOOTHED = [(0.0, [2, np.inf]), (0.25, [0.75 * 2 + 0.25 * 4, np.inf]), (1.0, [4, 4])]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(("smoothing", "expected"), SMOOTHED)
def test_smoothing(traced, smoothing, expected):
    smoothing = smoothing or (jnp.float32(0) if traced else None)
    call = jax.jit(lambda s: row_cross_entropy(ROWS, IDS, s, None, np.e)) if traced else None
    loss = call(smoothing) if traced else row_cross_entropy(ROWS, IDS, smoothing, None, np.e)
    np.testing.assert_allclose(loss, expected)


def test_base_penalty_and_mass():
    rows = ROWS._replace(label_logit=jnp.array([-1.0, -1.0]))
    np.testing.assert_allclose(row_cross_entropy(rows, IDS, None, 0.1, 2.0), np.array([2, 3]) / np.log(2) + [3.6, 8.1])
    halved = row_cross_entropy(rows._replace(label_mass=jnp.array([0.5, 0.5])), jnp.ones((2, 3)), None, None, np.e)
    np.testing.assert_allclose(halved, [1.5, 2])


def test_an_id_that_is_no_class():
    loss = row_cross_entropy(ROWS, jnp.array([-1, 0]), 1.0, None, np.e)
    assert list(jnp.isnan(loss)) == [True, False]
