"""The figures of the document, and its four errata: places that contradict its own definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np

import softjax

X = jnp.array([0.0, 10.0, 15.0, 18.0, 20.0])


def test_probabilities():
    np.testing.assert_allclose(softjax.softmax(X), [0.0, 0.0, 0.0059, 0.1185, 0.8756], atol=5e-5)
    np.testing.assert_allclose(softjax.softmax(X.at[3].set(19.0))[4], 0.7275, atol=5e-5)


def test_erratum_1_the_worked_logarithms_are_natural():
    hartleys = [-8.7436, -4.4007, -2.2292, -0.9263, -0.0577]
    np.testing.assert_allclose(softjax.log_softmax(X), hartleys, atol=5e-5)
    nats = [-20.1329, -10.1329, -5.1329, -2.1329, -0.1329]
    np.testing.assert_allclose(softjax.log_softmax(X, base=math.e), nats, atol=5e-5)
    for label, base10, natural in ((4, 0.05771, 0.13288), (2, 2.22918, 5.13288)):
        np.testing.assert_allclose(softjax.cross_entropy(X, jnp.array(label)), base10, atol=5e-6)
        np.testing.assert_allclose(softjax.cross_entropy(X, jnp.array(label), base=math.e), natural, atol=1e-5)


def test_erratum_2_the_softmax_derivative():
    q = np.asarray(softjax.softmax(X), np.float64)
    expected = np.diag(q) - np.outer(q, q)
    np.testing.assert_allclose(jax.jacrev(softjax.softmax)(X), expected, atol=1e-7)


def test_erratum_3_the_gradient():
    batch, labels = jnp.stack([X, X[::-1]]), jnp.array([4, 2])
    gradient = jax.grad(softjax.cross_entropy)(batch, labels)
    q, p = np.asarray(softjax.softmax(batch), np.float64), np.eye(5)[[4, 2]]
    np.testing.assert_allclose(gradient, (q - p) / (2 * math.log(10)), atol=1e-7)
    np.testing.assert_allclose(np.asarray(gradient, np.float64).sum(1), 0, atol=1e-7)
    # The printed formula puts q of the correct class at every entry; for label 4 its entries do not sum to 0.
    printed = -(np.eye(5)[4] - q[0, 4]) / math.log(10)
    np.testing.assert_allclose(printed.sum(), 1.467, atol=5e-4)


def test_erratum_4_zero_times_log_zero_is_zero():
    p, q = jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0])
    assert softjax.distribution_cross_entropy(p, q) == 0
    assert (jax.grad(softjax.distribution_cross_entropy, argnums=1)(p, q)[0]) == 0
