"""The fitted temperature against a search by scipy, and its edge cases."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import predictions
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import softjax
from softjax._api import temperature
from softjax.metrics import fit_temperature

X, Y = (a[:400] for a in predictions.held_out())
W = np.random.default_rng(1).uniform(0, 2, len(Y)).astype(np.float32)


def searched(x, y, weights=None):
    """The temperature of the lowest cross-entropy, by scipy in float64, for ids or distributions."""
    x, y = np.asarray(x).astype(np.float64), np.asarray(y)
    p = np.eye(x.shape[1])[y] if y.dtype.kind == "i" else y.astype(np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)

    def loss(log_t):
        log_q = log_softmax(x / np.exp(log_t), axis=1)
        return -(w[:, None] * np.where(p > 0, p * np.where(p > 0, log_q, 0), 0)).sum()

    return np.exp(minimize_scalar(loss, bounds=np.log([0.01, 100]), method="bounded", options={"xatol": 1e-9}).x)


@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
@pytest.mark.parametrize("factor", [0.02, 0.3, 1.0, 12.0])
def test_equals_the_search_by_scipy(factor, weights):
    """Also H(p, q) = H(q) at the fitted temperature. The factors give temperatures from 0.1 to 60."""
    x = (X * factor).astype(np.float32)
    expected = searched(x, Y, weights)
    assert 0.02 < expected < 99
    fitted = fit_temperature(x, Y, weights)
    np.testing.assert_allclose(fitted, expected, rtol=1e-5)
    s = softjax.statistics(x / fitted, Y)
    w = 1 if weights is None else weights
    np.testing.assert_allclose((s.cross_entropy * w).sum(), (s.entropy * w).sum(), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bit_logits(dtype):
    x = jnp.asarray(X).astype(dtype)
    fitted = fit_temperature(x, Y)
    np.testing.assert_allclose(fitted, searched(x.astype(jnp.float32), Y), rtol=1e-5)
    assert fitted.dtype == jnp.float32


def test_float64_logits(x64):
    fitted = fit_temperature(jnp.asarray(X, jnp.float64), Y)
    np.testing.assert_allclose(fitted, searched(X, Y), rtol=1e-7)  # the tolerance of scipy
    s = softjax.statistics(jnp.asarray(X, jnp.float64) / fitted, Y)
    np.testing.assert_allclose(s.cross_entropy.sum(), s.entropy.sum(), rtol=1e-12)
    assert fitted.dtype == jnp.float64


def test_distributions_as_labels():
    x, p = cases.logits(5, 6.0, 40), cases.distribution(5, 40)
    np.testing.assert_allclose(fit_temperature(x, p), searched(x, p), rtol=1e-5)
    one_hot = jax.nn.one_hot(jnp.asarray(Y), 10)
    np.testing.assert_allclose(fit_temperature(X, one_hot), fit_temperature(X, Y), rtol=1e-5)


def test_shifted_logits_keep_their_digits():
    x = np.round(X * 64) / 64
    shift = np.random.default_rng(0).choice([-1e4, 0, 3e4], (400, 1)).astype(np.float32)
    np.testing.assert_allclose(fit_temperature(x + shift, Y), fit_temperature(x, Y), rtol=1e-6)


def test_masked_classes():
    """A class of logit −inf acts as deleted; a sample with such a label is ignored."""
    x, y = jnp.asarray(X), jnp.asarray(Y)
    padded = jnp.pad(x, ((0, 0), (0, 2)), constant_values=-jnp.inf)
    np.testing.assert_allclose(fit_temperature(padded, y), fit_temperature(x, y), rtol=1e-5)
    np.testing.assert_allclose(
        fit_temperature(padded, y.at[::3].set(11)), fit_temperature(x, y, jnp.arange(400) % 3 > 0), rtol=1e-5
    )


def test_the_limits_of_the_temperature():
    """All samples correct, all wrong, and predictions no better than chance."""
    x, correct = cases.logits(5, 3.0, 64), jnp.argmax(cases.logits(5, 3.0, 64), -1)
    for scale in (1e-3, 1.0, 100.0, 1e6):
        np.testing.assert_allclose(fit_temperature(x * scale, correct), 0.01, rtol=1e-6)
    for scale in (1.0, 100.0, 1e6):
        np.testing.assert_allclose(fit_temperature(x * scale, jnp.argmin(x, -1)), 100, rtol=1e-6)
    every_class = jnp.tile(jnp.arange(5), (64, 1)).T.reshape(-1)
    np.testing.assert_allclose(fit_temperature(jnp.tile(x, (5, 1)), every_class), 100, rtol=1e-6)


def test_1_where_no_loss_depends_on_the_temperature():
    x, y = cases.logits(5), cases.class_ids(5)
    nan = jnp.full_like(x, jnp.nan)
    for case in ((x[:, :1], y * 0), (x[:0], y[:0]), (nan, y - 100, jnp.zeros(11, bool))):
        assert fit_temperature(*case) == 1
    logits = jnp.stack([x * 0 + 7, x, x.at[:, 0].set(-jnp.inf)])
    weights = jnp.ones((3, 11)).at[1].set(0)
    np.testing.assert_array_equal(jax.vmap(fit_temperature)(logits, jnp.stack([y, y, y * 0]), weights), 1)


def test_ignored_samples_may_hold_anything():
    x, y, w = jnp.asarray(X), jnp.asarray(Y), jnp.ones(400).at[:4].set(0)
    x = x.at[0].set(jnp.nan).at[1].set(-jnp.inf).at[2, 3].set(jnp.inf)
    expected = fit_temperature(x[4:], y[4:])
    np.testing.assert_allclose(fit_temperature(x, y.at[3].set(-100), w), expected, rtol=1e-5)
    np.testing.assert_allclose(fit_temperature(x, y.at[3].set(-100), w > 0), expected, rtol=1e-5)
    for bad in (fit_temperature(x, y), fit_temperature(x[4:], y[4:].at[0].set(10))):
        assert np.isnan(bad)


def test_jit_vmap_and_axes():
    """Each example of a `vmap` has its own root, some at the ends of the bracket."""
    x, y = jnp.asarray(X).reshape(4, 100, 10), jnp.asarray(Y).reshape(4, 100)
    y = y.at[1].set(jnp.argmax(x[1], -1))
    expected = [searched(x[0], y[0]), 0.01, searched(x[2], y[2]), searched(x[3], y[3])]
    np.testing.assert_allclose(jax.jit(jax.vmap(fit_temperature))(x, y), expected, rtol=1e-5)
    np.testing.assert_allclose(fit_temperature(x, y), searched(X, y.reshape(400)), rtol=1e-5)
    weighted = fit_temperature(x, y, jnp.array([[1.0], [0.0], [0.0], [0.0]]))
    np.testing.assert_allclose(weighted, expected[0], rtol=1e-5)


def test_no_derivative_flows_through_the_temperature():
    value, gradient = jax.value_and_grad(fit_temperature)(X, Y)
    assert 0.01 < value < 100
    assert not gradient.any()


def test_the_search_takes_few_steps(monkeypatch):
    """Also where nearly all samples are correct, so that Newton's method alone would take steps of only 1 / gap."""
    gap, miss = np.array([[1.0, 1e-3], [0.7, 1e-30], [500.0, 1e-3], [1000.0, 1e-30], [20.0, 0.3]]).T
    states, run = [], jax.lax.while_loop
    monkeypatch.setattr(jax.lax, "while_loop", lambda *args: states.append(run(*args)) or states[-1])

    @jax.jit
    def fit(x, p):
        return temperature._fit.__wrapped__(x, p, None), states[-1].steps

    for g, m in zip(gap, miss, strict=True):
        fitted, steps = fit(jnp.array([[g, 0.0]], jnp.float32), jnp.array([[1 - m, m]], jnp.float32))
        np.testing.assert_allclose(fitted, g / (np.log1p(-m) - np.log(m)), rtol=1e-5)
        assert steps < 25


def test_refused_arguments():
    x, y = cases.logits(5), cases.class_ids(5)
    with pytest.raises(TypeError, match="`logits` must be a real floating array, got int32"):
        fit_temperature(y, y)
    with pytest.raises(ValueError, match="Integer `labels` are class ids"):
        fit_temperature(x, y[:3])
    with pytest.raises(TypeError, match="`labels` must be"):
        fit_temperature(x, "all")
    with pytest.raises(ValueError, match="`weights` must broadcast"):
        fit_temperature(x, y, jnp.ones(4))
    assert np.isnan(fit_temperature(x, np.asarray(y, np.int64) + 2**32))
