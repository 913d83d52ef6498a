"""One backward rule serves every mode; only the residuals are kept, and only what moves is pulled back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax._differentiable import differentiable

CALLS = []


def _forward(power, x, y, n, *, kept):
    # f = n · x^power · y
    return n * x**power * y, (x, y, n)


def _backward(power, residuals, g):
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
    def wrong(power, residuals, g):
        return 7.0 * g, 5.0 * g

    h = differentiable(lambda power, x, y, *, kept: (x * y, ()), wrong)
    assert jax.grad(lambda x: h(1, x, Y))(X) == 7
    assert jax.jvp(lambda x, y: h(1, x, y), (X, Y), (1.0, 1.0))[1] == 12


def test_an_argument_that_does_not_move_is_not_pulled_back():
    def backward(power, residuals, g):
        return g, jnp.full(1000, 1.0) * g

    h = differentiable(lambda power, x, y, *, kept: (x + y.sum(), ()), backward)
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: h(1, x, jnp.zeros(1000)) * 1.0))(X).jaxpr)
    assert "mul" not in jaxpr.split("remat2")[-1]


def test_kept_is_told_apart():
    seen = []

    def forward(static, x, *, kept):
        seen.append(kept)
        return x, ()

    h = differentiable(forward, lambda static, residuals, g: (g,))
    h(0, X)
    assert seen == [False]
    jax.grad(lambda x: h(0, x))(X)
    assert seen[-1] is True


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap])
def test_under_transforms(wrap):
    x = jnp.arange(1.0, 4.0)
    np.testing.assert_allclose(jax.grad(lambda x: wrap(lambda x: g(x, Y))(x).sum())(x), 9 * x**2)
    np.testing.assert_allclose(jax.jvp(wrap(lambda x: g(x, Y)), (x,), (x,))[1], 9 * x**3)
