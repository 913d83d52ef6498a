"""Reductions over the class axis and over mesh axes, on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import softjax
from softjax._mesh import axes
from softjax._mesh.axes import NO_CLASS, ClassAxis

X = jnp.array([[1.0, 3.0, 3.0], [2.0, -jnp.inf, 0.0]])


@pytest.mark.parametrize("axis", [-1, -2])
def test_reductions_over_the_class_axis(axis, route):
    classes, x = ClassAxis(axis), X if axis == -1 else X.T
    assert classes.num_classes(x) == 3
    np.testing.assert_array_equal(classes.squeeze(classes.max(x)), [3, 2])
    np.testing.assert_array_equal(classes.sum(jnp.where(x > -jnp.inf, x, 0)), [7, 2])
    np.testing.assert_array_equal(classes.sum(x > 0), [3, 1])
    np.testing.assert_array_equal(classes.squeeze(classes.any(x < 0)), [False, True])
    np.testing.assert_array_equal(classes.squeeze(classes.first_equal(x, classes.max(x))), [1, 0])
    ids = jnp.broadcast_to(classes.ids(x, classes.max(x)), x.shape)
    np.testing.assert_array_equal(ids if axis == -1 else ids.T, [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(classes.squeeze(classes.min(ids)), [0, 0])


def test_first_equal_skips_masked_classes():
    classes, exists = ClassAxis(-1), jnp.array([[True, False, True]])
    largest = classes.max(X)
    np.testing.assert_array_equal(classes.first_equal(X, largest, exists)[:, 0], [2, 0])
    np.testing.assert_array_equal(classes.first_equal(X, jnp.full((2, 1), jnp.nan))[:, 0], [-1, -1])
    np.testing.assert_array_equal(classes.first_equal(X, largest, None, jnp.int32(10))[:, 0], [11, 10])
    assert jnp.iinfo(jnp.int32).max == NO_CLASS


def test_reductions_over_no_classes():
    empty = jnp.zeros((2, 0))
    assert (ClassAxis(-1).max(empty) == -jnp.inf).all()
    assert not ClassAxis(-1).sum_keepdims(empty).any()


def test_existing_logits_are_wide_and_minus_infinity_where_masked():
    x = jnp.array([1.0, 2.0], jnp.bfloat16)
    assert axes.existing_logits(x, None).dtype == jnp.float32
    np.testing.assert_array_equal(axes.existing_logits(x, jnp.array([False, True])), [-jnp.inf, 2])


def test_an_axis_that_a_vmap_binds_is_not_manual():
    seen = []
    jax.vmap(lambda x: seen.append((axes.manual_names(("i",)), axes.vmap_names(("i",)))) or x, axis_name="i")(X)
    assert seen == [((), ("i",))]


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_shard_map_may_pass_a_replicated_argument(check_vma):
    x, y = jnp.arange(48.0).reshape(8, 6) / 10, jnp.zeros(8, jnp.int32)
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(x, y):
        return jax.grad(lambda x: jax.lax.pmean(softjax.cross_entropy(x, y), "i"))(x)

    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("i")), out_specs=P(), check_vma=check_vma)
    np.testing.assert_allclose(jax.jit(sharded)(x, y), jax.grad(softjax.cross_entropy)(x, y), atol=1e-7)
    rows = jax.shard_map(softjax.softmax, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=check_vma)
    assert jax.jit(rows)(jnp.ones((4096, 1024), jnp.bfloat16)).shape == (4096, 1024)


def test_pmax_keeps_nan_inf_and_signed_zeros():
    x = jnp.array([[-jnp.inf, -1.5, -0.0, 0.0, 2.0, jnp.inf, jnp.nan], [-jnp.inf, -2.0, 0.0, -0.0, 3.0, 1.0, 7.0]])
    found = jax.vmap(lambda x: axes.pmax(x, ("i",)), axis_name="i")(x)
    np.testing.assert_array_equal(found[0], [-np.inf, -1.5, 0, 0, 3, np.inf, np.nan])
    assert not np.signbit(np.asarray(found[0, 2:4])).any()
    np.testing.assert_array_equal(found[0], found[1])


def test_first_equal_prefers_0_to_minus_0():
    x = jnp.array([[-0.0, 0.0, 0.0], [-0.0, -0.0, -1.0], [-3.0, -3.0, -4.0]])
    found = ClassAxis(-1).first_equal(x, x.max(-1, keepdims=True))
    np.testing.assert_array_equal(found[:, 0], jax.lax.top_k(x, 1)[1][:, 0])
