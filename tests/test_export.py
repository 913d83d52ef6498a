"""`jax.export` with a symbolic number of samples: one program for every size."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import slow
from jax import export

import softjax

F, C = 5, 9
K, B = jax.random.normal(jax.random.key(0), (F, C)), jnp.linspace(-1, 1, C)
EXIST = jnp.arange(C) != 4


def batch(*samples):
    h, y = jax.random.split(jax.random.key(samples[0]))
    return jax.random.normal(h, (*samples, F)), jax.random.randint(y, samples, 0, 4)


def mean(h, y, **options):
    return softjax.linear_cross_entropy(h, K, y, bias=B, where=EXIST, label_smoothing=0.1, **options)


def weighted(h, y, **options):
    return softjax.linear_cross_entropy(h, K, y, weights=y != 3, reduction="sum", **options)


def none(h, y, **options):
    return jnp.sum(softjax.linear_cross_entropy(h, K, y, reduction="none", **options) ** 2)


def statistics(h, y, **options):
    return jnp.sum(softjax.linear_statistics(h, K, y, where=EXIST, **options).entropy)


def loss(h, y, **options):
    return softjax.linear_loss(lambda s, a: a * s.cross_entropy, h, K, y, jnp.sin(h[..., 0]), **options)


def divergence(h, y, **options):
    return softjax.linear_divergence(h, K, jnp.sin(h), K + 1, where=EXIST, temperature=2.0, **options)


def logits(h, y):
    loss = softjax.cross_entropy(h @ K + B[None], y, weights=y != 3) + softjax.divergence(h @ K, jnp.sin(h) @ K)
    return loss + jnp.sum(softjax.softmax(h @ K) ** 2)


def check(function, spec, sizes):
    dims = export.symbolic_shape(spec)
    h = jax.ShapeDtypeStruct((*dims, F), jnp.float32)
    exported = export.export(jax.jit(jax.value_and_grad(function)))(h, jax.ShapeDtypeStruct(dims, jnp.int32))
    for samples in sizes:
        value, gradient = exported.call(*batch(*samples))
        expected, dx = jax.jit(jax.value_and_grad(function))(*batch(*samples))
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "block_size"),
    [
        (weighted, 4),
        *slow(
            (weighted, None),
            (divergence, None),
            (divergence, 4),
            *itertools.product([mean, none, statistics, loss], [4, None]),
        ),
    ],
)
def test_a_layer_with_a_symbolic_batch(function, block_size):
    sizes = [(1,), (4,), (37,)] if block_size else [(37,), (300,)]
    check(lambda h, y: function(h, y, block_size=block_size), "b", sizes)


def test_a_symbolic_batch_and_symbolic_positions():
    check(lambda h, y: mean(h, y, block_size=4), "b, s", [(1, 1), (3, 5)])


def test_logits_with_a_symbolic_batch():
    check(logits, "b", [(1,), (37,)])


def test_symbolic_classes_or_features_are_refused_by_name():
    f, c = export.symbolic_shape("f, c")
    for shape in ((F, c), (f, C)):
        h, k = jax.ShapeDtypeStruct((3, shape[0]), jnp.float32), jax.ShapeDtypeStruct(shape, jnp.float32)
        with pytest.raises(ValueError, match="`kernel` must have a known shape"):
            export.export(jax.jit(softjax.linear_cross_entropy))(h, k, jax.ShapeDtypeStruct((3,), jnp.int32))
