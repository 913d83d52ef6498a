"""Weights, reductions, and the base of the logarithm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax._rows.reduction import from_nats, reduce

LOSS = jnp.array([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("weights", "reduction", "expected"),
    [
        (None, "mean", 7 / 3),
        (None, "sum", 7),
        (None, "none", [1, 2, 4]),
        ([1.0, 0.0, 3.0], "mean", 13 / 4),
        ([1.0, 0.0, 3.0], "sum", 13),
        ([1.0, 0.0, 3.0], "none", [1, 0, 12]),
        ([0.0, 0.0, 0.0], "mean", 0),
        ([1.0, -1.0, 0.0], "mean", 0),
    ],
)
def test_reduce(weights, reduction, expected):
    weights = None if weights is None else jnp.array(weights)
    np.testing.assert_allclose(reduce(LOSS, weights, reduction), expected, rtol=1e-6)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weight_0_drops_a_non_finite_loss(value, reduction):
    loss, weights = jnp.array([1.0, value]), jnp.array([2.0, 0.0])
    total, (dl, dw) = jax.value_and_grad(lambda loss, w: reduce(loss, w, reduction).sum(), argnums=(0, 1))(
        loss, weights
    )
    assert np.isfinite(total)
    assert dl[1] == 0
    assert np.isfinite(dw).all()


def test_a_finite_loss_of_weight_0_keeps_its_derivative():
    dw = jax.grad(lambda w: reduce(LOSS, w, "sum"))(jnp.zeros(3))
    np.testing.assert_array_equal(dw, LOSS)


def test_a_mean_of_more_than_2_to_31_samples():
    shape = jax.eval_shape(lambda loss: reduce(loss, None, "mean"), jax.ShapeDtypeStruct((2**31 + 9,), jnp.float32))
    assert shape.shape == ()


def test_no_samples():
    assert reduce(jnp.zeros((0, 3)), None, "mean") == 0
    assert reduce(jnp.zeros(0), jnp.zeros(0), "mean") == 0


@pytest.mark.parametrize(("base", "expected"), [(math.e, 3.0), (2.0, 3 / math.log(2)), (10.0, 3 / math.log(10))])
def test_from_nats_divides_by_ln_base(base, expected):
    np.testing.assert_allclose(from_nats(jnp.float32(3), base), expected, rtol=2 * 2.0**-23)
    np.testing.assert_allclose(jax.grad(lambda x: from_nats(x, base))(jnp.float32(3)), expected / 3, rtol=2 * 2.0**-23)


def test_base_e_needs_no_division():
    assert "div" not in str(jax.make_jaxpr(lambda x: from_nats(x, math.e))(jnp.float32(3)))
