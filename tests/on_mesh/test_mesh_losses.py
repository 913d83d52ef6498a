"""Margin softmax with its classes split over a mesh, as a classifier of a million faces has them, and the other losses.

Features and class vectors have length 1. A device holds some of the classes, whole samples or some of them; labels are
global ids, and no device sees the logits of another.
"""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from covering import covering
from jax.sharding import PartitionSpec as P
from worlds import CLASSES, LOGITS, NAMES, ROWS, SAMPLES

import softjax
from softjax import losses

SCALE, MARGIN = 16.0, 0.5
MARGINS = {"additive": losses.additive_margin, "angular": losses.angular_margin}


def unit(array, axis):
    return array / jnp.linalg.norm(array, axis=axis, keepdims=True)


def faces():
    """Embeddings, class vectors as columns, and who each is; a label of −1 weighs nothing."""
    hidden, kernel, _ = cases.layer(CLASSES, samples=SAMPLES)
    return hidden, kernel, cases.class_ids(CLASSES, SAMPLES).at[3].set(-1)


def by_hand(kind, hidden, kernel, y):
    """The sum of the losses, its logits and its margin written out for one device."""
    logits = SCALE * unit(hidden, -1) @ unit(kernel, 0)
    rows = jnp.arange(SAMPLES)
    cos = logits[rows, y] / SCALE
    angular = jnp.cos(jnp.minimum(jnp.arccos(cos) + MARGIN, jnp.pi))
    lowered = logits.at[rows, y].set(SCALE * (cos - MARGIN if kind == "additive" else angular))
    return jnp.sum(jnp.where(y < 0, 0, -jax.nn.log_softmax(lowered)[rows, y]))


@pytest.mark.parametrize(("world", "kind"), covering(["shard_map", *worlds.GLOBAL], MARGINS))
def test_margin_softmax_with_split_classes(world, kind):
    hidden, kernel, y = faces()
    specs = [P("data"), P(None, "classes"), ROWS]

    def loss(hidden, kernel, y):
        def margin(s):
            return MARGINS[kind](s, MARGIN, SCALE)

        return softjax.linear_loss(margin, SCALE * unit(hidden, -1), unit(kernel, 0), y, weights=y >= 0, **NAMES)

    f = worlds.split(world, (2, 4), loss, specs, P())
    expected = jax.jit(jax.value_and_grad(lambda *a: by_hand(kind, *a), (0, 1)))(hidden, kernel, y)
    with worlds.context(world, (2, 4)):
        placed = worlds.placed(world, (2, 4), (hidden, kernel, y), specs)
        value, gradients = jax.jit(jax.value_and_grad(f, (0, 1)))(*placed)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for ours, theirs in zip(gradients, expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


EVERY = [losses.focal, losses.poly, losses.generalized, *(lambda s, f=f: f(s, MARGIN, SCALE) for f in MARGINS.values())]


@pytest.mark.parametrize("world", worlds.FEW)
def test_every_loss_of_split_logits(world):
    """Each is that of logits on one device, and so is its gradient."""
    x, y = SCALE * jnp.tanh(cases.logits(CLASSES, 1.0, SAMPLES)), cases.class_ids(CLASSES, SAMPLES)
    g = cases.cotangent(SAMPLES)

    def loss(x, y, **names):
        s = softjax.statistics(x, y, **names)
        return sum(f(s) for f in EVERY)

    def both(f, x, y, g):
        value, pull = jax.vjp(lambda x: f(x, y), x)
        return value, pull(g)[0]

    expected = jax.jit(lambda *a: both(loss, *a))(x, y, g)
    f = worlds.split(world, (2, 4), lambda x, y: loss(x, y, axis_name="classes"), [LOGITS, ROWS], ROWS)
    with worlds.context(world, (2, 4)):
        placed = worlds.placed(world, (2, 4), (x, y, g), [LOGITS, ROWS, ROWS])
        actual = jax.tree.map(np.asarray, jax.jit(lambda *a: both(f, *a))(*placed))
    np.testing.assert_allclose(actual[0], expected[0], rtol=2e-5)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4, atol=1e-4)
