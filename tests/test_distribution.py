"""`distribution_cross_entropy`: H(p, q) = −Σ p_j log q_j of two distributions."""

import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

H = softjax.distribution_cross_entropy


@pytest.mark.parametrize("base", [10.0, 2.0, math.e])
@pytest.mark.parametrize("axis", [-1, 0])
def test_values_and_gradients(base, axis):
    p, q, g = cases.distribution(7), cases.distribution(7, seed=1), cases.cotangent()
    transpose = (lambda a: a.T) if axis == 0 else (lambda a: a)
    value, pull = jax.vjp(lambda p, q: H(transpose(p), transpose(q), base=base, axis=axis), p, q)
    p64, q64, g64 = (np.asarray(a, np.float64) for a in (p, q, g[:, None]))
    np.testing.assert_allclose(value, -(p64 * np.log(q64)).sum(1) / math.log(base), rtol=2e-6)
    dp, dq = pull(g)
    np.testing.assert_allclose(dp, -g64 * np.log(q64) / math.log(base), rtol=1e-5)
    np.testing.assert_allclose(dq, -g64 * p64 / q64 / math.log(base), rtol=1e-5)


def test_equals_the_cross_entropy_of_logits():
    x, p = cases.logits(5), cases.distribution(5)
    np.testing.assert_allclose(H(p, softjax.softmax(x)), softjax.cross_entropy(x, p, reduction="none"), rtol=1e-5)


def test_zero_probabilities():
    p, q = jnp.array([0.0, 0.5, 0.5]), jnp.array([0.0, 0.0, 1.0])
    assert jnp.isinf(H(p, q))
    value, gradient = jax.value_and_grad(H, argnums=1)(jnp.array([0.0, 1.0]), jnp.array([0.0, 0.5]), base=2)
    np.testing.assert_allclose(value, 1)
    np.testing.assert_allclose(gradient, [0, -2 / math.log(2)], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_accumulates_in_float32(dtype):
    n = 131072
    p, q = jnp.full(n, 2.0**-17, dtype), jnp.full(n, 2.0**-17, dtype)
    value, gradient = jax.value_and_grad(H, argnums=1)(p, q, base=2)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(value, 17, rtol=1e-6)


def test_second_derivative_and_forward_mode():
    p, q = cases.distribution(5, 1)[0], cases.distribution(5, 1, seed=1)[0]
    expected = np.diag(np.asarray(p / q**2) / math.log(10))
    np.testing.assert_allclose(jax.hessian(H, argnums=1)(p, q), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(H, argnums=1)(p, q), jax.grad(H, argnums=1)(p, q), rtol=1e-6)


def test_derivatives_where_p_and_q_are_both_0():
    p, q = jnp.array([0.0, 0.5, 0.5]), jnp.array([0.0, 0.4, 0.6])
    direction = jnp.array([0.0, 0.1, -0.1])
    _, tangent = jax.jvp(lambda p, q: H(p, q, base=math.e), (p, q), (direction, direction))
    # Σ −ln q dp − p/q dq over the other two classes
    expected = -(np.log(0.4) * 0.1 - np.log(0.6) * 0.1) - (0.5 / 0.4 * 0.1 - 0.5 / 0.6 * 0.1)
    np.testing.assert_allclose(tangent, expected, rtol=2e-5)
    _, tangent = jax.jvp(lambda p: H(p, q), (p,), (jnp.array([0.1, 0.0, -0.1]),))
    assert tangent == jnp.inf  # −ln 0 times a tangent above 0
    by_p = jax.grad(H)(p, q, base=math.e)
    np.testing.assert_allclose(by_p, [np.inf, -np.log(0.4), -np.log(0.6)], rtol=1e-6)
    assert np.isfinite(jax.jacfwd(lambda q: H(p, q))(q)).all()


def test_refused_arguments():
    with pytest.raises(ValueError, match="one shape, got \\(2,\\) and \\(3,\\)"):
        H(jnp.ones(2), jnp.ones(3))
    with pytest.raises(TypeError, match="`p` must be a real floating array, got int32"):
        H(jnp.ones(2, jnp.int32), jnp.ones(2))
