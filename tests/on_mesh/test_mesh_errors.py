"""Axis names: wrong ones are refused by name, and right ones work wherever they are bound."""

import cases
import jax
import jax.numpy as jnp
import mesh_setups
import numpy as np
import pytest
import readme
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from mesh_setups import NAMES

import softjax

X, Y = cases.logits(10, 1.0, 12), cases.class_ids(10, 12)
H, K, _ = cases.layer(10, features=6, samples=12)
CALLS = {
    "cross_entropy": lambda **names: softjax.cross_entropy(X, Y, **names),
    "linear_cross_entropy": lambda **names: softjax.linear_cross_entropy(H, K, Y, **names),
    "linear_loss": lambda **names: softjax.linear_loss(lambda s: s.entropy, H, K, Y, **names),
}
ALL_CALLS = {
    **CALLS,
    "softmax": lambda axis_name: softjax.softmax(X, axis_name=axis_name),
    "log_softmax": lambda axis_name: softjax.log_softmax(X, axis_name=axis_name),
    "statistics": lambda axis_name: softjax.statistics(X, Y, axis_name=axis_name),
    "linear_statistics": lambda axis_name: softjax.linear_statistics(H, K, Y, axis_name=axis_name),
}


@pytest.mark.parametrize("call", ALL_CALLS.values(), ids=ALL_CALLS)
def test_an_axis_name_without_a_mesh_is_refused(call):
    message = r"`axis_name` 'classes' is bound by no .* there is no mesh in context \(`jax\.set_mesh`; with an older"
    with pytest.raises(ValueError, match=message):
        call(axis_name="classes")


@pytest.mark.parametrize("call", ALL_CALLS.values(), ids=ALL_CALLS)
def test_an_axis_that_the_mesh_lacks_is_refused(call):
    with (
        jax.set_mesh(mesh_setups.mesh_of((2, 4))),
        pytest.raises(ValueError, match=r"'vocab' is bound by no .* has the axes 'data', 'classes'"),
    ):
        call(axis_name="vocab")


@pytest.mark.parametrize("call", ALL_CALLS.values(), ids=ALL_CALLS)
def test_classes_that_the_devices_do_not_divide_are_refused(call):
    with (
        jax.set_mesh(mesh_setups.mesh_of((2, 4))),
        pytest.raises(ValueError, match="over 4 devices, but 10 classes do not divide by 4; pad"),
    ):
        call(axis_name="classes")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_samples_that_the_devices_do_not_divide_are_refused(call):
    with (
        jax.set_mesh(mesh_setups.mesh_of((8, 1))),
        pytest.raises(ValueError, match="`batch_axis_name` data splits the samples over 8 devices, but 12 samples"),
    ):
        call(batch_axis_name="data")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_axis_names_of_a_wrong_type_are_refused(call):
    with pytest.raises(TypeError, match="`axis_name` must name mesh axes by strings, got int: 1"):
        call(axis_name=1)
    with pytest.raises(ValueError, match="`axis_name` must name each mesh axis once"):
        call(axis_name=("a", "a"))
    with pytest.raises(ValueError, match="must not share a mesh axis"):
        call(axis_name="a", batch_axis_name=("a", "b"))


def test_a_single_sample_cannot_be_sharded():
    with jax.set_mesh(mesh_setups.mesh_of((2, 4))), pytest.raises(ValueError, match="there is a single one"):
        softjax.cross_entropy(X[0], Y[0], batch_axis_name="data")


def test_classes_sharded_over_two_axes_in_either_order():
    x, y = cases.logits(24, 2.0, 12), cases.class_ids(24, 12)
    expected = jax.value_and_grad(softjax.cross_entropy)(x, y)
    for names in (("data", "classes"), ("classes", "data")):
        mesh = mesh_setups.mesh_of((2, 4))

        def loss(x, y, names=names):
            return softjax.cross_entropy(x, y, axis_name=names)

        mapped = jax.shard_map(loss, mesh=mesh, in_specs=(P(None, names), P()), out_specs=P())
        with jax.set_mesh(mesh):
            for f in (mapped, loss):
                actual = jax.jit(jax.value_and_grad(f))(x, y)
                jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), actual, expected)


def test_samples_bound_by_a_shard_map_and_classes_of_the_mesh_in_context():
    """A user's data-parallel `shard_map` around a call that shards the classes itself.

    Checks the value alone: JAX cannot yet lower the gradient of two nested `shard_map`s over some axes each.
    """
    h, k, _ = cases.layer(24, features=6, samples=12)
    y = cases.class_ids(24, 12)
    expected = softjax.linear_cross_entropy(h, k, y)
    mesh = mesh_setups.mesh_of((2, 4))

    def loss(h, k, y):
        return softjax.linear_cross_entropy(h, k, y, block_size=4, **NAMES)

    with jax.set_mesh(mesh):
        specs = (P("data"), P(), P("data"))
        actual = jax.jit(jax.shard_map(loss, in_specs=specs, out_specs=P(), axis_names={"data"}))(h, k, y)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("mesh_in_context", [False, True])
def test_explicit_axes_need_no_axis_names(mesh_in_context):
    """The types of the arrays hold the sharding, also without a mesh in context."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "seq", "classes"), axis_types=(AxisType.Explicit,) * 3)
    h, k, b = cases.layer(24, features=6, samples=32)
    h, y, w = h.reshape(4, 8, 6), cases.class_ids(24, 32).reshape(4, 8), cases.weights(32).reshape(4, 8)

    def loss(h, k, b, y, w):
        return softjax.linear_cross_entropy(h, k, y, bias=b, weights=w, block_size=4)

    specs = [P("data", "seq"), P(None, "classes"), P("classes"), P(), P("data")]
    expected = jax.value_and_grad(loss, (0, 1, 2))(h, k, b, y, w)
    arrays = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((h, k, b, y, w), specs, strict=True)]
    gradient = jax.value_and_grad(loss, (0, 1, 2))
    if mesh_in_context:
        with jax.set_mesh(mesh):
            actual = jax.jit(gradient)(*arrays)
            rows = jax.jit(lambda h, k, y: softjax.linear_statistics(h, k, y).entropy)(arrays[0], arrays[1], arrays[3])
            assert rows.sharding.spec == P("data", "seq")
    else:
        actual = jax.jit(gradient)(*arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)
    for gradient, array in zip(actual[1], arrays, strict=False):
        assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)


def test_a_sharded_class_axis_that_is_not_the_last():
    x, y, w = cases.logits(24, 2.0, 16), cases.class_ids(24, 16), cases.weights(16)
    expected = jax.value_and_grad(softjax.cross_entropy)(x, y, weights=w)
    with jax.set_mesh(mesh_setups.mesh_of((2, 4))):
        actual = jax.jit(jax.value_and_grad(lambda x: softjax.cross_entropy(x, y, axis=0, weights=w, **NAMES)))(x.T)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(actual[1].T, expected[1], rtol=1e-5, atol=1e-7)


def test_a_mesh_keeps_the_argument_checks():
    with jax.set_mesh(mesh_setups.mesh_of((2, 4))), pytest.raises(ValueError, match="`labels`"):
        softjax.cross_entropy(jnp.ones((8, 24)), jnp.zeros((4,), jnp.int32), **NAMES)


def test_the_readmes_snippet_for_many_devices():
    scope = {}
    exec(readme.mesh_snippets()["many devices"], scope)
    hidden, kernel = scope["gradients"]
    assert kernel.sharding == NamedSharding(scope["mesh"], P(None, "classes"))
    assert [shard.data.shape for shard in hidden.addressable_shards] == [(8, 16)] * 8
    np.testing.assert_allclose(scope["value"], np.log10(128), rtol=1e-6)


@pytest.mark.parametrize(
    "function", ["cross_entropy", "statistics", "softmax", "linear_cross_entropy", "linear_statistics"]
)
def test_a_replicated_array_is_refused_as_a_shard_of_the_classes(function):
    mesh = jax.make_mesh((2, 4), ("data", "classes"))
    x, k, y = jnp.ones((4, 8)), jnp.ones((8, 8)), jnp.zeros(4, int)
    arrays = {"linear": (x, k, y), "softmax": (x,)}.get(function.split("_")[0], (x, y))
    name = "kernel" if "linear" in function else "logits"

    def call(*arrays):
        return getattr(softjax, function)(*arrays, axis_name="classes")

    def on_mesh(mesh):
        specs = (jax.sharding.PartitionSpec(),) * len(arrays)
        return jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=jax.sharding.PartitionSpec())

    with pytest.raises(
        ValueError, match=f"`axis_name` 'classes' splits the classes, but `{name}` is the same on every"
    ):
        on_mesh(mesh)(*arrays)
    if function == "cross_entropy":  # one device has all classes
        unsharded = jax.make_mesh((2, 1), ("data", "classes"), devices=jax.devices()[:2])
        assert jnp.allclose(on_mesh(unsharded)(*arrays), jnp.log10(8.0))
