"""Checks of array arguments: an error names the argument, what is expected, and what came."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

LOGITS, LABELS = jnp.zeros((3, 5)), jnp.zeros(3, jnp.int32)


def ce(logits=LOGITS, labels=LABELS, **options):
    """The cross-entropy of valid arguments, except for those that a test replaces."""
    return softjax.cross_entropy(logits, labels, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ce(jnp.zeros((3, 5), jnp.int32)), TypeError, "`logits` must be a real floating array, got int32"),
        (lambda: ce(jnp.zeros((3, 5), jnp.complex64)), TypeError, "`logits` must be a real floating .* complex64"),
        (lambda: ce([[0.0] * 5] * 3), TypeError, "`logits` must be an array, got list"),
        (lambda: ce(None), TypeError, "`logits` must be an array, got NoneType"),
        (lambda: ce(jnp.zeros(())), ValueError, "`logits` must have a class axis, got a scalar"),
        (lambda: ce(axis=2), ValueError, r"`axis` must name an axis of `logits` of shape \(3, 5\), got 2"),
        (lambda: ce(axis=-3), ValueError, "`axis` must name an axis"),
        (lambda: ce(axis=1.0), TypeError, r"`axis` must be an integer, got float: 1\.0"),
        (lambda: ce(axis=(0, 1)), TypeError, "`axis` must be an integer, got tuple"),
        (lambda: ce(where=jnp.ones(5)), TypeError, "`where` must be boolean, got float32"),
        (lambda: ce(where=jnp.ones(4, bool)), ValueError, r"`where` must broadcast .*\(3, 5\); got \(4,\)"),
        (lambda: ce(where=jnp.ones((1, 3, 5), bool)), ValueError, "`where` must broadcast"),
        (lambda: ce(weights=jnp.ones((3, 5))), ValueError, r"`weights` must broadcast .*\(3,\); got \(3, 5\)"),
        (lambda: ce(weights=jnp.ones(2)), ValueError, "`weights` must broadcast"),
        (lambda: ce(weights=jnp.ones(3, jnp.complex64)), TypeError, "`weights` must be a real floating"),
        (lambda: ce(weights="x"), TypeError, "`weights` must be an array, got str"),
        (lambda: ce(np.zeros((3, 5), ">f4")), TypeError, "`logits` must be an array that JAX can hold, got >f4"),
        (lambda: softjax.softmax(jnp.arange(3)), TypeError, "`logits` must be a real floating array, got int32"),
        (lambda: softjax.softmax(LOGITS, axis=5), ValueError, "`axis`"),
    ],
)
def test_wrong_arrays_are_refused_eagerly_and_under_jit(call, error, message):
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_numpy_arrays_are_accepted(as_array):
    value = ce(
        as_array(np.zeros((3, 5))),
        as_array(np.zeros(3, np.int64)),
        weights=as_array(np.ones(3)),
        where=as_array(np.ones(5, bool)),
    )
    np.testing.assert_allclose(value, math.log10(5), rtol=1e-6)


def test_one_sample_without_a_batch_axis():
    value = softjax.cross_entropy(jnp.zeros(5), 3, weights=2.0, reduction="none")
    np.testing.assert_allclose(value, 2 * math.log10(5), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 1), (2, 4), (1, 4)])
def test_weights_broadcast_to_the_samples(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5)), jnp.float32)
    y = jnp.asarray(np.random.default_rng(0).integers(0, 5, (2, 4)), jnp.int32)
    w = jnp.asarray(np.random.default_rng(0).uniform(size=shape), jnp.float32)
    full = jnp.broadcast_to(w, (2, 4))
    losses = ce(x, y, reduction="none")
    np.testing.assert_allclose(ce(x, y, weights=w), (full * losses).sum() / full.sum(), rtol=1e-6)
    np.testing.assert_allclose(ce(x, jax.nn.one_hot(y, 5), weights=w), ce(x, y, weights=w), rtol=1e-6)


@pytest.mark.parametrize("name", ["logits", "labels", "where", "weights"])
def test_numpy_masked_arrays_are_refused(name):
    arrays = {
        "logits": np.ones((2, 3)),
        "labels": np.zeros(2, int),
        "where": np.ones((2, 3), bool),
        "weights": np.ones(2),
    }
    arrays[name] = np.ma.masked_array(arrays[name])
    with pytest.raises(TypeError, match=f"`{name}` must not be a NumPy masked array"):
        ce(**arrays)


def test_a_boolean_is_no_integer():
    with pytest.raises(TypeError, match="`axis` must be an integer, got bool: True"):
        softjax.softmax(LOGITS, axis=True)
    with pytest.raises(TypeError, match="`block_size` must be an integer, got bool: True"):
        softjax.linear_cross_entropy(LOGITS, jnp.ones((LOGITS.shape[1], 3)), LABELS, block_size=True)
    with pytest.raises(TypeError, match="`num_classes` must be an integer, got bool"):
        softjax.validate_labels(LABELS, np.True_)
