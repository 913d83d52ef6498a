"""Widening is exact, for every bfloat16 number there is, and differentiable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax._widen import wide, widen


def test_every_bfloat16(route):
    every = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint32).astype(jnp.uint16), jnp.bfloat16)
    expected = np.asarray(every).astype(np.float32)
    numbers = ~np.isnan(expected) & ((np.abs(expected) >= 2.0**-126) | (expected == 0))  # a CPU may flush subnormals
    widened = np.asarray(widen(every))
    np.testing.assert_array_equal(widened[numbers], expected[numbers])
    assert np.isnan(widened[np.isnan(expected)]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_derivatives(dtype, route):
    x = jnp.array([1.5, -2.0], dtype)
    np.testing.assert_array_equal(jax.grad(lambda x: widen(x).sum())(x), jnp.ones(2, dtype))
    np.testing.assert_array_equal(jax.jvp(widen, (x,), (x,))[1], [1.5, -2.0])


def test_wide(x64):
    assert wide(jnp.zeros(1, jnp.float16), jnp.zeros(1, jnp.bfloat16)) == jnp.float32
    assert wide(jnp.zeros(1, jnp.float64), jnp.zeros(1, jnp.bfloat16)) == jnp.float64
