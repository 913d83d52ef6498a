"""Values and derivatives under JAX's transforms: jit, vmap, jvp, linearize, hessian, checkpoint and scan."""

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from covering import ON_ONE_CPU, ROUTES, covering

import softjax

X, Y = cases.logits(5), cases.class_ids(5)
V = jnp.asarray(np.random.default_rng(9).normal(size=X.shape), jnp.float32)
W = cases.weights()
pytestmark = pytest.mark.usefixtures("route")


def loss(x):
    return softjax.cross_entropy(x, Y, weights=W, label_smoothing=0.1, z_loss=0.01)


def _oracle_gradient(x):
    total = float(np.asarray(W, np.float64).sum())
    options = {"weights": W, "label_smoothing": 0.1, "z_loss": 0.01}
    value, gradient = oracle.cross_entropy(x, Y, **options)
    return value.sum() / total, gradient / total


VALUE, GRADIENT = _oracle_gradient(X)
STEP = 1e-6
HVP = (
    _oracle_gradient(np.asarray(X, np.float64) + STEP * np.asarray(V, np.float64))[1]
    - _oracle_gradient(np.asarray(X, np.float64) - STEP * np.asarray(V, np.float64))[1]
) / (2 * STEP)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@ON_ONE_CPU
@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: jax.jit(jax.checkpoint(f))])
def test_first_derivatives(wrap):
    f = wrap(loss)
    close(f(X), VALUE)
    close(jax.grad(f)(X), GRADIENT)

    @jax.jit
    def other_modes(x):
        _, push = jax.linearize(f, x)
        return jax.jacfwd(f)(x), jax.jvp(f, (x,), (V,)), push(V), jax.linear_transpose(push, x)(jnp.float32(1))[0]

    forward, (value, tangent), pushed, transposed = other_modes(X)
    close(forward, GRADIENT)
    close(value, VALUE)
    close(tangent, (GRADIENT * np.asarray(V)).sum())
    close(pushed, tangent)
    close(transposed, GRADIENT)


HVPS = [
    lambda x: jax.jvp(jax.grad(loss), (x,), (V,))[1],
    lambda x: jax.grad(lambda x: jax.jvp(loss, (x,), (V,))[1])(x),
    lambda x: jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), V))(x),
    lambda x: jax.jvp(lambda x: jax.jvp(loss, (x,), (V,))[1], (x,), (V,))[1],
    lambda x: jnp.einsum("ijkl,kl->ij", jax.hessian(loss)(x), V),
    lambda x: jax.jvp(jax.jit(jax.grad(jax.checkpoint(loss))), (x,), (V,))[1],
    lambda x: jax.linearize(jax.grad(loss), x)[1](V),
]


@pytest.mark.parametrize(("route", "hvp"), covering(ROUTES, HVPS), indirect=["route"])
def test_second_derivatives(hvp):
    found = jax.jit(hvp)(X)
    expected = HVP if found.ndim else (HVP * np.asarray(V)).sum()
    close(found, expected)
    if hvp is HVPS[0]:
        close(hvp(X), expected)  # without `jit`


@ON_ONE_CPU
def test_third_derivative():
    x, y = X[0], Y[0]

    def loss(x):
        return softjax.cross_entropy(x, y)

    def plain(x):
        return (jax.nn.logsumexp(x) - x[y]) / jnp.log(10)

    third = (jax.jit(jax.jacrev(jax.jacfwd(jax.jacrev(f)))) for f in (loss, plain))
    chex.assert_trees_all_close(*(f(x) for f in third), atol=1e-6)


@ON_ONE_CPU
def test_vmap_over_logits_labels_and_both():
    def sample_loss(x, y):
        return softjax.cross_entropy(x, y)

    expected = softjax.cross_entropy(X, Y, reduction="none")
    close(jax.vmap(sample_loss)(X, Y), expected)
    close(jax.vmap(sample_loss, in_axes=(1, 0))(X.T, Y), expected)
    close(
        jax.vmap(sample_loss, in_axes=(None, 0))(X[0], Y),
        softjax.cross_entropy(jnp.tile(X[:1], (11, 1)), Y, reduction="none"),
    )
    close(
        jax.vmap(sample_loss, in_axes=(0, None))(X, Y[0]),
        softjax.cross_entropy(X, jnp.full_like(Y, Y[0]), reduction="none"),
    )
    close(jax.jit(jax.vmap(jax.grad(sample_loss)))(X, Y), jax.jit(jax.grad(lambda x: sample_loss(x, Y) * 11))(X))
    hessian = jax.hessian(sample_loss)
    close(jax.jit(jax.vmap(hessian))(X, Y)[3], jax.jit(hessian)(X[3], Y[3]))
    where = jnp.arange(5) < 4
    masked = jax.vmap(lambda x, w: softjax.cross_entropy(x, jnp.array(0), where=w), in_axes=(0, None))(X, where)
    close(masked, softjax.cross_entropy(X, jnp.zeros(11, jnp.int32), where=where, reduction="none"))


@ON_ONE_CPU
def test_vmap_over_distributions_alone():
    p = cases.distribution(5)
    close(
        jax.vmap(lambda p: softjax.cross_entropy(X[0], p))(p),
        softjax.cross_entropy(jnp.tile(X[:1], (11, 1)), p, reduction="none"),
    )


@ON_ONE_CPU
def test_derivatives_through_scan():
    def total(x):
        def step(carry, row):
            x, y = row
            return carry + softjax.cross_entropy(x, y), None

        return jax.lax.scan(step, jnp.float32(0), (x, Y))[0]

    def plain(x):
        return softjax.cross_entropy(x, Y, reduction="sum")

    def every_mode(f):
        return jax.jit(lambda x: (f(x), *jax.jvp(jax.grad(f), (x,), (V,))))(X)

    for actual, expected in zip(every_mode(total), every_mode(plain), strict=True):
        close(actual, expected)


@ON_ONE_CPU
def test_while_and_cond_in_forward_mode():
    def f(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: x - jax.grad(loss)(x), x).sum()

    close(jax.eval_shape(jax.jacfwd(f), X).shape, X.shape)
    assert np.isfinite(jax.jit(jax.jacfwd(f))(X)).all()
    g = jax.grad(lambda x: jax.lax.cond(x[0, 0] > -10, loss, lambda x: x.sum(), x))
    close(g(X), GRADIENT)


@ON_ONE_CPU
def test_derivatives_of_many_rows(route):
    # On one CPU, a loop sums so many rows a few at a time. No derivative goes through the loop.
    x, y = cases.logits(2048, 1.0, 700, jnp.bfloat16), cases.class_ids(2048, 700)
    v = cases.logits(2048, 1.0, 700, jnp.bfloat16, seed=1)

    def f(x):
        return softjax.cross_entropy(x, y)

    def plain(x):
        return (jax.nn.logsumexp(x, -1) - x[jnp.arange(700), y]).mean() / np.log(10)

    x32, v32 = x.astype(jnp.float32), v.astype(jnp.float32)

    def jvps(f, x, v):
        """The JVP of the loss and of its gradient."""
        return jax.jit(lambda x, v: (jax.jvp(f, (x,), (v,))[1], jax.jvp(jax.grad(f), (x,), (v,))[1]))(x, v)

    (first, second), (expected_first, expected) = jvps(f, x, v), jvps(plain, x32, v32)
    np.testing.assert_allclose(first, expected_first, rtol=1e-3)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(second.astype(jnp.float32), expected, rtol=2**-7, atol=1e-4 * scale)


UNMAPPED = {
    "logits": lambda x, y, p: jax.vmap(lambda y: softjax.cross_entropy(x, y, label_smoothing=0.1))(y),
    "labels": lambda x, y, p: jax.vmap(lambda x: softjax.cross_entropy(x, y[0], reduction="none"))(jnp.stack([x, -x])),
    "distribution": lambda x, y, p: jax.vmap(lambda x: softjax.cross_entropy(x, p))(jnp.stack([x, -x])),
    "statistics": lambda x, y, p: jax.vmap(lambda x: softjax.statistics(x, y[0])[0])(jnp.stack([x, -x])),
    "hidden": lambda x, y, p: jax.vmap(
        lambda y: softjax.linear_cross_entropy(x, jnp.eye(7), y, reduction="none", block_size=3)
    )(y),
    "kernel": lambda x, y, p: jax.vmap(
        lambda h, w: softjax.linear_cross_entropy(
            h, x, y[0, :7], weights=w, reduction="none", block_size=3, label_smoothing=0.1
        )
    )(jnp.stack([jnp.eye(7), 2 * jnp.eye(7)]), (y[:, :7] > 2).astype(x.dtype)),
}


@pytest.mark.parametrize(("route", "case"), covering(ROUTES, UNMAPPED), indirect=["route"])
def test_gradient_by_an_unmapped_argument_of_a_jitted_vmap(case):
    """JAX differentiates the vmapped function under `jit`: both must agree on which arrays are mapped."""
    x, p = cases.logits(7, samples=7), cases.distribution(7, 7)
    y = jnp.stack([cases.class_ids(7, 7), cases.class_ids(7, 7, seed=1)])

    def total(x, wrap):
        return (wrap(lambda x: UNMAPPED[case](x, y, p))(x) ** 2).sum()

    def gradients(x):
        return jax.grad(lambda x: total(x, lambda f: f))(x), jax.grad(lambda x: total(x, jax.jit))(x)

    plain, expected = jax.jit(gradients)(x)
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-6)
    if case in ("logits", "hidden"):  # without an outer `jit`
        np.testing.assert_allclose(jax.grad(lambda x: total(x, jax.jit))(x), expected, rtol=1e-5, atol=1e-6)
