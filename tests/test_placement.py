"""Finds the mesh axes and the platform of a call, from axis names and from types."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from softjax._mesh import placement

SHARDED = Path(__file__).with_name("sharded.py")


def split_of(shape, axis, axis_name, batch_axis_name):
    return placement.split_for_logits(axis_name, batch_axis_name, jnp.zeros(shape), axis)


def test_classes_sharded_by_a_vmap_are_gathered():
    def gather_and_slice(x):
        found = split_of(x.shape, -1, "shards", None)
        assert (found.class_mesh_axes, found.vmap_axes) == ((), ("shards",))
        gathered = found.gather_classes(x, -1)
        assert gathered.shape == (6,)
        return found.slice_classes(gathered, -1)

    x = jnp.arange(6.0).reshape(3, 2)
    assert (jax.vmap(gather_and_slice, axis_name="shards")(x) == x).all()


def test_axes_of_a_vmap_and_of_a_mesh_do_not_mix():
    mesh = jax.make_mesh((1,), ("classes",), axis_types=(AxisType.Auto,))

    def find(x):
        return split_of(x.shape, -1, ("shards", "classes"), None)

    with jax.set_mesh(mesh), pytest.raises(ValueError, match="must not mix axes of a `vmap`"):
        jax.vmap(find, axis_name="shards")(jnp.ones((2, 4)))


@pytest.mark.skipif("platform" not in dir(AbstractDevice), reason="an abstract mesh has no platform in this JAX")
def test_the_platform_is_that_of_the_mesh():
    """A mesh, in context or in the type, may have another platform. Without a mesh it is the default backend."""
    x = jnp.ones(4)
    assert placement.platform_of(x) == jax.default_backend()
    tpus = AbstractDevice("TPU v5", num_cores=1, platform="tpu")
    for types in ((AxisType.Auto,), (AxisType.Explicit,)):
        mesh = AbstractMesh((4,), ("classes",), axis_types=types, abstract_device=tpus)
        with jax.sharding.use_abstract_mesh(mesh):
            assert placement.platform_of(x) == "tpu"
    on_mesh = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=NamedSharding(mesh, P("classes")))
    platforms = []
    jax.jit(lambda x: platforms.append(placement.platform_of(x)) or x).trace(on_mesh)
    assert platforms == ["tpu"]


@pytest.mark.slow
def test_without_axis_names_xla_shards_the_call_by_the_types():
    """On eight devices, in a process of its own: no all-gather, and the values and gradients of one device."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    env = dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    done = subprocess.run([sys.executable, str(SHARDED), "2x4"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
