"""`gather_features`: the gradient of a kernel with sharded features is reduce-scattered. One device suffices here."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from softjax._mesh import regather


def test_value_of_the_kernel_and_derivative_of_an_all_gather():
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    x = jnp.arange(6.0).reshape(3, 2)

    def local(kernel, shard):
        return jax.lax.psum(regather.gather_features(("fsdp",), ("data",), 0, kernel, shard) ** 3, ("data", "fsdp"))

    def f(shard, kernel=x):
        return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("fsdp")), out_specs=P())(kernel, shard)

    np.testing.assert_array_equal(f(0 * x), x**3)  # the value does not come from the shard
    value, tangent = jax.jvp(f, (x,), (x,))
    np.testing.assert_allclose(tangent, 3 * value)
    gradient = jax.grad(lambda x: f(x).sum())
    np.testing.assert_allclose(gradient(x), 3 * x**2)
    assert "all_gather" in str(jax.make_jaxpr(lambda x: jax.jvp(f, (x,), (x,)))(x))
    assert "reduce_scatter" in str(jax.make_jaxpr(gradient)(x))
