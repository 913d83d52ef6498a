"""The losses of `softjax.losses`, as functions of h and of logits, against float64 NumPy.

The oracle's derivative is a complex step, Im f(h + i·1e-30) / 1e-30. Nothing cancels in it, and it is independent of
the derivations under test.
"""

from functools import partial

import cases
import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import EPS
from covering import slow

import softjax
from softjax import losses

# For each loss: a formula of h and the parameter, its derivative by the parameter, and the parameters to test.
FORMULAS = {
    "focal": (
        lambda h, gamma: (-np.expm1(-h)) ** gamma * h,
        lambda h, gamma: (-np.expm1(-h)) ** gamma * h * np.where(h < 1, np.log(-np.expm1(-h)), np.log1p(-np.exp(-h))),
        (0.0, 0.5, 2.0),
    ),
    "poly": (lambda h, epsilon: h - epsilon * np.expm1(-h), lambda h, epsilon: -np.expm1(-h), (-0.5, 1.0)),
    "generalized": (
        lambda h, r: -np.expm1(-r * h) / r,
        lambda h, r: np.where(
            r * h < 1e-3,
            h**2 * (-1 / 2 + r * h / 3 - (r * h) ** 2 / 8 + (r * h) ** 3 / 30),
            ((1 + r * h) * np.exp(-r * h) - 1) / r**2,
        ),
        (0.05, 0.7, 1.0),
    ),
}
CASES = [(name, parameter) for name, (_, _, parameters) in FORMULAS.items() for parameter in parameters]
ALL_CASES = [*CASES, ("additive_margin", (0.35, 8.0)), ("angular_margin", (0.5, 8.0))]
ONE_CASE_EACH = [("focal", 2.0), ("poly", 1.0), ("generalized", 0.7), *ALL_CASES[-2:]]


def parameters(parameter):
    return parameter if isinstance(parameter, tuple) else (parameter,)


def statistics_of_h(h, a=None):
    """`Statistics` of a class id with these values of `cross_entropy` and `label_logit`."""
    zeros, nan = jnp.zeros_like(h), jnp.isnan(h)
    miss = jnp.where(nan, h, -jnp.expm1(-jnp.where(nan, 0, h)))
    s = softjax.Statistics.fill(zeros, jnp.zeros(h.shape, jnp.int32))
    return s._replace(cross_entropy=h, label_miss=miss, label_logit=zeros if a is None else a)


def oracle(name, h, parameter):
    """The value and the derivative by h, in float64."""
    f, h = FORMULAS[name][0], np.asarray(h, np.float64)
    return f(h, parameter), f(h + 1e-30j, parameter).imag / 1e-30


@jax.jit
def _value_and_derivatives(loss, h, parameter):
    both = jax.vmap(jax.value_and_grad(lambda h, p: loss(statistics_of_h(h), p), (0, 1)), (0, None))
    return both(h, parameter)


def value_and_derivatives(name, h, parameter):
    """The value, and the derivatives by h and by the parameter."""
    value, (by_h, by_parameter) = _value_and_derivatives(
        jax.tree_util.Partial(getattr(losses, name)), h, jnp.asarray(parameter, h.dtype)
    )
    return value, by_h, by_parameter


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_value_and_derivatives(name, parameter):
    """For any h from confident to wrong rows, each value and derivative has a small relative error."""
    h = jnp.asarray(10.0 ** np.arange(-16, 2.4, 0.23), jnp.float32)
    ulp = EPS * (1 + parameter) * (8 + np.abs(np.log(np.asarray(h, np.float64))))
    by_parameter = FORMULAS[name][1](np.asarray(h, np.float64), parameter)
    for actual, expected in zip(
        value_and_derivatives(name, h, parameter), (*oracle(name, h, parameter), by_parameter), strict=True
    ):
        normal = (np.abs(expected) > 1e-36) | (expected == 0)
        error = np.abs(np.asarray(actual, np.float64) - expected)
        assert (error <= ulp * np.abs(expected) + 1e-44)[normal].all(), (error / np.abs(expected) / ulp).max()


def test_poly_without_its_leading_term():
    """ε = −1 leaves h²/2 − h³/6 + …, which h − (1 − e^−h) in float32 rounds to 0."""
    h = jnp.asarray([1e-12, 1e-6, 1e-3, 0.1, 0.49, 0.51, 1.0, 30.0])
    value, by_h, _ = value_and_derivatives("poly", h, -1.0)
    h = np.asarray(h, np.float64)
    expected = np.where(h < 1e-2, h**2 / 2 - h**3 / 6 + h**4 / 24, h + np.expm1(-h))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(by_h, -np.expm1(-h), rtol=1e-6)


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_h_at_its_limits(name, parameter):
    """Values at 0, +inf and NaN. All derivatives are finite, also where exp underflows."""
    h = jnp.array([0.0, 1e-42, 1e-38, 1e-30, 100.0, 3e38, jnp.inf, jnp.nan])
    value, *derivatives = value_and_derivatives(name, h, parameter)
    bound = 1 / parameter if name == "generalized" else np.inf
    np.testing.assert_array_equal(np.asarray(value)[[0, 6, 7]], np.float32([0, bound, np.nan]))
    for derivative in derivatives:
        assert np.isfinite(derivative).all()
    by_h, by_parameter = np.asarray(derivatives)
    at_0 = {"focal": float(parameter == 0), "poly": 1 + parameter, "generalized": 1}[name]
    at_inf = {"focal": 1, "poly": 1, "generalized": 0}[name]
    np.testing.assert_array_equal(by_h[[0, 6]], np.float32([at_0, at_inf]))
    assert by_parameter[0] == 0
    second = jax.jit(jax.vmap(jax.grad(jax.grad(lambda h: getattr(losses, name)(statistics_of_h(h), parameter)))))(h)
    assert np.isfinite(second).all()


def test_a_small_exponent_does_not_underflow():
    h = jnp.asarray([1.2e-38, 1e-30, 1e-21, 1e-19])
    np.testing.assert_allclose(losses.generalized(statistics_of_h(h), 1e-3), h, rtol=1e-6)


def test_focal_loss_of_gamma_0_is_the_cross_entropy():
    h = jnp.asarray(np.geomspace(1.2e-38, 1e4, 50), jnp.float32)
    h = jnp.concatenate([h, jnp.array([0.0, jnp.inf])])
    for gamma in (0, 0.0, jnp.zeros(())):
        np.testing.assert_array_equal(losses.focal(statistics_of_h(h), gamma), h)
        by_h = jax.vmap(jax.grad(lambda h, g=gamma: losses.focal(statistics_of_h(h), g)))(h)
        np.testing.assert_array_equal(by_h, jnp.ones_like(h))


@pytest.mark.parametrize(("name", "parameter"), [("focal", 2.0), ("focal", 0.5), ("poly", 1.0), ("generalized", 0.7)])
@pytest.mark.parametrize("spread", cases.SPREADS)
def test_losses_of_logits(name, parameter, spread):
    """Values and VJPs of a random cotangent, for ids, distributions and confident rows."""
    x, g = cases.logits(9, spread), cases.cotangent()
    for labels in (cases.class_ids(9), jnp.argmax(x, -1), cases.distribution(9)):
        value, gradient = value_and_vjp(name, parameter, x, labels, g)
        h, dx, sizes = exact.cross_entropy(x, labels)
        expected, by_h = oracle(name, np.maximum(h, 1e-300), parameter)
        below = np.asarray(x, np.float64).max(1, keepdims=True) - np.asarray(x, np.float64)
        ulp = EPS * (1 + parameter) * (16 + 2 * below.max(1))
        if name == "poly" and labels.ndim == 2:  # not a function of h
            miss, d_miss = exact.scores(x, labels)["label_miss"]
            expected, dx, by_h = h + parameter * miss, dx + parameter * d_miss, np.ones_like(h)
        assert (np.abs(value - expected) <= ulp * expected + 1e-30).all()
        scale = np.abs(np.asarray(g, np.float64) * by_h)[:, None] * sizes
        error = np.abs(np.asarray(gradient) - (np.asarray(g, np.float64) * by_h)[:, None] * dx)
        assert (error <= ulp[:, None] * scale + 1e-30).all()


@partial(jax.jit, static_argnums=0)
def value_and_vjp(name, parameter, x, labels, g):
    """The loss of each row and its VJP for the cotangent g."""
    value, pull = jax.vjp(lambda x: getattr(losses, name)(softjax.statistics(x, labels), *parameters(parameter)), x)
    return value, pull(g)[0]


def test_poly_of_a_distribution():
    """h + ε Σ_j p_j (1 − q_j), with its derivatives by logits and labels, also where all q_j of the mass are equal."""
    x = jnp.array([[0.0, 1.0, -2.0], [0.0, 1.0, -2.0], [4.0, 1.0, 0.0], [0.5, 0.5, 0.5]])
    p = jnp.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.9, 0.0, 0.1], [0.5, 0.5, 0.0]])
    g = cases.cotangent(4)

    def total(x, p, epsilon):
        return g @ losses.poly(softjax.statistics(x, p), epsilon)

    def plain(x, p, epsilon):
        log_q = jax.nn.log_softmax(x)
        return g.astype(x.dtype) @ jnp.sum(p * (epsilon * -jnp.expm1(log_q) - log_q), 1)

    @partial(jax.jit, static_argnums=0)
    def derivatives(f, *args):
        return jax.value_and_grad(f, (0, 1, 2))(*args), jax.hessian(f)(*args), jax.jacfwd(jax.grad(f), 2)(*args)

    for epsilon in (-1.0, -0.5, 1.0):
        args = x, p, jnp.asarray(epsilon)
        with jax.enable_x64(True):
            expected = jax.device_get(derivatives(plain, *(a.astype(jnp.float64) for a in args)))
        for found, wanted in zip(*map(jax.tree.leaves, (derivatives(total, *args), expected)), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)
    s = softjax.statistics(jnp.array([0.0, 1.0]), jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(losses.poly(s, 1.0), 1.3132617, rtol=1e-6)
    x = jnp.array([[17.0, 1.0, 0.0], [1.0, 30.0, 0.0], [0.0, 1.0, 0.0]])
    ids, g = jnp.array([0, 1, 2]), jnp.ones(3)
    for epsilon in (-1.0, -0.9, 0.5):
        of_ids, of_one_hot = (value_and_vjp("poly", epsilon, x, y, g) for y in (ids, jax.nn.one_hot(ids, 3)))
        for a, b in zip(of_ids, of_one_hot, strict=True):
            np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-37)


@pytest.mark.parametrize("gap", [5.0, 17.0, 30.0])
def test_confident_rows_are_exact(gap):
    x, labels = jnp.array([[gap, 0.0, 1.0], [1.0, gap, 0.0]]), jnp.array([0, 1])
    h, dx, sizes = exact.cross_entropy(x, labels)
    for name, parameter in ONE_CASE_EACH[:3]:
        value, gradient = value_and_vjp(name, parameter, x, labels, jnp.ones(2))
        expected, by_h = oracle(name, h, parameter)
        ulp = EPS * (1 + parameter) * (8 + gap)
        np.testing.assert_allclose(value, expected, rtol=ulp, atol=1e-37)
        assert (np.abs(gradient - by_h[:, None] * dx) <= ulp * np.abs(by_h)[:, None] * sizes + 1e-37).all()


@pytest.mark.parametrize(("name", "parameter"), [("focal", 0.0), *ONE_CASE_EACH])
def test_edge_cases_of_rows(name, parameter):
    inf, nan = jnp.inf, jnp.nan
    x = jnp.array([[1.0, 3, 2]] * 3 + [[-inf, 1, 0], [2, -inf, 0], [nan, 1, 2], [200, 0, 0], [0, 200, 0], [0, 0, inf]])
    y, g = jnp.array([-1, 3, 2**31 - 1, 0, 0, 0, 0, 0, 0]), cases.cotangent(9)
    value, gradient = map(np.asarray, value_and_vjp(name, parameter, x, y, g))

    @jax.jit
    def jvp(x, v):
        return jax.jvp(lambda x: getattr(losses, name)(softjax.statistics(x, y), *parameters(parameter)), (x,), (v,))[1]

    tangent = jvp(x, jnp.cos(jnp.arange(27.0)).reshape(9, 3))
    assert np.isnan(value).tolist() == [True] * 3 + [False] * 2 + [True] + [False] * 3
    assert not gradient[:3].any()
    assert not tangent[:3].any()
    assert np.isfinite(gradient[[3, 4, 6, 7]]).all()
    assert value[6] == 0
    assert (value[[3, 8]] == (1 / parameter if name == "generalized" else inf)).all()
    assert not any(map(np.any, value_and_vjp(name, parameter, x[6:7, :1], y[6:7], g[:1])))  # one class


@pytest.mark.parametrize(("name", "parameter"), [ONE_CASE_EACH[0], ONE_CASE_EACH[-1], *slow(*ONE_CASE_EACH[1:-1])])
def test_every_mode_of_differentiation(name, parameter, x64):
    """First and second derivatives by logits and parameters, against JAX's derivatives of the formula in float64."""
    x, y = jnp.asarray([[0.3, -0.2, 1.1], [6.0, 0.1, -0.4]]), jnp.array([1, 0])

    def plain(x, *p):
        log_q = jax.nn.log_softmax(x)[jnp.arange(2), y]
        h, m, a = -log_q, 1 - jnp.exp(log_q), x[jnp.arange(2), y]
        if "margin" in name:
            lowered = a - p[1] * p[0] if name == "additive_margin" else p[1] * jnp.cos(jnp.arccos(a / p[1]) + p[0])
            x = x.at[jnp.arange(2), y].set(lowered)
            return -jax.nn.log_softmax(x)[jnp.arange(2), y]
        return {"focal": m ** p[0] * h, "poly": h + p[0] * m, "generalized": (1 - jnp.exp(-p[0] * h)) / p[0]}[name]

    def loss(x, *p):
        return getattr(losses, name)(softjax.statistics(x, y), *p)

    args = (x, *map(jnp.asarray, parameters(parameter)))
    argnums = tuple(range(len(args)))
    actual, expected = (
        jax.jit(lambda *a, f=f: (jax.jacrev(f, argnums)(*a), jax.jacfwd(jax.jacrev(f, argnums), argnums)(*a)))(*args)
        for f in (loss, plain)
    )
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-11)
    if name in ("focal", "angular_margin"):
        twice = jax.jit(jax.jacrev(jax.jacrev(loss)))(*args), jax.jit(jax.jacfwd(jax.jacfwd(loss)))(*args)
        np.testing.assert_allclose(*twice, rtol=1e-9, atol=1e-13)
    mapped = jax.jit(jax.vmap(lambda x, y: getattr(losses, name)(softjax.statistics(x, y), *parameters(parameter))))(
        x, y
    )
    np.testing.assert_allclose(mapped, plain(*args), rtol=1e-12)
    assert mapped.dtype == jnp.float64


@pytest.mark.parametrize(("name", "parameter"), [ONE_CASE_EACH[0], *slow(ONE_CASE_EACH[-1])])
def test_losses_of_a_last_layer(name, parameter):
    """From `linear_statistics` and from `linear_loss`, with an ignored label of −100."""
    h, k, b = cases.layer(7)
    y, w = cases.class_ids(7).at[0].set(-100), cases.weights()

    def loss(s, *p):
        return getattr(losses, name)(s, *(p or parameters(parameter)))

    def dense(h, k):
        return jnp.sum(jnp.where(w == 0, 0, loss(softjax.statistics(h @ k + b[None], y))) * w)

    def rows(h, k):
        return jnp.sum(jnp.where(w == 0, 0, loss(softjax.linear_statistics(h, k, y, bias=b, block_size=4))) * w)

    def fused(h, k):
        return softjax.linear_loss(loss, h, k, y, bias=b, weights=w, block_size=4)

    def with_traced_parameters(h, k, *p):
        return softjax.linear_loss(lambda s: loss(s, *p), h, k, y, bias=b, weights=w, block_size=4)

    expected = jax.jit(jax.value_and_grad(dense, (0, 1)))(h, k)
    traced = tuple(map(jnp.asarray, parameters(parameter)))
    others = [jax.jit(jax.value_and_grad(f, (0, 1)))(h, k) for f in (rows, fused)]
    others.append(jax.jit(jax.value_and_grad(with_traced_parameters, (0, 1)))(h, k, *traced))
    for actual in others:
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5)


def test_losses_of_16_bit_logits_are_float32():
    x = cases.logits(5, dtype=jnp.bfloat16)
    for name, parameter in ONE_CASE_EACH:
        value = getattr(losses, name)(softjax.statistics(x, cases.class_ids(5)), *parameters(parameter))
        assert value.dtype == jnp.float32
        assert value.shape == x.shape[:1]
