"""The margin losses against the float64 cross-entropy of logits from which the margin was subtracted."""

from functools import partial

import cases
import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import EPS

import softjax
from softjax import losses
from softjax._rows.margins import angular_drop

SAMPLES, CLASSES = 12, 7
LOSSES = {"additive": losses.additive_margin, "angular": losses.angular_margin}


def logits(scale, seed=0):
    """scale · cos θ for random angles in [0, π], and labels."""
    theta = np.random.default_rng(seed).uniform(0, np.pi, (SAMPLES, CLASSES))
    return jnp.asarray(scale * np.cos(theta), jnp.float32), cases.class_ids(CLASSES, SAMPLES)


def oracle(kind, x, y, margin, scale):
    """The loss of each row, its gradient, and the sizes of the gradient's terms."""
    x, rows = np.asarray(x, np.float64), np.arange(len(x))
    a = x[rows, y]
    cos = np.clip(a / scale, -1, 1)
    theta, derivative = np.arccos(cos), np.ones_like(a)
    lowered = a - scale * margin
    if kind == "angular":
        lowered = scale * np.cos(np.minimum(theta + margin, np.pi))
        derivative = np.cos(margin) + cos * np.sin(margin) / np.maximum(np.sin(theta), 1e-3)
        derivative = np.where(theta + margin <= np.pi, derivative, 0)  # also where the cosine is clipped
    with_margin = x.copy()
    with_margin[rows, y] = lowered
    value, gradient, sizes = exact.cross_entropy(with_margin, y)
    others = -gradient[rows, y]
    gradient[rows, y] *= derivative
    sizes[rows, y] = others * (1 + np.abs(1 - derivative) + np.abs(derivative))
    return value, gradient, sizes


@partial(jax.jit, static_argnums=0)
def _both(kind, x, y, margin, scale, cotangent):
    value, pull = jax.vjp(lambda x: LOSSES[kind](softjax.statistics(x, y), margin, scale), x)
    return value, pull(cotangent)[0]


def both(kind, x, y, margin, scale, cotangent=None):
    """The loss of each row and its VJP, by one program for all margins and scales."""
    cotangent = jnp.ones(len(x)) if cotangent is None else cotangent
    return _both(kind, x, y, jnp.asarray(margin, jnp.float32), jnp.asarray(scale, jnp.float32), cotangent)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("margin", "scale"), [(0.35, 64.0), (0.5, 1.0), (0, 30.0), (1.0, 30.0), (0.01, 16.0)])
def test_value_and_gradient(kind, margin, scale):
    x, y = logits(scale)
    g = cases.cotangent(SAMPLES)
    value, gradient = both(kind, x, y, margin, scale, g)
    expected, dx, sizes = oracle(kind, x, y, margin, scale)
    # An exponential turns an error of a few ulp of the logits into a relative error of the loss.
    ulp = EPS * (16 + 8 * scale)
    np.testing.assert_allclose(value, expected, rtol=ulp)
    g = np.asarray(g, np.float64)[:, None]
    assert (np.abs(np.asarray(gradient, np.float64) - g * dx) <= ulp * np.abs(g) * sizes + 1e-37).all()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("gap", [17.0, 40.0, 80.0])
def test_confident_rows_keep_their_digits(kind, gap):
    """Confident rows before the margin, after it, and where the margin takes the gap."""
    scale, y = 64.0, jnp.array([0, 1, 2])
    x = jnp.array([[gap - 20, -20, -20.5], [-30, gap - 30, -29], [-gap / 2, -gap / 2 - 1, gap / 2]])
    for margin in (0.0, 0.1, 0.35, 1.2):
        value, gradient = both(kind, x, y, margin, scale)
        expected, dx, sizes = oracle(kind, x, np.asarray(y), margin, scale)
        ulp = EPS * (16 + 4 * gap + 2 * scale)
        np.testing.assert_allclose(value, expected, rtol=ulp)
        assert (np.abs(np.asarray(gradient, np.float64) - dx) <= ulp * sizes).all()


def test_a_margin_of_0_gives_the_cross_entropy():
    x, y = logits(64.0)
    x = x.at[0, y[0]].set(64.0).at[1, y[1]].set(-64.0)
    s = softjax.statistics(x, y)
    dx = jax.grad(lambda x: softjax.statistics(x, y).cross_entropy.sum())(x)
    for kind in LOSSES:
        value, gradient = both(kind, x, y, 0.0, 64.0)
        np.testing.assert_allclose(value, s.cross_entropy, rtol=2e-5)
        np.testing.assert_allclose(gradient, dx, rtol=2e-5, atol=1e-7)


def test_angles_0_and_pi():
    """Also logits that rounding moved beyond the scale. Derivatives take sin θ ≥ 1e-3, and are 0 beyond the scale."""
    for margin in (0.5, 2.0, 3.1, 3.2, 100.0):
        x = jnp.array(
            [[8.0, 7.0, 0.0], [-8.0, 7.0, -8.0], [8.00001, 8.0, 0.0], [-8.00001, 8.0, 0.0], [7.9999999, 8, 0]]
        )
        y = jnp.zeros(5, jnp.int32)
        value, gradient = both("angular", x, y, margin, 8.0)
        expected, dx, sizes = oracle("angular", x, np.asarray(y), margin, 8.0)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert (np.abs(np.asarray(gradient, np.float64) - dx) <= 1e-4 * sizes).all()

    def loss(x, margin, scale):
        return losses.angular_margin(softjax.statistics(x, y), margin, scale).sum()

    first = jax.jit(jax.grad(loss, (0, 1, 2)))
    args = x, jnp.asarray(0.5), jnp.asarray(8.0)
    for leaf in jax.tree.leaves((first(*args), jax.jit(jax.jacfwd(first, (0, 1, 2)))(*args))):
        assert np.isfinite(leaf).all()


def test_a_margin_above_pi_equals_pi():
    x, y = logits(8.0)
    expected = losses.additive_margin(softjax.statistics(x.at[jnp.arange(SAMPLES), y].set(-8.0), y), 0.0, 8.0)
    for margin in (np.pi, 4.0, 50.0):
        np.testing.assert_allclose(losses.angular_margin(softjax.statistics(x, y), margin, 8.0), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_margins_whose_exponential_overflows(kind):
    """exp(scale · margin) overflows and exp(−gap) underflows, but the loss and its two derivatives are finite."""
    x, y = (
        jnp.array([[150.0, 0, 0], [60, 0, 1], [30, -20, 0], [0, 100, 200], [-jnp.inf, 0, 0]]),
        jnp.zeros(5, jnp.int32),
    )

    @jax.jit
    def second_derivative(scale, margin):
        gradient = jax.grad(lambda x: LOSSES[kind](softjax.statistics(x, y), margin, scale)[:4].sum())
        return jax.jvp(gradient, (x,), (jnp.cos(jnp.arange(15.0)).reshape(5, 3),))[1][:4]

    for scale, margin in ((150.0, 0.7), (150.0, 3.0), (1e4, 1e4)):
        value, gradient = both(kind, x, y, margin, scale)
        assert not np.isnan(value).any()
        assert np.isfinite(value[:4]).all()
        assert value[4] == jnp.inf
        assert np.isfinite(gradient).all()
        assert np.isfinite(second_derivative(scale, margin)).all()


def test_a_small_margin_keeps_its_digits():
    """cos θ − cos(θ + margin), computed without a difference of two cosines."""
    x = jnp.array([[63.0], [-20.0], [63.9999]])
    for margin in (1e-3, 1e-5):
        drop = np.asarray(angular_drop(x[:, 0], jnp.float32(margin), jnp.float32(64)), np.float64)
        theta = np.arccos(np.asarray(x[:, 0], np.float64) / 64)
        expected = 128 * np.sin(margin / 2) * np.sin(theta + margin / 2)
        np.testing.assert_allclose(drop, expected, rtol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_slope_goes_on_where_rounding_lifts_a_cosine_above_1(margin):
    one, scale = np.float32(1), 64.0
    cosines = jnp.array([1, np.nextafter(one, 2), 1.001, -1, np.nextafter(-one, np.float32(-2)), -1.001], jnp.float32)
    # Another class at 0.99: the label's probability is far from 1, so the slope is not a rounding error.
    x = scale * jnp.stack([cosines, jnp.full(6, 0.99), jnp.zeros(6)], -1)
    y = jnp.zeros(6, jnp.int32)
    value, gradient = both("angular", x, y, margin, scale)
    expected, exact_gradient, _ = oracle("angular", x, y, margin, scale)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(gradient[1, 0], gradient[0, 0], rtol=1e-4)
    assert abs(gradient[0, 0]) > (100 if margin else 0.1)
    fused = jax.grad(
        lambda kernel: softjax.linear_loss(
            lambda s: losses.angular_margin(s, margin, scale), jnp.eye(2)[:1], kernel, y[:1]
        )
    )(jnp.stack([x[1], x[0]]))
    np.testing.assert_allclose(fused[0, 0], gradient[1, 0], rtol=1e-4)
