"""Output dtypes, and errors in 16 bits: at most those of the unfused float32 baseline and one rounding."""

import itertools
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from covering import covering

import softjax

LOW = [jnp.float16, jnp.bfloat16]


def _unfused(x, y):
    x = x.astype(jnp.float32)
    return -jax.nn.log_softmax(x, -1)[jnp.arange(len(y)), y] / jnp.log(jnp.float32(10))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("spread", [0.02, 1.0, 30.0])
def test_value_and_gradient(dtype, spread, route):
    x, y, g = cases.logits(129, spread, dtype=dtype), cases.class_ids(129), cases.cotangent()
    loss, pull = jax.vjp(lambda x: softjax.cross_entropy(x, y, reduction="none"), x)
    expected, gradient = oracle.cross_entropy(x, y, cotangent=g)
    ulp32 = 2.0**-23
    budget = np.abs(np.asarray(_unfused(x, y), np.float64) - expected).max()
    assert loss.dtype == jnp.float32
    assert np.abs(np.asarray(loss, np.float64) - expected).max() <= budget + 2 * ulp32 * np.abs(expected).max()
    dx = pull(g)[0]
    assert dx.dtype == dtype
    rounded = np.asarray(jnp.asarray(gradient, jnp.float32).astype(dtype), np.float64)
    ulp = float(jnp.finfo(dtype).eps)
    floor = float(jnp.finfo(dtype).smallest_subnormal)
    # one ulp of the output dtype: the error of float32 may change the direction of the rounding
    np.testing.assert_allclose(np.asarray(dx, np.float64), rounded, rtol=ulp, atol=max(floor, 1e-6 * ulp))


@pytest.mark.parametrize("labels", ["ids", "float64", "float32"])
def test_float64(x64, labels):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(11, 129)) * 30)
    ids = cases.class_ids(129)
    y = ids if labels == "ids" else jax.nn.one_hot(ids, 129, dtype=labels)
    loss, pull = jax.vjp(lambda x: softjax.cross_entropy(x, y, reduction="none", label_smoothing=0.1), x)
    g = jnp.asarray(rng.normal(size=11))
    expected, gradient = oracle.cross_entropy(x, ids, label_smoothing=0.1, cotangent=g)
    assert loss.dtype == jnp.float64
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(pull(g)[0], gradient, atol=1e-13)
    assert softjax.softmax(x).dtype == jnp.float64
    assert softjax.statistics(x, y).entropy.dtype == jnp.float64


def test_float64_distribution_of_float32_logits(x64):
    x, p = cases.logits(5), cases.distribution(5).astype(jnp.float64)
    loss, gradient = jax.value_and_grad(softjax.cross_entropy)(x, p, weights=jnp.ones(11), label_smoothing=0.1)
    assert loss.dtype == jnp.float64
    assert gradient.dtype == jnp.float32


@jax.jit
def _mean_and_gradients(x, p, w):
    loss = partial(softjax.cross_entropy, weights=w, z_loss=0.1)
    return jax.value_and_grad(loss, argnums=(0, 1))(x, p)


@pytest.mark.parametrize(
    ("logits", "labels", "weights"),
    covering(
        itertools.product([*LOW, jnp.float32], repeat=2),
        [jnp.bfloat16, jnp.float32, jnp.int8, jnp.bool_],
        quick=(1, 2, 3, 4, 8),
    ),
)
def test_mixed_dtypes(logits, labels, weights):
    x, p, w = cases.logits(5, dtype=logits), cases.distribution(5, dtype=labels), (cases.weights() * 2).astype(weights)
    loss, (dx, dp) = _mean_and_gradients(x, p, w)
    assert loss.dtype == jnp.float32
    assert (dx.dtype, dp.dtype) == (logits, labels)
    expected, _ = oracle.cross_entropy(x, p, weights=np.asarray(w.astype(jnp.float32)), z_loss=0.1)
    np.testing.assert_allclose(loss, oracle.mean(expected, np.asarray(w.astype(jnp.float32)), 11), rtol=1e-5)
