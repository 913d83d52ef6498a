"""Checks of options, which are Python values or scalars that may be traced, and schedules of traced coefficients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax._args import options

LOGITS, LABELS = jnp.zeros((3, 5)), jnp.zeros(3, jnp.int32)


def ce(logits=LOGITS, labels=LABELS, **options):
    """The cross-entropy of valid arguments, except for those that a test replaces."""
    return softjax.cross_entropy(logits, labels, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
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
        (lambda: ce(reduction="avg"), ValueError, "`reduction` must be one of 'mean', 'sum', 'none', got 'avg'"),
        (lambda: ce(reduction=None), ValueError, "`reduction` must be one of"),
        (lambda: softjax.log_softmax(LOGITS, base=1), ValueError, "`base`"),
    ],
)
def test_wrong_options_are_refused_eagerly_and_under_jit(call, error, message):
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()


def test_options_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        softjax.cross_entropy(LOGITS, LABELS, 10.0)


def test_a_concrete_scalar_array_is_checked_like_a_number():
    with pytest.raises(ValueError, match="`label_smoothing`"):
        ce(label_smoothing=jnp.array(2.0))
    assert ce(label_smoothing=jnp.array(0.0), z_loss=np.float32(0)) == ce()


@pytest.mark.parametrize("base", [2, np.float32(2), np.int64(2)])
def test_python_and_numpy_numbers_are_accepted_as_base(base):
    np.testing.assert_allclose(ce(base=base), math.log2(5), rtol=1e-6)


def test_traced_coefficients_equal_static_ones():
    def loss(smoothing, z_loss):
        return ce(LOGITS + jnp.arange(5.0)[None], label_smoothing=smoothing, z_loss=z_loss)

    for smoothing in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(jax.jit(loss)(smoothing, 0.1), loss(smoothing, 0.1), rtol=1e-6)
    derivative = jax.grad(loss)(0.3, 0.1)
    np.testing.assert_allclose(derivative, (loss(0.4, 0.1) - loss(0.2, 0.1)) / 0.2, rtol=1e-4)


def test_a_traced_coefficient_of_0_equals_a_static_0():
    """A static 0 leaves its term out. A traced 0 keeps the term, which must not add 0 · inf = NaN."""
    x, y = jnp.array([[1.0, -jnp.inf, 3.0], [1.0, jnp.inf, 3.0]]), jnp.array([0, 0])

    def loss(x, smoothing, z_loss):
        return softjax.cross_entropy(x, y, label_smoothing=smoothing, z_loss=z_loss, reduction="none")

    traced = jax.jit(loss)(x, 0.0, 0.0)
    np.testing.assert_array_equal(traced, loss(x, 0.0, 0.0))
    gradient = jax.jit(jax.grad(lambda *a: loss(*a)[0]))(x, 0.0, 0.0)
    np.testing.assert_allclose(gradient[0], jax.grad(lambda *a: loss(*a)[0])(x, 0.0, 0.0)[0], atol=1e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_derivatives_by_the_coefficients_at_the_ends_of_their_ranges(fused):
    """∂/∂ε at ε = 0 and 1, and ∂/∂c at c = 0, are right although the coefficient multiplies a term by 0."""
    x, y = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([0])

    def loss(smoothing, z_loss):
        options = {"label_smoothing": smoothing, "z_loss": z_loss, "base": np.e}
        if fused:
            return softjax.linear_cross_entropy(x, jnp.eye(3), y, **options)
        return softjax.cross_entropy(x, y, **options)

    z = np.log(np.exp([1.0, 2.0, 4.0]).sum())
    hard, uniform = z - 1, z - 7 / 3
    for mode in (jax.grad, jax.jacfwd):
        for smoothing in (0.0, 0.3, 1.0):
            np.testing.assert_allclose(mode(loss, 0)(smoothing, 0.0), uniform - hard, rtol=1e-6)
            np.testing.assert_allclose(mode(loss, 1)(smoothing, 0.0), z**2, rtol=1e-6)  # 17.3876
    np.testing.assert_allclose(jax.grad(loss, 1)(0.0, 0.5), 17.3876, rtol=1e-5)


@pytest.mark.parametrize("value", [np.float32(0.5), np.asarray(0.5), jnp.float32(0.5), 0.5])
def test_numbers_and_scalar_arrays_are_accepted(value):
    assert options.scalar("x", value, "at most 1", lambda x: x <= 1) == 0.5
    assert options.coefficient("x", value) == 0.5
    assert options.coefficient("x", 0 * value) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, 2.0, jnp.float32(2)])
def test_a_number_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="`x` must be at most 1, got"):
        options.scalar("x", value, "at most 1", lambda x: x <= 1)


@pytest.mark.parametrize("value", [True, "1", None, [1.0], jnp.int32(1), 1j])
def test_a_value_that_is_no_real_number_is_refused(value):
    with pytest.raises(TypeError, match="`x` must be a"):
        options.scalar("x", value, "finite", lambda _: True)
