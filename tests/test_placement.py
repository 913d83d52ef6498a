"""What of the mesh a call takes: by names, by types. What it does is tested on eight devices, by test_mesh.py."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from softjax._mesh import placement


def split(shape, axis, names, batch):
    return placement.split_for_logits(names, batch, jnp.zeros(shape), axis)


def test_the_axes_of_a_vmap_are_put_together():
    def one(x):
        found = split(x.shape, -1, "shards", None)
        assert (found.class_names, found.vmap_axes) == ((), ("shards",))
        whole = found.gather_classes(x, -1)
        assert whole.shape == (6,)
        return found.slice_classes(whole, -1)

    x = jnp.arange(6.0).reshape(3, 2)
    assert (jax.vmap(one, axis_name="shards")(x) == x).all()


@pytest.mark.skipif("platform" not in dir(AbstractDevice), reason="this JAX does not say for which platform a mesh is")
def test_the_platform_is_that_of_the_mesh_compiled_for():
    """Which may be of chips that are not at hand, in context or in the type; else what is at hand."""
    x = jnp.ones(4)
    assert placement.platform_of(x) == jax.default_backend()
    tpus = AbstractDevice("TPU v5", num_cores=1, platform="tpu")
    for types in ((AxisType.Auto,), (AxisType.Explicit,)):
        mesh = AbstractMesh((4,), ("classes",), axis_types=types, abstract_device=tpus)
        with jax.sharding.use_abstract_mesh(mesh):
            assert placement.platform_of(x) == "tpu"
    of_mesh = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=NamedSharding(mesh, P("classes")))
    seen = []
    jax.jit(lambda x: seen.append(placement.platform_of(x)) or x).trace(of_mesh)
    assert seen == ["tpu"]


def test_axes_of_a_vmap_and_of_a_mesh_do_not_mix():
    mesh = jax.make_mesh((1,), ("classes",), axis_types=(AxisType.Auto,))

    def one(x):
        return split(x.shape, -1, ("shards", "classes"), None)

    with jax.set_mesh(mesh), pytest.raises(ValueError, match="must not mix axes of a `vmap`"):
        jax.vmap(one, axis_name="shards")(jnp.ones((2, 4)))
