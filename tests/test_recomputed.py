"""The statistics of a last layer, whose backward pass computes the logits again, against those of dense logits."""

from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
from linear_law import RTOL

import softjax


def test_each_statistic_and_its_vjp_alone():
    hidden, kernel, bias = cases.layer(9, spread=3.0)
    labels = cases.class_ids(9)

    def linear(block_size, h, k, b):
        return softjax.linear_statistics(h, k, labels, bias=b, logit_softcap=5.0, block_size=block_size)

    def dense(h, k, b):
        return softjax.statistics(5 * jnp.tanh((h @ k + b[None]) / 5), labels)

    def statistics_and_vjps(function):
        """The floating statistics, and the VJP of each alone."""

        @jax.jit
        def both(*layer):
            values, pull = jax.vjp(lambda *layer: list(cases.floating(function(*layer)).values()), *layer)
            count = len(values)
            cotangents = jnp.eye(count)[:, :, None] * cases.cotangent()[None, None]
            return values, [pull(list(cotangent)) for cotangent in cotangents]

        return both(hidden, kernel, bias)

    expected, gradients = statistics_and_vjps(dense)
    for block_size in (None, 4):
        values, found = statistics_and_vjps(partial(linear, block_size))
        for found_value, wanted in zip(values, expected, strict=True):
            np.testing.assert_allclose(found_value, wanted, rtol=RTOL, atol=1e-6)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_statistic_of_a_layer():
    """Also the integer statistics."""
    hidden, kernel, bias = cases.layer(9, spread=3.0)
    labels = cases.class_ids(9)
    for block_size in (None, 4):
        statistics = softjax.linear_statistics(hidden, kernel, labels, bias=bias, block_size=block_size)
        dense = softjax.statistics(hidden @ kernel + bias[None], labels)
        for name, values in statistics._asdict().items():
            np.testing.assert_allclose(values, getattr(dense, name), rtol=RTOL, atol=1e-5, err_msg=name)
