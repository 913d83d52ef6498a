"""Options: Python numbers, and scalars that may be traced."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import softjax
from softjax._args import options

X, Y = jnp.zeros((3, 5)), jnp.zeros(3, jnp.int32)


def ce(logits=X, labels=Y, **options):
    return softjax.cross_entropy(logits, labels, **options)


@pytest.mark.parametrize("base", [2, np.float32(2), np.int64(2)])
def test_any_python_number_is_a_base(base):
    np.testing.assert_allclose(ce(base=base), math.log2(5), rtol=1e-6)


def test_smoothing_and_z_loss_may_be_traced():
    def loss(smoothing, z_loss):
        return ce(X + jnp.arange(5.0)[None], label_smoothing=smoothing, z_loss=z_loss)

    for smoothing in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(jax.jit(loss)(smoothing, 0.1), loss(smoothing, 0.1), rtol=1e-6)
    slope = jax.grad(loss)(0.3, 0.1)
    np.testing.assert_allclose(slope, (loss(0.4, 0.1) - loss(0.2, 0.1)) / 0.2, rtol=1e-4)


def test_a_traced_coefficient_may_be_0():
    # what a static 0 leaves out, a traced one must not bring in: 0 · inf
    x, y = jnp.array([[1.0, -jnp.inf, 3.0], [1.0, jnp.inf, 3.0]]), jnp.array([0, 0])

    def loss(x, smoothing, z_loss):
        return softjax.cross_entropy(x, y, label_smoothing=smoothing, z_loss=z_loss, reduction="none")

    traced = jax.jit(loss)(x, 0.0, 0.0)
    np.testing.assert_array_equal(traced, loss(x, 0.0, 0.0))
    gradient = jax.jit(jax.grad(lambda *a: loss(*a)[0]))(x, 0.0, 0.0)
    np.testing.assert_allclose(gradient[0], jax.grad(lambda *a: loss(*a)[0])(x, 0.0, 0.0)[0], atol=1e-7)


@pytest.mark.parametrize("fused", [False, True])
def test_the_derivative_by_smoothing_at_0_and_1(fused):
    """∂/∂ε at 0 and 1, ∂/∂c at 0: what the coefficient multiplies, though it multiplies it by 0."""
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
def test_a_number_of_any_type_is_accepted(value):
    assert options.scalar("x", value, "at most 1", lambda number: number <= 1) == 0.5
    assert options.coefficient("x", value) == 0.5
    assert options.coefficient("x", 0 * value) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, 2.0, jnp.float32(2)])
def test_a_number_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="`x` must be at most 1, got"):
        options.scalar("x", value, "at most 1", lambda number: number <= 1)


@pytest.mark.parametrize("value", [True, "1", None, [1.0], jnp.int32(1), 1j])
def test_anything_but_a_number_is_refused(value):
    with pytest.raises(TypeError, match="`x` must be a"):
        options.scalar("x", value, "finite", lambda _: True)
