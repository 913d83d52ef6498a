"""Sharded logits, in a process of its own with eight simulated devices: under Explicit axes, Auto axes and by hand."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from softjax import _placement

CASES = Path(__file__).with_name("sharded.py")


def test_on_one_cpu_here():
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    assert _placement.on_one_cpu(jnp.zeros(3)) == alone


@pytest.mark.parametrize("kind", list(jax.sharding.AxisType)[:2])
@pytest.mark.parametrize("spec", [P("x", None), P(None, "x")])
@pytest.mark.parametrize(("shape", "dtype"), [((8, 16), jnp.float32), ((64, 40000), jnp.bfloat16)])
def test_under_a_mesh_of_one_device(kind, spec, shape, dtype):
    x, y = jnp.ones(shape, dtype), jnp.zeros(shape[0], jnp.int32)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        assert not _placement.on_one_cpu(placed)
        value, gradient = jax.jit(jax.value_and_grad(softjax.cross_entropy))(placed, y)
    assert gradient.shape == shape
    np.testing.assert_allclose(value, np.log10(shape[1]), rtol=1e-6)


def test_class_ids(route):
    x, ids = jnp.zeros((2, 3)), jnp.ones((2, 1), jnp.int32)
    assert ((_placement.class_ids(x, -1, ids) == ids) == jnp.array([[False, True, False]] * 2)).all()
    assert (jnp.broadcast_to(_placement.class_ids(x, -2, ids), x.shape) == jnp.array([[0] * 3, [1] * 3])).all()


def test_sharded():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    env = dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    done = subprocess.run([sys.executable, str(CASES), "2x4"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map_arguments_may_be_the_same_on_every_device(check_vma):
    x, y = jnp.arange(48.0).reshape(8, 6) / 10, jnp.zeros(8, jnp.int32)
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(x, y):
        return jax.grad(lambda x: jax.lax.pmean(softjax.cross_entropy(x, y), "i"))(x)

    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("i")), out_specs=P(), check_vma=check_vma)
    np.testing.assert_allclose(jax.jit(sharded)(x, y), jax.grad(softjax.cross_entropy)(x, y), atol=1e-7)
    rows = jax.shard_map(softjax.softmax, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=check_vma)
    assert jax.jit(rows)(jnp.ones((4096, 1024), jnp.bfloat16)).shape == (4096, 1024)
