"""`with_forward_mode`: one backward rule serves every mode and order of differentiation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from softjax._xla.every_mode import opaque_to_remat, with_forward_mode

X, Y = jnp.float32(2.0), jnp.float32(3.0)


def with_rule(forward, backward):
    """A function with the analytic gradient `backward`, made as the package makes its functions."""
    function = jax.custom_vjp(lambda static, *arrays: forward(static, *arrays)[0], nondiff_argnums=(0,))
    function.defvjp(forward, backward)
    return with_forward_mode(function)


def _forward(power, x, y, n):
    # f = n · x^power · y
    return n * x**power * y, (x, y, n)


def _backward(power, residuals, g):
    x, y, n = residuals
    return n * power * x ** (power - 1) * y * g, n * x**power * g, None


f = with_rule(_forward, _backward)


def g(x, y):
    return f(3, x, y, jnp.float32(1))


def test_reverse_and_forward_mode():
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


def test_the_given_backward_rule_runs_in_both_modes():
    """A rule that is wrong on purpose shows where it is used."""
    h = with_rule(lambda power, x, y: (x * y, ()), lambda power, residuals, g: (7.0 * g, 5.0 * g))
    assert jax.grad(lambda x: h(1, x, Y))(X) == 7
    assert jax.jvp(lambda x, y: h(1, x, y), (X, Y), (1.0, 1.0))[1] == 12


def test_a_constant_argument_gets_no_gradient():
    h = with_rule(lambda power, x, y: (x + y.sum(), ()), lambda power, residuals, g: (g, jnp.full(1000, 1.0) * g))
    hlo = jax.jit(jax.grad(lambda x: h(1, x, jnp.zeros(1000)) ** 2)).lower(X).compile().as_text()
    assert "f32[1000]" in jax.jit(jax.grad(lambda y: h(1, X, y) ** 2)).lower(jnp.zeros(1000)).compile().as_text()
    assert "f32[1000]" not in hlo


def test_the_gradient_of_an_unread_output_is_not_in_the_program():
    def forward(static, x):
        return (jnp.sin(x), jnp.cos(x)), x

    h = with_rule(forward, lambda static, x, g: (jnp.cos(x) * g[0] - jnp.tanh(x) * g[1],))
    hlo = jax.jit(jax.grad(lambda x: h(0, x)[0])).lower(X).compile().as_text()
    assert "tanh" not in hlo
    assert "tanh" in jax.jit(jax.grad(lambda x: h(0, x)[1])).lower(X).compile().as_text()


def test_integer_outputs_have_no_derivative():
    def forward(static, x, n):
        return {"index": jnp.argmax(x), "largest": x[0] * n.astype(x.dtype), "last": n}, (x, n)

    def backward(static, residuals, g):
        return jnp.zeros(3).at[0].set(g["largest"]), None

    h = partial(with_rule(forward, backward), 0)
    x, n = jnp.array([1.0, 3.0, 2.0]), jnp.int32(2)
    out, tangent = jax.jvp(lambda x: h(x, n), (x,), (jnp.ones(3),))
    assert (out["index"], out["last"], tangent["largest"]) == (1, 2, 1)
    assert tangent["index"].dtype == jax.dtypes.float0
    assert list(jax.grad(lambda x: h(x, n)["largest"])(x)) == [1, 0, 0]
    assert list(jax.jit(jax.vmap(lambda x: h(x, n)["index"]))(x[None])) == [1]
    scanned = jax.grad(lambda x: jax.lax.scan(lambda t, x: (t + h(x, n)["largest"], h(x, n)["index"]), 0.0, x)[0])
    assert scanned(x[None]).tolist() == [[1, 0, 0]]


def test_arguments_may_be_pytrees():
    def forward(static, tree):
        return tree["a"] * tree["b"][0], tree

    h = with_rule(forward, lambda static, tree, g: ({"a": tree["b"][0] * g, "b": [tree["a"] * g, None]},))
    tree = {"a": X, "b": [Y, jnp.int32(1)]}
    assert jax.grad(lambda a: h(0, tree | {"a": a}))(X) == 3
    assert jax.jvp(lambda a, b: h(0, {"a": a, "b": [b, None]}), (X, Y), (1.0, 1.0))[1] == 5


def test_arguments_that_vmap_does_not_batch():
    x = jnp.arange(1.0, 4.0)
    np.testing.assert_allclose(jax.grad(lambda y: jax.vmap(g, (0, None))(x, y).sum())(Y), (x**3).sum())
    np.testing.assert_allclose(jax.grad(lambda y: jax.jit(jax.vmap(g, (0, None)))(x, y).sum())(Y), (x**3).sum())
    np.testing.assert_allclose(jax.grad(lambda x: jax.jit(jax.vmap(g, (None, 0)))(x, jnp.ones(2)).sum())(X), 24)
    np.testing.assert_allclose(jax.vmap(jax.grad(g, 1), (0, None))(x, Y), x**3)
    np.testing.assert_allclose(jax.vmap(jax.grad(g), (0, None))(x, Y), 9 * x**2)


def test_no_tracer_leaks():
    with jax.checking_leaks():
        np.testing.assert_allclose(jax.jit(jax.grad(lambda x: g(x, Y)))(X), 36)
        np.testing.assert_allclose(jax.jit(lambda x: jax.jvp(jax.grad(lambda x: g(x, Y)), (x,), (x,)))(X), (36, 72))


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap])
def test_under_transforms(wrap):
    x, y = jnp.arange(1.0, 4.0), jnp.full(3, Y)
    h = wrap(lambda x, y: f(3, x, y, jnp.ones_like(x)))
    np.testing.assert_allclose(jax.grad(lambda x: h(x, y).sum())(x), 9 * x**2)
    np.testing.assert_allclose(jax.jvp(lambda x: h(x, y), (x,), (x,))[1], 9 * x**3)


def test_a_checkpoint_policy_does_not_look_into_an_opaque_forward_rule(capsys):
    def forward(static, x, kernel):
        z = x @ kernel
        return jnp.sin(z).sum(), (kernel, jnp.cos(z))

    def backward(static, residuals, g):
        kernel, cosines = residuals
        return g * cosines @ kernel.T, jnp.zeros_like(kernel)

    x, kernel = jnp.ones((3, 4)), jnp.ones((4, 5))
    for rule, saves_the_matmul in ((forward, True), (opaque_to_remat(forward), False)):
        loss = jax.checkpoint(partial(with_rule(rule, backward), None), policy=jax.checkpoint_policies.dots_saveable)
        print_saved_residuals(loss, x, kernel)
        assert ("[3,5]" in capsys.readouterr().out) == saves_the_matmul
        np.testing.assert_allclose(jax.grad(loss)(x, kernel), jnp.cos(x @ kernel) @ kernel.T, rtol=1e-6)
    value, tangent = jax.jvp(lambda x: opaque_to_remat(forward)(None, x, kernel)[0], (x,), (x,))
    np.testing.assert_allclose((value, tangent), jax.jvp(lambda x: jnp.sin(x @ kernel).sum(), (x,), (x,)), rtol=1e-6)
