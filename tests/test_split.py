"""How a call is split: what is static of it. What it does is tested on eight devices, by test_mesh.py."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from softjax._mesh import placement, regather, split


def find(shape, axis, names, batch):
    return placement.split_for_logits(names, batch, jnp.zeros(shape), axis)


def test_nothing_is_split_where_no_axis_is_named():
    plain = find((4, 6), -1, None, None)
    assert plain == split.Split((), (), (), ((),), (), None)
    assert not plain.bound_axes
    assert plain.shard_map(len, [P()], P()) is len


def test_where_arrays_lie():
    mesh = jax.make_mesh((1, 1), ("data", "classes"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        found = find((4, 3, 6), 1, "classes", "data")
        assert found.bound_axes == {"data", "classes"}
        assert found.logits_spec(jnp.zeros((4, 3, 6)), 1) == P(("data",), ("classes",), None)
        assert found.logits_spec(jnp.zeros((1, 3, 1)), 1)[0] is None
        assert found.samples_spec(None) == P()
        assert found.local_sizes((4, 6), 3) == (24, 3)


def test_a_gather_whose_transpose_is_a_reduce_scatter():
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    x = jnp.arange(6.0).reshape(3, 2)

    def local(whole, part):
        return jax.lax.psum(regather.gather_features(("fsdp",), ("data",), 0, whole, part) ** 3, ("data", "fsdp"))

    def f(part, whole=x):
        return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("fsdp")), out_specs=P())(whole, part)

    np.testing.assert_array_equal(f(0 * x), x**3)  # the value is the whole one's
    value, tangent = jax.jvp(f, (x,), (x,))
    np.testing.assert_allclose(tangent, 3 * value)
    gradient = jax.grad(lambda x: f(x).sum())
    np.testing.assert_allclose(gradient(x), 3 * x**2)
    assert "all_gather" in str(jax.make_jaxpr(lambda x: jax.jvp(f, (x,), (x,)))(x))
    assert "reduce_scatter" in str(jax.make_jaxpr(gradient)(x))
