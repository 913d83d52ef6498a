"""The margin losses against the cross-entropy, in float64, of logits whose label's is lowered by hand."""

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
EACH = {"additive": losses.additive_margin, "angular": losses.angular_margin}


def logits(scale, seed=0):
    """scale · cos θ of angles all over [0, π]."""
    theta = np.random.default_rng(seed).uniform(0, np.pi, (SAMPLES, CLASSES))
    return jnp.asarray(scale * np.cos(theta), jnp.float32), cases.class_ids(CLASSES, SAMPLES)


def oracle(kind, x, y, margin, scale):
    """The loss of each row, its gradient, and the sizes of the gradient's terms."""
    x, rows = np.asarray(x, np.float64), np.arange(len(x))
    a = x[rows, y]
    cos = np.clip(a / scale, -1, 1)
    theta, slope = np.arccos(cos), np.ones_like(a)
    lowered = a - scale * margin
    if kind == "angular":
        lowered = scale * np.cos(np.minimum(theta + margin, np.pi))
        slope = np.cos(margin) + cos * np.sin(margin) / np.maximum(np.sin(theta), 1e-3)
        slope = np.where((theta + margin <= np.pi) & (np.abs(a) <= scale), slope, 0)
    moved = x.copy()
    moved[rows, y] = lowered
    value, gradient, sizes = exact.cross_entropy(moved, y)
    others = -gradient[rows, y]
    gradient[rows, y] *= slope
    sizes[rows, y] = others * (1 + np.abs(1 - slope) + np.abs(slope))
    return value, gradient, sizes


@partial(jax.jit, static_argnums=0)
def _both(kind, x, y, margin, scale, cotangent):
    value, pull = jax.vjp(lambda x: EACH[kind](softjax.statistics(x, y), margin, scale), x)
    return value, pull(cotangent)[0]


def both(kind, x, y, margin, scale, cotangent=None):
    """The loss of each row and the pull-back of the cotangent, by one program for all margins."""
    cotangent = jnp.ones(len(x)) if cotangent is None else cotangent
    return _both(kind, x, y, jnp.asarray(margin, jnp.float32), jnp.asarray(scale, jnp.float32), cotangent)


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize(("margin", "scale"), [(0.35, 64.0), (0.5, 1.0), (0, 30.0), (1.0, 30.0), (0.01, 16.0)])
def test_the_cross_entropy_of_lowered_logits(kind, margin, scale):
    x, y = logits(scale)
    g = cases.cotangent(SAMPLES)
    value, gradient = both(kind, x, y, margin, scale, g)
    expected, dx, sizes = oracle(kind, x, y, margin, scale)
    # By a few ulp of the logits, which an exponential turns into ulp of the loss.
    ulp = EPS * (16 + 8 * scale)
    np.testing.assert_allclose(value, expected, rtol=ulp)
    g = np.asarray(g, np.float64)[:, None]
    assert (np.abs(np.asarray(gradient, np.float64) - g * dx) <= ulp * np.abs(g) * sizes + 1e-37).all()


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("gap", [17.0, 40.0, 80.0])
def test_confident_rows_keep_their_digits(kind, gap):
    """Before the margin, after it, and where it takes all of the gap."""
    scale, y = 64.0, jnp.array([0, 1, 2])
    x = jnp.array([[gap - 20, -20, -20.5], [-30, gap - 30, -29], [-gap / 2, -gap / 2 - 1, gap / 2]])
    for margin in (0.0, 0.1, 0.35, 1.2):
        value, gradient = both(kind, x, y, margin, scale)
        expected, dx, sizes = oracle(kind, x, np.asarray(y), margin, scale)
        ulp = EPS * (16 + 4 * gap + 2 * scale)
        np.testing.assert_allclose(value, expected, rtol=ulp)
        assert (np.abs(np.asarray(gradient, np.float64) - dx) <= ulp * sizes).all()


def test_no_margin_is_the_cross_entropy():
    x, y = logits(64.0)
    x = x.at[0, y[0]].set(64.0).at[1, y[1]].set(-64.0)
    s = softjax.statistics(x, y)
    dx = jax.grad(lambda x: softjax.statistics(x, y).cross_entropy.sum())(x)
    for kind in EACH:
        value, gradient = both(kind, x, y, 0.0, 64.0)
        np.testing.assert_allclose(value, s.cross_entropy, rtol=2e-5)
        np.testing.assert_allclose(gradient, dx, rtol=2e-5, atol=1e-7)


def test_at_angles_0_and_pi():
    """And a logit that rounding took past the scale. Slopes are those of sin θ = 1e-3, beyond the scale 0."""
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


def test_a_margin_of_pi_or_more_is_one_of_pi():
    x, y = logits(8.0)
    least = losses.additive_margin(softjax.statistics(x.at[jnp.arange(SAMPLES), y].set(-8.0), y), 0.0, 8.0)
    for margin in (np.pi, 4.0, 50.0):
        np.testing.assert_allclose(losses.angular_margin(softjax.statistics(x, y), margin, 8.0), least, rtol=1e-5)


@pytest.mark.parametrize("kind", EACH)
def test_margins_that_no_exponential_holds(kind):
    """exp(scale · margin) overflows, exp(−gap) underflows: a number, its slope, and the second one too."""
    x, y = (
        jnp.array([[150.0, 0, 0], [60, 0, 1], [30, -20, 0], [0, 100, 200], [-jnp.inf, 0, 0]]),
        jnp.zeros(5, jnp.int32),
    )

    @jax.jit
    def curved(scale, margin):
        loss = jax.grad(lambda x: EACH[kind](softjax.statistics(x, y), margin, scale)[:4].sum())
        return jax.jvp(loss, (x,), (jnp.cos(jnp.arange(15.0)).reshape(5, 3),))[1][:4]

    for scale, margin in ((150.0, 0.7), (150.0, 3.0), (1e4, 1e4)):
        value, gradient = both(kind, x, y, margin, scale)
        assert not np.isnan(value).any()
        assert np.isfinite(value[:4]).all()
        assert value[4] == jnp.inf
        assert np.isfinite(gradient).all()
        assert np.isfinite(curved(scale, margin)).all()


def test_the_digits_of_a_small_margin():
    """cos θ − cos(θ + margin) without the difference of two cosines."""
    x = jnp.array([[63.0], [-20.0], [63.9999]])
    for margin in (1e-3, 1e-5):
        drop = np.asarray(angular_drop(x[:, 0], jnp.float32(margin), jnp.float32(64)), np.float64)
        theta = np.arccos(np.asarray(x[:, 0], np.float64) / 64)
        exactly = 128 * np.sin(margin / 2) * np.sin(theta + margin / 2)
        np.testing.assert_allclose(drop, exactly, rtol=1e-6)
