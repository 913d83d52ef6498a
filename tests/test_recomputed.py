"""Row values of a linear layer, whose backward pass computes the logits again, against those of the logits."""

from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
from linear_law import RTOL

import softjax


def test_the_statistics():
    hidden, kernel, bias = cases.layer(9, spread=3.0)
    labels = cases.class_ids(9)

    def ours(block_size, h, k, b):
        return softjax.linear_statistics(h, k, labels, bias=b, logit_softcap=5.0, block_size=block_size)

    def dense(h, k, b):
        return softjax.statistics(5 * jnp.tanh((h @ k + b[None]) / 5), labels)

    def each_alone(function):
        """The statistics that have a derivative, and the gradients of each."""

        @jax.jit
        def both(*layer):
            values, pull = jax.vjp(lambda *layer: list(cases.real(function(*layer)).values()), *layer)
            count = len(values)
            cotangents = jnp.eye(count)[:, :, None] * cases.cotangent()[None, None]
            return values, [pull(list(cotangent)) for cotangent in cotangents]

        return both(hidden, kernel, bias)

    expected, gradients = each_alone(dense)
    for block_size in (None, 4):
        values, found = each_alone(partial(ours, block_size))
        for value, theirs in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, theirs, rtol=RTOL, atol=1e-6)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_number_of_a_layer():
    """The statistics of the layer are those of its logits, also the integer ones."""
    hidden, kernel, bias = cases.layer(9, spread=3.0)
    labels = cases.class_ids(9)
    for block_size in (None, 4):
        ours = softjax.linear_statistics(hidden, kernel, labels, bias=bias, block_size=block_size)
        dense = softjax.statistics(hidden @ kernel + bias[None], labels)
        for name, number in ours._asdict().items():
            np.testing.assert_allclose(number, getattr(dense, name), rtol=RTOL, atol=1e-5, err_msg=name)
