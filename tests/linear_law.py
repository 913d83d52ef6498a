"""The check of `linear_cross_entropy`: its loss and gradients equal those of the float64 oracle."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle

import softjax

RTOL = 1e-5


def check(reduction, hidden, kernel, bias, labels, block_size, rtol=RTOL, **options):
    """Compares value and gradients with the oracle. The cotangents of `reduction="none"` differ by row."""
    g = cases.cotangent(len(hidden)) if reduction == "none" else jnp.float32(0.7)

    def function(hidden, kernel, bias):
        return softjax.linear_cross_entropy(
            hidden, kernel, labels, bias=bias, reduction=reduction, block_size=block_size, **options
        )

    @jax.jit
    def both(*arrays):
        value, pull = jax.vjp(function, *arrays)
        return value, pull(g.astype(value.dtype))

    value, actual = both(hidden, kernel, bias)
    scale = np.broadcast_to(np.asarray(g, np.float64), len(hidden))
    if reduction == "mean":
        weights = options.get("weights", jnp.ones(len(hidden)))
        scale = scale / np.asarray(weights, np.float64).sum()
    loss, gradients = oracle.linear_cross_entropy(hidden, kernel, labels, bias=bias, cotangent=scale, **options)
    expected = loss if reduction == "none" else (loss * scale / float(g)).sum()
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol)
    for gradient, argument, exact in zip(actual, (hidden, kernel, bias), gradients, strict=True):
        assert gradient.dtype == argument.dtype
        np.testing.assert_allclose(np.asarray(gradient, np.float64), exact, rtol=rtol, atol=rtol * np.abs(exact).max())
    return value
