"""The README's examples run, and its table of other libraries' calls says what is so."""

import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import readme

import softjax

X, Y, P, W = cases.logits(5), cases.class_ids(5), cases.distribution(5), cases.weights()


def test_python_blocks_run():
    assert readme.BLOCKS
    for block in readme.BLOCKS:
        exec(block, {})


def nats(*args, **options):
    return softjax.cross_entropy(*args, base=math.e, **options)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_coming_from_optax():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        where = jnp.array([True, True, True, True, False])
        y = jnp.minimum(Y, 3)
        integer = optax.softmax_cross_entropy_with_integer_labels
        close(nats(X, Y), integer(X, Y).mean())
        close(nats(X, P, reduction="none"), optax.softmax_cross_entropy(X, P))
        smooth = optax.softmax_cross_entropy(X, optax.smooth_labels(jax.nn.one_hot(Y, 5), 0.1))
        close(nats(X, Y, label_smoothing=0.1, reduction="none"), smooth)
        close(nats(X, y, where=where, reduction="none"), integer(X, y, where=where[None, :]))


def test_coming_from_keras():
    # Its default reduction divides by the number of samples, and sample_weight does not change that.
    losses = np.asarray(nats(X, Y, reduction="none"))
    close(nats(X, Y, weights=W, reduction="sum") / Y.size, (losses * np.asarray(W)).sum() / len(losses))
    one_hot = jax.nn.one_hot(Y, 5)
    close(softjax.distribution_cross_entropy(one_hot, softjax.softmax(X), base=math.e).mean(), losses.mean())


def test_coming_from_torch():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional.cross_entropy
    x, y, p = torch.tensor(np.asarray(X)), torch.tensor(np.asarray(Y)).long(), torch.tensor(np.asarray(P))
    ignored = Y.at[::3].set(-100)
    close(nats(X, Y), f(x, y))
    close(nats(X, ignored, weights=ignored != -100), f(x, torch.tensor(np.asarray(ignored)).long()))
    close(nats(X, Y, weights=jnp.arange(1.0, 6.0)[Y]), f(x, y, weight=torch.arange(1.0, 6.0)))
    weights = jnp.where(ignored != -100, jnp.arange(1.0, 6.0)[ignored], 0)
    close(
        nats(X, ignored, weights=weights), f(x, torch.tensor(np.asarray(ignored)).long(), weight=torch.arange(1.0, 6.0))
    )
    close(nats(X, Y, label_smoothing=0.1, reduction="none"), f(x, y, label_smoothing=0.1, reduction="none"))
    close(nats(X, P), f(x, p))
    image, ids = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32), np.zeros((2, 3, 4), np.int32)
    close(nats(image, ids, axis=1), f(torch.tensor(image), torch.tensor(ids).long()))
