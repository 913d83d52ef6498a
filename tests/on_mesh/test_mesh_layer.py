"""The last layer sharded over samples and classes, in every world, against the float64 oracle."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import worlds
from covering import covering
from jax.sharding import PartitionSpec as P
from worlds import CLASSES, NAMES, ROWS, SAMPLES

import softjax

SPECS = [P("data", None), P(None, "classes"), P("classes"), ROWS, ROWS]


def example(dtype=jnp.float32, spread=3.0):
    arrays = cases.layer(CLASSES, samples=SAMPLES, spread=spread, dtype=dtype)
    return (*arrays, cases.class_ids(CLASSES, SAMPLES), cases.weights(SAMPLES))


def run(world, shape, loss, arrays, specs=SPECS, out=worlds.SAME, moving=(0, 1, 2), g=None):
    """The value of a loss and its gradients for the cotangent g, by one program."""
    f = worlds.split(world, shape, loss, specs, out)
    with worlds.context(world, shape):
        arrays = worlds.placed(world, shape, arrays, specs)
        if g is None:
            g = jnp.asarray(1.0) if out == worlds.SAME else cases.cotangent(SAMPLES)
        (g,) = worlds.placed(world, shape, [g], [out])

        @jax.jit
        def both(g, *arrays):
            def of(*moved):
                return f(*(dict(enumerate(arrays)) | dict(zip(moving, moved, strict=True))).values())

            value, pull = jax.vjp(of, *(arrays[i] for i in moving))
            return value, pull(g.astype(value.dtype))

        value, gradients = both(g, *arrays)
        return np.asarray(value), [np.asarray(d, np.float64) for d in gradients]


def close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1e-3, np.abs(b).max()))


def check(world, shape, arrays, clean=None, **options):
    reduction = options.get("reduction", "mean")

    def loss(h, k, b, y, w):
        return softjax.linear_cross_entropy(h, k, y, bias=b, weights=w, block_size=3, **NAMES, **options)

    actual = run(world, shape, loss, arrays, out=ROWS if reduction == "none" else P())
    h, k, b, y, w = clean or arrays
    over = np.asarray(w, np.float64).sum() if reduction == "mean" else 1.0
    g = np.asarray(cases.cotangent(SAMPLES), np.float64) if reduction == "none" else np.ones(SAMPLES)
    options.pop("reduction", None)
    rows, gradients = oracle.linear_cross_entropy(h, k, y, bias=b, weights=w, cotangent=g / over, **options)
    tolerance = 1e-5 if h.dtype == jnp.float32 else 3e-2
    close(actual, (rows if reduction == "none" else rows.sum() / over, list(gradients)), tolerance)


@pytest.mark.parametrize(("world", "shape"), worlds.MESHES)
def test_every_mesh(world, shape):
    check(world, shape, example())


@pytest.mark.parametrize(("world", "reduction"), covering(worlds.WORLDS, ["mean", "sum", "none"], quick=(1, 2, 3)))
def test_every_option(world, reduction):
    check(world, (2, 4), example(), reduction=reduction, label_smoothing=0.1, z_loss=0.01, logit_softcap=5.0, base=2.0)


@pytest.mark.parametrize("world", worlds.FEW)
def test_bfloat16(world):
    check(world, (2, 4), example(jnp.bfloat16))


@pytest.mark.parametrize("world", worlds.FEW)
def test_soft_labels_of_a_layer(world):
    h, k, b, _, w = example()
    p = cases.distribution(CLASSES, SAMPLES)
    specs = [*SPECS[:3], P("data", "classes"), ROWS]

    def loss(h, k, b, p, w):
        return softjax.linear_cross_entropy(h, k, p, bias=b, weights=w, block_size=3, label_smoothing=0.1, **NAMES)

    value, gradients = run(world, (2, 4), loss, (h, k, b, p, w), specs, moving=(0, 1, 2, 3))
    alone = jax.jit(
        jax.value_and_grad(
            lambda *a: softjax.linear_cross_entropy(a[0], a[1], a[3], bias=a[2], weights=w, label_smoothing=0.1),
            (0, 1, 2, 3),
        )
    )(h, k, b, p)
    close((value, gradients), (alone[0], list(alone[1])))


def policy_gradient(s, advantage):
    return -advantage * (s.label_logit - s.log_normalizer) - 0.1 * s.entropy + 0.01 * s.mean_logit**2


@pytest.mark.parametrize(("world", "route"), covering(worlds.WORLDS, ["loss", "statistics"], quick=(0, 3)))
def test_a_loss_of_the_statistics(world, route):
    """Gradients by the hidden states, kernel, bias, weights, row argument and an array that the loss closes over."""
    h, k, b, y, w = example()
    advantages, scale = cases.cotangent(SAMPLES), jnp.asarray(1.3)

    def loss(h, k, b, y, w, advantages, scale, **names):
        scale = 1.3 if world == "Explicit" else scale
        options = {"bias": b, "block_size": 3, **names}
        if route == "loss":
            return softjax.linear_loss(
                lambda s, a: scale * policy_gradient(s, a), h, k, y, advantages, weights=w, **options
            )
        rows = softjax.linear_statistics(h, k, y, **options)
        total = (w * scale * policy_gradient(rows, advantages)).sum()
        bound = "batch_axis_name" in names and world in worlds.BY_HAND
        return jax.lax.psum(total, "data") if bound else total

    arrays = (h, k, b, y, w, advantages, scale)
    # JAX does not let a `shard_map` close over what it has under Explicit axes
    moving = (0, 1, 2, 4, 5) if world == "Explicit" else (0, 1, 2, 4, 5, 6)
    expected = jax.jit(jax.value_and_grad(loss, moving))(*arrays)

    def named(*arrays):
        return loss(*arrays, **NAMES)

    value, gradients = run(world, (2, 4), named, arrays, [*SPECS, ROWS, P()], moving=moving)
    close((value, gradients), (expected[0], list(expected[1])), 2e-5)


@pytest.mark.parametrize("world", worlds.FEW)
def test_a_tied_embedding(world):
    h, k, _, y, w = example()
    embedding = jnp.asarray(k.T)

    def loss(h, embedding, y, w):
        return softjax.linear_cross_entropy(h, embedding.T, y, weights=w, block_size=3, **NAMES)

    specs = [SPECS[0], P("classes", None), ROWS, ROWS]
    value, gradients = run(world, (2, 4), loss, (h, embedding, y, w), specs, moving=(0, 1))
    alone = jax.jit(jax.value_and_grad(lambda h, e: softjax.linear_cross_entropy(h, e.T, y, weights=w), (0, 1)))(
        h, embedding
    )
    close((value, gradients), (alone[0], list(alone[1])))


@pytest.mark.parametrize("world", worlds.FEW)
def test_a_shard_of_samples_without_weight(world):
    h, k, b, y, w = example()
    w = w.at[:8].set(0)
    check(world, (2, 4), (h.at[:8].set(jnp.nan), k, b, y, w), (h, k, b, y, w))


@pytest.mark.parametrize(("world", "reduction"), covering(worlds.WORLDS, ["mean", "none"], quick=(1, 4)))
def test_forward_mode(world, reduction):
    h, k, b, y, w = example()

    def loss(h, k, b, y, w, **names):
        return softjax.linear_cross_entropy(h, k, y, bias=b, weights=w, block_size=3, reduction=reduction, **names)

    along = tuple(jnp.cos(a) for a in (h, k, b))
    expected = jax.jit(lambda *moved: jax.jvp(lambda *a: loss(*a, y, w), moved, along))(h, k, b)
    f = worlds.split(world, (2, 4), lambda *a: loss(*a, **NAMES), SPECS, ROWS if reduction == "none" else P())
    with worlds.context(world, (2, 4)):
        *moved, y, w = worlds.placed(world, (2, 4), (h, k, b, y, w), SPECS)
        along = worlds.placed(world, (2, 4), along, SPECS[:3])
        actual = jax.jit(lambda moved, along, y, w: jax.jvp(lambda *a: f(*a, y, w), moved, along))(
            tuple(moved), tuple(along), y, w
        )
    close(actual, expected, 1e-4)


@pytest.mark.parametrize("world", worlds.FEW)
def test_a_bias_of_minus_infinity_fills_up(world):
    """19 classes padded to 24 on four devices: one class of the last device exists."""
    h, k, b, y, w = example()
    exist, y = jnp.arange(CLASSES) < 19, y % 19

    def loss(h, k, b, y, w, **names):
        return softjax.linear_cross_entropy(h, k, y, bias=b, weights=w, block_size=3, **names)

    def named(*arrays):
        return loss(*arrays, **NAMES)

    value, (dh, dk, db) = run(world, (2, 4), named, (h, k, jnp.where(exist, b, -jnp.inf), y, w))
    expected = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(h, k[:, :19], b[:19], y, w)
    close((value, [dh, dk[:, :19], db[:19]]), (expected[0], list(expected[1])))
    assert not dk[:, 19:].any()
    assert not db[19:].any()
