"""One backward rule serves every mode of differentiation, to every order; outputs that nobody reads cost nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softjax._xla.every_mode import with_forward_mode

X, Y = jnp.float32(2.0), jnp.float32(3.0)


def made(forward, backward):
    function = jax.custom_vjp(lambda static, *arrays: forward(static, *arrays)[0], nondiff_argnums=(0,))
    function.defvjp(forward, backward)
    return with_forward_mode(function)


def _forward(power, x, y, n):
    # f = n · x^power · y
    return n * x**power * y, (x, y, n)


def _backward(power, residuals, g):
    x, y, n = residuals
    return n * power * x ** (power - 1) * y * g, n * x**power * g, None


f = made(_forward, _backward)


def g(x, y):
    return f(3, x, y, jnp.float32(1))


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
    h = made(lambda power, x, y: (x * y, ()), lambda power, residuals, g: (7.0 * g, 5.0 * g))
    assert jax.grad(lambda x: h(1, x, Y))(X) == 7
    assert jax.jvp(lambda x, y: h(1, x, y), (X, Y), (1.0, 1.0))[1] == 12


def test_an_argument_that_does_not_move_is_not_pulled_back():
    h = made(lambda power, x, y: (x + y.sum(), ()), lambda power, residuals, g: (g, jnp.full(1000, 1.0) * g))
    hlo = jax.jit(jax.grad(lambda x: h(1, x, jnp.zeros(1000)) ** 2)).lower(X).compile().as_text()
    assert "f32[1000]" in jax.jit(jax.grad(lambda y: h(1, X, y) ** 2)).lower(jnp.zeros(1000)).compile().as_text()
    assert "f32[1000]" not in hlo


def test_an_output_that_nobody_reads_is_not_in_the_program():
    def forward(static, x):
        return (jnp.sin(x), jnp.cos(x)), x

    h = made(forward, lambda static, x, g: (jnp.cos(x) * g[0] - jnp.tanh(x) * g[1],))
    hlo = jax.jit(jax.grad(lambda x: h(0, x)[0])).lower(X).compile().as_text()
    assert "tanh" not in hlo
    assert "tanh" in jax.jit(jax.grad(lambda x: h(0, x)[1])).lower(X).compile().as_text()


def test_integers_have_no_derivative():
    def forward(static, x, n):
        return {"index": jnp.argmax(x), "most": x[0] * n.astype(x.dtype), "last": n}, (x, n)

    def backward(static, residuals, g):
        return jnp.zeros(3).at[0].set(g["most"]), None

    h = partial(made(forward, backward), 0)
    x, n = jnp.array([1.0, 3.0, 2.0]), jnp.int32(2)
    out, tangent = jax.jvp(lambda x: h(x, n), (x,), (jnp.ones(3),))
    assert (out["index"], out["last"], tangent["most"]) == (1, 2, 1)
    assert tangent["index"].dtype == jax.dtypes.float0
    assert list(jax.grad(lambda x: h(x, n)["most"])(x)) == [1, 0, 0]
    assert list(jax.jit(jax.vmap(lambda x: h(x, n)["index"]))(x[None])) == [1]
    total = jax.grad(lambda x: jax.lax.scan(lambda t, x: (t + h(x, n)["most"], h(x, n)["index"]), 0.0, x)[0])
    assert total(x[None]).tolist() == [[1, 0, 0]]


def test_trees_of_arrays():
    def forward(static, tree):
        return tree["a"] * tree["b"][0], tree

    h = made(forward, lambda static, tree, g: ({"a": tree["b"][0] * g, "b": [tree["a"] * g, None]},))
    tree = {"a": X, "b": [Y, jnp.int32(1)]}
    assert jax.grad(lambda a: h(0, tree | {"a": a}))(X) == 3
    assert jax.jvp(lambda a, b: h(0, {"a": a, "b": [b, None]}), (X, Y), (1.0, 1.0))[1] == 5


def test_arguments_that_the_examples_of_vmap_share():
    x = jnp.arange(1.0, 4.0)
    np.testing.assert_allclose(jax.grad(lambda y: jax.vmap(g, (0, None))(x, y).sum())(Y), (x**3).sum())
    np.testing.assert_allclose(jax.grad(lambda y: jax.jit(jax.vmap(g, (0, None)))(x, y).sum())(Y), (x**3).sum())
    np.testing.assert_allclose(jax.grad(lambda x: jax.jit(jax.vmap(g, (None, 0)))(x, jnp.ones(2)).sum())(X), 24)
    np.testing.assert_allclose(jax.vmap(jax.grad(g, 1), (0, None))(x, Y), x**3)
    np.testing.assert_allclose(jax.vmap(jax.grad(g), (0, None))(x, Y), 9 * x**2)


def test_nothing_leaks():
    with jax.checking_leaks():
        np.testing.assert_allclose(jax.jit(jax.grad(lambda x: g(x, Y)))(X), 36)
        np.testing.assert_allclose(jax.jit(lambda x: jax.jvp(jax.grad(lambda x: g(x, Y)), (x,), (x,)))(X), (36, 72))


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap])
def test_under_transforms(wrap):
    x, y = jnp.arange(1.0, 4.0), jnp.full(3, Y)
    h = wrap(lambda x, y: f(3, x, y, jnp.ones_like(x)))
    np.testing.assert_allclose(jax.grad(lambda x: h(x, y).sum())(x), 9 * x**2)
    np.testing.assert_allclose(jax.jvp(lambda x: h(x, y), (x,), (x,))[1], 9 * x**3)
