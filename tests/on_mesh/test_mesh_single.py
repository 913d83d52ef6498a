"""Dimensions of length 1 that are sharded over an axis of one device, and empty ones, against unsharded arrays.

Under Explicit axes JAX refuses to mix two dimensions of length 1 if one is sharded, even over a single device.
"""

import cases
import jax
import jax.numpy as jnp
import mesh_setups
import numpy as np
import pytest
from covering import slow
from jax.sharding import PartitionSpec as P
from mesh_setups import LOGITS, NAMES, ROWS

import softjax

KERNEL = P(None, "classes")


def losses(x, h, k, p, m, w, one, y, *, reduction="mean", **names):
    """Each loss of logits, with weights, a mask or a distribution, and the losses of a linear layer."""
    few = softjax.SparseLabels(jnp.stack([y, y], -1), jnp.stack([w, 2 * w], -1))
    options = {"reduction": reduction, **names}
    return [
        softjax.cross_entropy(x, y, weights=w, **options),
        softjax.cross_entropy(x, y, weights=one, where=m, label_smoothing=0.1, z_loss=0.1, **options),
        softjax.cross_entropy(x, p, weights=w, **options),
        softjax.cross_entropy(x, few, weights=one, **options),
        softjax.divergence(x, p, kind="jensen_shannon", temperature=2.0, weights=w, **options),
        softjax.linear_cross_entropy(h, k, y, weights=w, block_size=2, **options),
        softjax.linear_divergence(h, k, 2 * h, k, weights=one, **options),
        softjax.linear_loss(lambda s, a: a * s.entropy + s.cross_entropy, h, k, y, w, weights=one, **options),
    ]


def queries(x, h, k, p, m, w, one, y, axis_name=None):
    """Row values of logits, and the softmax, whose results have a class axis."""
    ids = jnp.stack([y, y], -1)
    return [
        softjax.statistics(x, y, where=m, axis_name=axis_name),
        softjax.statistics(x, p, axis_name=axis_name),
        softjax.log_probabilities(x, ids, axis_name=axis_name),
        softjax.softmax(x, where=m, axis_name=axis_name),
        softjax.log_softmax(x, axis_name=axis_name),
    ]


def arrays_and_specs(samples, classes):
    """Of the losses above. The mask has one row, and `one` a single weight, both to be broadcast."""
    hidden, kernel, _ = cases.layer(classes, features=4, samples=samples)
    x, p = cases.logits(classes, 1.0, samples), cases.distribution(classes, samples)
    weights, ids = jnp.linspace(0.5, 1.5, samples), jnp.arange(samples) % classes
    arrays = [x, hidden, kernel, p, jnp.arange(classes)[None] >= 0, weights, jnp.full(1, 0.5), ids]
    return arrays, [LOGITS, P("data", None), KERNEL, LOGITS, P(None, "classes"), ROWS, P(), ROWS]


def value_and_gradients(function, arrays):
    """All values, and the gradients of their weighted sum by each floating array, of one program."""

    def weighted_sum(floating):
        values = function(*floating, *arrays[4:])
        leaves = [a for a in jax.tree.leaves(values) if jnp.issubdtype(a.dtype, jnp.floating)]
        return sum(i * jnp.sum(jnp.sin(a)) for i, a in enumerate(leaves, 1)), values

    (_, values), gradients = jax.jit(jax.value_and_grad(weighted_sum, has_aux=True))(arrays[:4])
    return values, gradients


def check(shape, samples, classes, function, setup="Explicit", **names):
    arrays, specs = arrays_and_specs(samples, classes)
    if shape[0] == 1:
        specs[4], specs[6] = LOGITS, ROWS  # a dimension to be broadcast is sharded, too
    expected = value_and_gradients(function, arrays)
    with mesh_setups.mesh_context(setup, shape):
        placed = mesh_setups.placed(setup, shape, arrays, specs)
        found = value_and_gradients(lambda *a: function(*a, **names), placed)
    for a, gradient in zip(placed, found[1], strict=False):
        assert setup == "Auto" or jax.typeof(gradient).sharding.spec == jax.typeof(a).sharding.spec
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "samples", "classes"), [((8, 1), 8, 1), *slow(((1, 1), 1, 1), ((1, 8), 1, 8), ((1, 2), 3, 8))]
)
def test_axes_of_one_device_without_names(shape, samples, classes):
    check(shape, samples, classes, lambda *a: (losses(*a, reduction="none"), queries(*a)))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "samples", "classes"), [((8, 1), 8, 1), ((1, 1), 1, 1), ((1, 8), 1, 8)])
def test_reductions_on_axes_of_one_device(shape, samples, classes):
    check(shape, samples, classes, lambda *a: (losses(*a), losses(*a, reduction="sum")))


@pytest.mark.parametrize("setup", [mesh_setups.GLOBAL[1], *slow(mesh_setups.GLOBAL[0])])
def test_one_class_on_a_named_axis_of_one_device(setup):
    check((1, 1), 1, 1, lambda *a, **names: queries(*a, **names), setup, axis_name="classes")
    if setup == "Auto":
        check((2, 1), 2, 1, lambda *a, **names: losses(*a, **names), setup, **NAMES)


@pytest.mark.parametrize("setup", [mesh_setups.GLOBAL[0], *slow(mesh_setups.GLOBAL[1])])
def test_no_samples(setup):
    """Value 0 and empty gradients; the gradient of the kernel is 0."""
    check((2, 2), 0, 4, lambda *a, **names: losses(*a, **names), setup, **NAMES)


def test_labels_that_are_not_sharded_meet_sharded_logits():
    """Also a distribution, a mask and weights: they take the sharding of the logits, their gradients keep their own."""
    arrays, _ = arrays_and_specs(4, 8)
    sharded = [LOGITS, P("data", None), KERNEL, P(), P(), P(), P(), P()]
    function = lambda *a: (losses(*a, reduction="none"), queries(*a))  # noqa: E731
    expected = value_and_gradients(function, arrays)
    with mesh_setups.mesh_context("Explicit", (2, 4)):
        placed = mesh_setups.placed("Explicit", (2, 4), arrays, sharded)
        found = value_and_gradients(function, placed)
    assert jax.typeof(found[1][3]).sharding.spec == P(None, None)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-6)


def test_a_named_axis_of_one_device_beside_an_axis_without_a_name():
    """Under Auto axes. XLA cannot compile a collective over the axis of one device there."""

    def function(x, h, k, p, m, w, one, y, **names):
        loss = softjax.linear_cross_entropy(h, k, y, weights=w, **names)
        return loss, softjax.cross_entropy(x, p, weights=w, **names), softjax.statistics(x, y, **names)

    def with_row_args(x, h, k, p, m, w, one, y, **names):
        return softjax.linear_loss(lambda s, a: a * s.cross_entropy, h, k, y, w, block_size=1, **names)

    check((2, 1), 4, 8, function, "Auto", axis_name="classes")
    check((2, 1), 4, 8, with_row_args, "Auto", **NAMES)


def test_a_mask_of_length_1_under_vmap():
    """It holds for all classes of an example, and broadcasts before the classes of all examples are gathered."""
    x, where = cases.logits(6, 1.0, 4), jnp.array([True, False])[:, None]
    shards = x.reshape(4, 2, 3)
    masked = lambda x, m: softjax.softmax(x, where=m, axis_name="shards")  # noqa: E731
    found = jax.vmap(masked, in_axes=(1, 0), out_axes=1, axis_name="shards")(shards, where)
    np.testing.assert_allclose(found[:, 0], softjax.softmax(x[:, :3]), rtol=1e-6)
    assert (found[:, 1] == 0).all()
