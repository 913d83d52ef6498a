"""One backward rule serves every mode; only the residuals are moving, and only what moves is pulled back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax._differentiable import differentiable

CALLS = []


def _forward(power, x, y, n, *, moving):
    # f = n · x^power · y
    return n * x**power * y, (x, y, n)


def _backward(power, residuals, g, *, moving):
    CALLS.append(power)
    x, y, n = residuals
    return n * power * x ** (power - 1) * y * g, n * x**power * g, None


f = differentiable(_forward, _backward)
X, Y, N = jnp.float32(2.0), jnp.float32(3.0), jnp.int32(1)


def g(x, y):
    return f(3, x, y, N.astype(jnp.float32))


def test_reverse_and_forward():
    assert g(X, Y) == 24
    assert jax.grad(g)(X, Y) == 36
    assert jax.grad(g, 1)(X, Y) == 8
    assert jax.jvp(g, (X, Y), (1.0, 1.0)) == (24, 44)
    assert jax.jacfwd(g)(X, Y) == 36


def test_every_nesting_of_the_second_derivative():
    for outer in (jax.grad, jax.jacfwd, jax.jacrev):
        for inner in (jax.grad, jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(outer(inner(g))(X, Y), 36)
            np.testing.assert_allclose(jax.jit(outer(inner(g, 0), 1))(X, Y), 12)
    np.testing.assert_allclose(jax.grad(jax.grad(jax.grad(g)))(X, Y), 18)


def test_the_analytic_rule_is_what_runs():
    def wrong(power, residuals, g, *, moving):
        return 7.0 * g, 5.0 * g

    h = differentiable(lambda power, x, y, *, moving: (x * y, ()), wrong)
    assert jax.grad(lambda x: h(1, x, Y))(X) == 7
    assert jax.jvp(lambda x, y: h(1, x, y), (X, Y), (1.0, 1.0))[1] == 12


def test_an_argument_that_does_not_move_is_not_pulled_back():
    def backward(power, residuals, g, *, moving):
        return g, jnp.full(1000, 1.0) * g

    h = differentiable(lambda power, x, y, *, moving: (x + y.sum(), ()), backward)
    hlo = jax.jit(jax.grad(lambda x: h(1, x, jnp.zeros(1000)) ** 2)).lower(X).compile().as_text()
    assert "f32[1000]" in jax.jit(jax.grad(lambda y: h(1, X, y) ** 2)).lower(jnp.zeros(1000)).compile().as_text()
    assert "f32[1000]" not in hlo


def test_an_output_that_nothing_depends_on_has_no_cotangent():
    seen = []

    def backward(static, residuals, cotangents, *, moving):
        seen.append([ct is None for ct in cotangents])
        return (sum(ct for ct in cotangents if ct is not None),)

    h = differentiable(lambda static, x, *, moving: ((x, x), ()), backward)
    assert jax.grad(lambda x: 3 * h(0, x)[1])(X) == 3
    assert seen == [[True, False]]
    assert jax.jvp(lambda x: h(0, x), (X,), (X,))[1] == (X, X)


def test_arguments_that_the_examples_of_vmap_share():
    x = jnp.arange(1.0, 4.0)
    np.testing.assert_allclose(jax.grad(lambda y: jax.vmap(g, (0, None))(x, y).sum())(Y), (x**3).sum())
    np.testing.assert_allclose(jax.vmap(jax.grad(g, 1), (0, None))(x, Y), x**3)
    np.testing.assert_allclose(jax.vmap(jax.grad(g), (0, None))(x, Y), 9 * x**2)


def test_what_moves_is_told():
    seen = []

    def forward(static, x, *, moving):
        seen.append(moving)
        return x, ()

    h = differentiable(forward, lambda static, residuals, g, *, moving: (g,))
    h(0, X)
    assert seen == [()]
    jax.grad(lambda x: h(0, x))(X)
    assert seen[-1] == (0,)


def test_nothing_leaks():
    with jax.checking_leaks():
        np.testing.assert_allclose(jax.jit(jax.grad(lambda x: g(x, Y)))(X), 36)
        np.testing.assert_allclose(jax.jit(lambda x: jax.jvp(jax.grad(lambda x: g(x, Y)), (x,), (x,)))(X), (36, 72))


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap])
def test_under_transforms(wrap):
    x = jnp.arange(1.0, 4.0)
    np.testing.assert_allclose(jax.grad(lambda x: wrap(lambda x: g(x, Y))(x).sum())(x), 9 * x**2)
    np.testing.assert_allclose(jax.jvp(wrap(lambda x: g(x, Y)), (x,), (x,))[1], 9 * x**3)
