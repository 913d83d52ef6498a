"""Argument checks: each error names the argument, what came, and what was expected."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax

X, Y = jnp.zeros((3, 5)), jnp.zeros(3, jnp.int32)


def ce(logits=X, labels=Y, **options):
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
        (lambda: ce(labels=jnp.zeros((3, 5), jnp.int32)), ValueError, r"one-hot .* must be floating"),
        (lambda: ce(labels=jnp.zeros((3, 1), jnp.int32)), ValueError, r"labels\.squeeze\(-1\)"),
        (lambda: ce(labels=jnp.zeros(4, jnp.int32)), ValueError, r"Integer `labels` .*\(3,\); got \(4,\)"),
        (lambda: ce(labels=jnp.zeros(3)), ValueError, r"Floating `labels` .* Class ids must be integer"),
        (lambda: ce(labels=jnp.zeros((3, 4))), ValueError, r"\(3, 5\); got \(3, 4\)"),
        (lambda: ce(labels=jnp.zeros(3, bool)), TypeError, "`labels` must be integer class ids or .* got bool"),
        (lambda: ce(where=jnp.ones(5)), TypeError, "`where` must be boolean, got float32"),
        (lambda: ce(where=jnp.ones(4, bool)), ValueError, r"`where` must broadcast .*\(3, 5\); got \(4,\)"),
        (lambda: ce(where=jnp.ones((1, 3, 5), bool)), ValueError, "`where` must broadcast"),
        (lambda: ce(weights=jnp.ones((3, 5))), ValueError, r"`weights` must broadcast .*\(3,\); got \(3, 5\)"),
        (lambda: ce(weights=jnp.ones(2)), ValueError, "`weights` must broadcast"),
        (lambda: ce(weights=jnp.ones(3, jnp.complex64)), TypeError, "`weights` must be a real floating"),
        (lambda: ce(weights="x"), TypeError, "`weights` must be an array, got str"),
        (lambda: ce(base=1), ValueError, "`base` must be a positive finite number other than 1, got 1"),
        (lambda: ce(base=0), ValueError, "`base`"),
        (lambda: ce(base=-2.0), ValueError, "`base`"),
        (lambda: ce(base=math.inf), ValueError, "`base`"),
        (lambda: ce(base=math.nan), ValueError, "`base`"),
        (lambda: ce(base=10**400), ValueError, "`base`"),
        (lambda: ce(base="e"), TypeError, "`base` must be a Python number, got str"),
        (lambda: ce(base=True), TypeError, "`base` must be a Python number, got bool"),
        (lambda: ce(base=jnp.array(2.0)), TypeError, "`base` must be a Python number"),
        (lambda: ce(label_smoothing=1.5), ValueError, r"`label_smoothing` must be in \[0, 1\.0\], got 1\.5"),
        (lambda: ce(label_smoothing=-0.1), ValueError, "`label_smoothing`"),
        (lambda: ce(label_smoothing=math.nan), ValueError, "`label_smoothing`"),
        (lambda: ce(label_smoothing=jnp.zeros(3)), ValueError, "`label_smoothing` must be a scalar"),
        (lambda: ce(label_smoothing="x"), TypeError, "`label_smoothing` must be a number, got str"),
        (lambda: ce(z_loss=-1.0), ValueError, "`z_loss` must be finite and at least 0, got -1"),
        (lambda: ce(z_loss=math.inf), ValueError, "`z_loss`"),
        (lambda: ce(z_loss=None), TypeError, "`z_loss` must be a number"),
        (lambda: ce(z_loss=10**400), ValueError, "`z_loss` must be finite"),
        (lambda: ce(np.zeros((3, 5), ">f4")), TypeError, "`logits` must be an array that JAX can hold, got >f4"),
        (lambda: ce(reduction="avg"), ValueError, "`reduction` must be one of 'mean', 'sum', 'none', got 'avg'"),
        (lambda: ce(reduction=None), ValueError, "`reduction` must be one of"),
        (lambda: softjax.softmax(jnp.arange(3)), TypeError, "`logits` must be a real floating array, got int32"),
        (lambda: softjax.softmax(X, axis=5), ValueError, "`axis`"),
        (lambda: softjax.log_softmax(X, base=1), ValueError, "`base`"),
        (lambda: softjax.statistics(X, jnp.zeros(3)), ValueError, "Floating `labels`"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()


def test_a_scalar_array_is_checked_like_a_python_number():
    with pytest.raises(ValueError, match="`label_smoothing`"):
        ce(label_smoothing=jnp.array(2.0))
    assert ce(label_smoothing=jnp.array(0.0), z_loss=np.float32(0)) == ce()


def test_options_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        softjax.cross_entropy(X, Y, 10.0)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_numpy_arrays_are_accepted(kind):
    value = ce(
        kind(np.zeros((3, 5))), kind(np.zeros(3, np.int64)), weights=kind(np.ones(3)), where=kind(np.ones(5, bool))
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


def test_the_error_names_the_axis_that_fits_the_ids():
    images, ids = jnp.zeros((2, 3, 5, 6)), jnp.zeros((2, 5, 6), int)
    with pytest.raises(ValueError, match="If the classes are axis 1 of `logits`, say axis=1"):
        ce(images, ids)
    assert np.isfinite(ce(images, ids, axis=1))


@pytest.mark.parametrize("name", ["logits", "labels", "where", "weights"])
def test_masked_arrays_are_refused_by_name(name):
    arrays = {
        "logits": np.ones((2, 3)),
        "labels": np.zeros(2, int),
        "where": np.ones((2, 3), bool),
        "weights": np.ones(2),
    }
    arrays[name] = np.ma.masked_array(arrays[name])
    with pytest.raises(TypeError, match=f"`{name}` must not be a NumPy masked array"):
        ce(**arrays)


def test_a_boolean_is_not_an_integer():
    with pytest.raises(TypeError, match="`axis` must be an integer, got bool: True"):
        softjax.softmax(X, axis=True)
    with pytest.raises(TypeError, match="`block_size` must be an integer, got bool: True"):
        softjax.linear_cross_entropy(X, jnp.ones((X.shape[1], 3)), Y, block_size=True)
    with pytest.raises(TypeError, match="`num_classes` must be an integer, got bool"):
        softjax.validate_labels(Y, np.True_)


@pytest.mark.parametrize("classes", [2**31, 2**32 + 1])
def test_more_classes_than_int32_holds_are_refused(classes):
    logits, ids = jax.ShapeDtypeStruct((2, classes), jnp.bfloat16), jax.ShapeDtypeStruct((2,), jnp.int32)
    for labels in (ids, logits):
        with pytest.raises(ValueError, match="at most 2³¹ − 1"):
            jax.eval_shape(softjax.cross_entropy, logits, labels)
    hidden, kernel = jax.ShapeDtypeStruct((2, 4), jnp.bfloat16), jax.ShapeDtypeStruct((4, classes), jnp.bfloat16)
    with pytest.raises(ValueError, match="at most 2³¹ − 1"):
        jax.eval_shape(softjax.linear_cross_entropy, hidden, kernel, ids)
    most = jax.ShapeDtypeStruct((2, 2**31 - 1), jnp.bfloat16)
    assert jax.eval_shape(softjax.statistics, most, ids).entropy.shape == (2,)
    assert jax.eval_shape(softjax.softmax, logits).shape == (2, classes)
