"""`Split`: the PartitionSpecs and the local sizes that follow from the mesh axes of a call."""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from softjax._mesh import placement, split


def split_of(shape, axis, axis_name, batch_axis_name):
    return placement.split_for_logits(axis_name, batch_axis_name, jnp.zeros(shape), axis)


def test_without_axis_names_nothing_is_sharded():
    unsharded = split_of((4, 6), -1, None, None)
    assert unsharded == split.Split((), (), (), ((),), (), None)
    assert not unsharded.bound_axes
    assert unsharded.shard_map(len, [P()], P()) is len


def test_partition_specs_and_local_sizes():
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 3), ("data", "classes"), axis_types=(AxisType.Auto,) * 2)):
        found = split_of((4, 3, 6), 1, "classes", "data")
        assert found.bound_axes == {"data", "classes"}
        assert found.logits_spec(jnp.zeros((4, 3, 6)), 1) == P(("data",), ("classes",), None)
        assert found.logits_spec(jnp.zeros((1, 3, 1)), 1)[0] is None
        assert found.samples_spec(None) == P()
        assert found.output_spec == P(("data",), None)
        assert found.local_sizes((4, 6), 3) == (12, 1)


def test_a_call_without_samples_binds_no_axis():
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 1), ("data", "classes"), axis_types=(AxisType.Auto,) * 2)):
        assert split_of((4, 0, 3), -1, "classes", "data") == split.Split((), (), (), ((), ()), (), None)


def test_an_auto_axis_of_one_device_is_not_bound():
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 1), ("data", "classes"), axis_types=(AxisType.Auto,) * 2)):
        found = split_of((4, 6), -1, "classes", "data")
    assert found == split.Split((), (), ("data",), (("data",),), (), None)
