"""Inputs that the tests share: flat and peaked logits, odd class counts, cotangents that differ by row."""

import jax.numpy as jnp
import numpy as np

SPREADS = (0.02, 1.0, 30.0, 1000.0)
CLASSES = (1, 2, 5, 7, 8, 9, 127, 128, 129, 2049)
SAMPLES = 11


def logits(classes, spread=1.0, samples=SAMPLES, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng([seed, classes, samples])
    return jnp.asarray(rng.normal(size=(samples, classes)) * spread, jnp.float32).astype(dtype)


def class_ids(classes, samples=SAMPLES, seed=0):
    return jnp.asarray(np.random.default_rng([seed, 1, classes]).integers(0, classes, samples), jnp.int32)


def distribution(classes, samples=SAMPLES, dtype=jnp.float32, seed=0):
    p = np.random.default_rng([seed, 2, classes]).dirichlet(np.ones(classes), samples)
    return jnp.asarray(p, jnp.float32).astype(dtype)


def cotangent(samples=SAMPLES, seed=0):
    return jnp.asarray(np.random.default_rng([seed, 3]).normal(size=samples), jnp.float32)


def weights(samples=SAMPLES, seed=0):
    """Unequal weights, some of them 0."""
    w = np.random.default_rng([seed, 4]).uniform(0.1, 3.0, samples)
    w[::4] = 0
    return jnp.asarray(w, jnp.float32)


def floating(statistics):
    """The floating statistics by name, which are those that have a derivative."""
    return {name: value for name, value in statistics._asdict().items() if jnp.issubdtype(value.dtype, jnp.floating)}


def layer(classes, features=13, samples=SAMPLES, spread=1.0, dtype=jnp.float32, seed=0):
    """Hidden states, kernel and bias. Their logits have a standard deviation of about `spread`."""
    rng = np.random.default_rng([seed, 5, classes, samples])
    hidden = rng.normal(size=(samples, features))
    kernel = rng.normal(size=(features, classes)) * spread / np.sqrt(features)
    bias = rng.normal(size=classes) * spread / 4
    return tuple(jnp.asarray(a, jnp.float32).astype(dtype) for a in (hidden, kernel, bias))
