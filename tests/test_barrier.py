"""Optimization barriers change no value and no derivative, and keep two passes from sharing an array."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from softjax._xla import barrier, one_cpu


def barred_shapes(function, *args):
    """For each barrier of the traced program, the shapes of its operands."""
    equations = jax.make_jaxpr(function)(*args).eqns
    inner = [e for eqn in equations for e in (eqn.params["call_jaxpr"].eqns if "call_jaxpr" in eqn.params else [eqn])]
    return [[v.aval.shape for v in e.invars] for e in inner if e.primitive.name == "optimization_barrier"]


def test_a_barrier_changes_no_value_and_no_derivative():
    tree = {"x": jnp.arange(3.0), "ids": jnp.arange(2), "none": None}
    out = barrier.barrier(tree)
    assert out["none"] is None
    np.testing.assert_array_equal(out["x"], tree["x"])
    np.testing.assert_array_equal(out["ids"], tree["ids"])

    def loss(x):
        return jnp.sum(barrier.barrier({"x": x, "constant": jnp.ones(3)})["x"] ** 3)

    x = tree["x"]
    np.testing.assert_array_equal(jax.grad(loss)(x), 3 * x**2)
    np.testing.assert_array_equal(jax.jvp(jax.grad(loss), (x,), (x,))[1], 6 * x**2)
    np.testing.assert_array_equal(jax.vmap(jax.grad(loss))(x[None])[0], 3 * x**2)


def test_a_pass_behind_a_barrier_computes_its_own_exponentials():
    def count_exponentials(second_pass):
        def two_passes(x):
            return jnp.sum(jnp.exp(x)), jnp.sum(jnp.exp(second_pass(x)) * x)

        text = jax.jit(two_passes).lower(jnp.ones((64, 64))).compile().as_text()
        return text.count(" exponential(")

    assert count_exponentials(lambda x: x) == 1
    assert count_exponentials(barrier.barrier) == 2


def test_one_barrier_holds_all_arrays_or_the_small_ones():
    tree = [jnp.ones(2), jnp.ones(3), jnp.ones(5)]
    assert barred_shapes(barrier.barrier, tree) == [[(2,), (3,), (5,)]]
    assert barred_shapes(lambda tree: barrier.barrier_small(tree, 4), tree) == [[(2,), (3,)]]
    for array, barred in zip(tree, barrier.barrier_small(tree, 4), strict=True):
        np.testing.assert_array_equal(barred, array)


def test_on_one_cpu_row_values_have_no_barrier(route):
    x, row_values = jnp.ones((2, 3)), jnp.ones((2, 1))
    barriers = barred_shapes(lambda values: one_cpu.barrier_unless_one_cpu(values, x), row_values)
    assert barriers == ([] if route == "one CPU" else [[(2, 1)]])


def test_a_barrier_keeps_what_each_array_varies_over():
    seen = []

    def local(varying, invariant):
        out = barrier.barrier((varying, invariant))
        seen.extend(barrier.varying_axes(array) for array in out)
        return out

    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    jax.shard_map(local, mesh=mesh, in_specs=(P("i"), P()), out_specs=(P("i"), P()))(jnp.ones(3), jnp.ones(3))
    assert seen == [{"i"}, frozenset()]
    assert barrier.varying_axes(jnp.ones(3)) == frozenset()
