"""The losses of `softjax.losses` with sharded classes: margin softmax of a last layer, and each loss of logits.

A face recogniser with a million classes shards them like this. Features and class vectors have length 1. Labels are
global class ids, and no device sees the logits of another.
"""

import cases
import jax
import jax.numpy as jnp
import mesh_setups
import numpy as np
import pytest
from covering import covering
from jax.sharding import PartitionSpec as P
from mesh_setups import CLASSES, LOGITS, NAMES, ROWS, SAMPLES

import softjax
from softjax import losses

SCALE, MARGIN = 16.0, 0.5
MARGINS = {"additive": losses.additive_margin, "angular": losses.angular_margin}


def unit(array, axis):
    return array / jnp.linalg.norm(array, axis=axis, keepdims=True)


def faces():
    """Embeddings, class vectors as columns, and labels. A sample with the label −1 is ignored."""
    hidden, kernel, _ = cases.layer(CLASSES, samples=SAMPLES)
    return hidden, kernel, cases.class_ids(CLASSES, SAMPLES).at[3].set(-1)


def unfused(kind, hidden, kernel, y):
    """The sum of the losses on one device, with the margin subtracted from the materialised logits."""
    logits = SCALE * unit(hidden, -1) @ unit(kernel, 0)
    rows = jnp.arange(SAMPLES)
    cos = logits[rows, y] / SCALE
    angular = jnp.cos(jnp.minimum(jnp.arccos(cos) + MARGIN, jnp.pi))
    lowered = logits.at[rows, y].set(SCALE * (cos - MARGIN if kind == "additive" else angular))
    return jnp.sum(jnp.where(y < 0, 0, -jax.nn.log_softmax(lowered)[rows, y]))


@pytest.mark.parametrize(("setup", "kind"), covering(["shard_map", *mesh_setups.GLOBAL], MARGINS))
def test_margin_softmax_with_sharded_classes(setup, kind):
    hidden, kernel, y = faces()
    specs = [P("data"), P(None, "classes"), ROWS]

    def loss(hidden, kernel, y):
        def margin(s):
            return MARGINS[kind](s, MARGIN, SCALE)

        return softjax.linear_loss(margin, SCALE * unit(hidden, -1), unit(kernel, 0), y, weights=y >= 0, **NAMES)

    f = mesh_setups.shard_function(setup, (2, 4), loss, specs, P())
    expected = jax.jit(jax.value_and_grad(lambda *a: unfused(kind, *a), (0, 1)))(hidden, kernel, y)
    with mesh_setups.mesh_context(setup, (2, 4)):
        placed = mesh_setups.placed(setup, (2, 4), (hidden, kernel, y), specs)
        value, gradients = jax.jit(jax.value_and_grad(f, (0, 1)))(*placed)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for gradient, wanted in zip(gradients, expected[1], strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)


ALL_LOSSES = [
    losses.focal,
    losses.poly,
    losses.generalized,
    *(lambda s, f=f: f(s, MARGIN, SCALE) for f in MARGINS.values()),
]


@pytest.mark.parametrize("setup", mesh_setups.TWO_QUICK)
def test_every_loss_of_sharded_logits(setup):
    """The sum of all losses and its VJP are those of one device."""
    x, y = SCALE * jnp.tanh(cases.logits(CLASSES, 1.0, SAMPLES)), cases.class_ids(CLASSES, SAMPLES)
    g = cases.cotangent(SAMPLES)

    def loss(x, y, **names):
        s = softjax.statistics(x, y, **names)
        return sum(f(s) for f in ALL_LOSSES)

    def both(f, x, y, g):
        value, pull = jax.vjp(lambda x: f(x, y), x)
        return value, pull(g)[0]

    expected = jax.jit(lambda *a: both(loss, *a))(x, y, g)
    f = mesh_setups.shard_function(setup, (2, 4), lambda x, y: loss(x, y, axis_name="classes"), [LOGITS, ROWS], ROWS)
    with mesh_setups.mesh_context(setup, (2, 4)):
        placed = mesh_setups.placed(setup, (2, 4), (x, y, g), [LOGITS, ROWS, ROWS])
        actual = jax.tree.map(np.asarray, jax.jit(lambda *a: both(f, *a))(*placed))
    np.testing.assert_allclose(actual[0], expected[0], rtol=2e-5)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4, atol=1e-4)
