"""The functions for one CPU device equal the plain line they replace, are not used under a mesh, and save memory."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering, slow
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import softjax
from softjax._args.arrays import accumulation_dtype
from softjax._args.labels import ClassIds
from softjax._mesh.axes import ClassAxis
from softjax._rows.block import make_block
from softjax._rows.log_sum import log_sum
from softjax._xla import one_cpu
from softjax._xla.one_cpu import widen

LAST = ClassAxis(-1)


# The test for one CPU device


def test_on_one_cpu_needs_a_single_device_that_is_a_cpu():
    is_one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    assert one_cpu.on_one_cpu(jnp.zeros(3)) == is_one_cpu


@pytest.mark.parametrize(
    ("kind", "spec", "shape", "dtype"),
    covering(
        list(jax.sharding.AxisType)[:2],
        [[P("x", None)], [P(None, "x")]],
        [((8, 16), jnp.float32), ((64, 40000), jnp.bfloat16)],
    ),
)
def test_on_one_cpu_is_false_under_a_mesh_of_one_device(kind, spec, shape, dtype):
    x, y = jnp.ones(shape, dtype), jnp.zeros(shape[0], jnp.int32)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, *spec))
        assert not one_cpu.on_one_cpu(placed)
        value, gradient = jax.jit(jax.value_and_grad(softjax.cross_entropy))(placed, y)
    assert gradient.shape == shape
    np.testing.assert_allclose(value, np.log10(shape[1]), rtol=1e-6)


# Wider dtypes


def test_widen_is_exact_for_every_bfloat16(route):
    bfloat16s = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint32).astype(jnp.uint16), jnp.bfloat16)
    expected = np.asarray(bfloat16s).astype(np.float32)
    normal = ~np.isnan(expected) & ((np.abs(expected) >= 2.0**-126) | (expected == 0))  # a CPU may flush subnormals
    widened = np.asarray(widen(bfloat16s))
    np.testing.assert_array_equal(widened[normal], expected[normal])
    assert np.isnan(widened[np.isnan(expected)]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_widen_has_the_derivatives_of_a_cast(dtype, route):
    x = jnp.array([1.5, -2.0], dtype)
    np.testing.assert_array_equal(jax.grad(lambda x: widen(x).sum())(x), jnp.ones(2, dtype))
    np.testing.assert_array_equal(jax.jvp(widen, (x,), (x,))[1], [1.5, -2.0])


def test_the_accumulation_dtype_is_float32_or_wider(x64):
    assert accumulation_dtype(jnp.zeros(1, jnp.float16), jnp.zeros(1, jnp.bfloat16)) == jnp.float32
    assert accumulation_dtype(jnp.zeros(1, jnp.float64), jnp.zeros(1, jnp.bfloat16)) == jnp.float64


# Reductions


@pytest.mark.parametrize("axis", [-1, -2])
def test_count_true_is_a_sum_of_integers(axis, route):
    condition = np.random.default_rng(0).random((300, 500)) < 0.7
    count = one_cpu.count_true(jnp.asarray(condition), axis)
    assert count.dtype == jnp.int32
    np.testing.assert_array_equal(count, condition.sum(axis, keepdims=True))


def test_count_true_adds_integers_where_float32_would_round():
    for length, floats in ((2**24, one_cpu.on_one_cpu(jnp.zeros(3))), (2**24 + 1, False)):
        count = jax.make_jaxpr(lambda x: one_cpu.count_true(x, -1))(jax.ShapeDtypeStruct((1, length), jnp.bool_))
        assert any(v.aval.dtype == jnp.float32 for e in count.eqns for v in e.outvars) == floats


@pytest.mark.parametrize(("rows", "dtype"), covering([1, 2, 5, 7, 11], [jnp.float32, jnp.float16, jnp.bfloat16]))
def test_reduce_in_steps_gives_the_values_of_all_rows(rows, dtype):
    x = cases.logits(129, 3.0, dtype=dtype).at[3, 5].set(-jnp.inf).at[4].set(jnp.nan).at[5].mul(9)
    row_array = jnp.arange(cases.SAMPLES)[:, None]
    sums, double = jax.jit(
        lambda x: one_cpu.reduce_in_steps(lambda x, a: (log_sum(LAST, x, None), 2 * a), rows, x, row_array)
    )(x)
    for in_steps, at_once in zip(sums, log_sum(LAST, x, None), strict=True):
        np.testing.assert_allclose(in_steps, at_once, rtol=1e-6)
    np.testing.assert_array_equal(double, 2 * row_array)


def test_reduce_in_steps_keeps_several_sample_axes():
    x = cases.logits(129, samples=12).reshape(3, 4, 129)
    s = one_cpu.reduce_in_steps(lambda x: log_sum(LAST, x, None), 5, x)
    np.testing.assert_allclose(s.peak + s.log_mass, jax.nn.logsumexp(x, -1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "most"), [(jnp.float32, 0.2), (jnp.float16, 0.2), (jnp.bfloat16, 2.2)])
def test_temporary_memory_of_a_reduction(dtype, most, monkeypatch):
    """Bytes per logit. A float32 copy of float16 would take 4. A copy of the bits of bfloat16 takes 2."""
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: True)
    x = jax.ShapeDtypeStruct((1024, 131072), dtype)
    program = jax.jit(lambda x: log_sum(LAST, x, None).log_mass).lower(x).compile()
    assert program.memory_analysis().temp_size_in_bytes / x.size < most


def test_cond_any_is_a_cond_only_for_much_work(route):
    small, large = jnp.zeros(3), 2**18

    def trace(threshold, work):
        return jax.make_jaxpr(lambda x: one_cpu.cond_any(x < threshold, lambda: x + 1, x, work))(small)

    assert [e.primitive.name for e in trace(1.0, large).eqns].count("cond") == (route == "one CPU")
    assert "cond" not in str(trace(1.0, 1))
    for threshold, expected in ((1.0, 1), (-1.0, 0)):
        if route == "one CPU" or threshold > 0:
            assert (one_cpu.cond_any(small < threshold, lambda: small + 1, small, large) == expected).all()


# Rows in cache


@pytest.mark.parametrize("samples", [24, *slow(21, 23)])
@pytest.mark.parametrize("route", ["one CPU"], indirect=True)
def test_scan_rows_changes_no_statistic_and_no_gradient(samples, route, monkeypatch):
    """24 samples take steps of 4 rows, and 21 take steps of 3. No step divides 23, so these are computed at once."""
    x, labels, kernel = cases.logits(9, samples=samples), cases.class_ids(9, samples), jnp.eye(9)
    weights, exists = cases.weights(samples), jnp.arange(9) != 4
    x = x.at[0].set(jnp.nan)  # its weight is 0

    def loss(x, temperature):
        s = softjax.linear_statistics(x, kernel, labels, where=exists)
        values = [jnp.where(weights > 0, value.astype(jnp.float32), 0) for value in s]
        options = {"weights": weights, "reduction": "sum", "temperature": temperature}
        divergences = [
            softjax.linear_divergence(x, kernel, jnp.sin(x), kernel, kind=kind, **options)
            for kind in ("forward_kl", "jensen_shannon")
        ]
        fused = softjax.linear_cross_entropy(x, kernel, labels, weights=weights)
        return sum(jnp.vdot(jnp.cos(value), value) for value in values) + sum(divergences) + fused, s

    def value_and_gradient(*arrays):  # a new function each time, so that JAX traces it again
        return jax.jit(jax.value_and_grad(lambda *a: loss(*a), (0, 1), has_aux=True))(*arrays)

    at_once = value_and_gradient(x, jnp.float32(2))
    monkeypatch.setattr(one_cpu, "_CACHE_BYTES", 5 * 9 * 4)
    jax.clear_caches()
    block = make_block(LAST, x, ClassIds(labels[:, None]), None, None)
    assert one_cpu._rows_per_step(block) == {24: 4, 21: 3, 23: None}[samples]
    in_steps = value_and_gradient(x, jnp.float32(2))
    for actual, expected in zip(*map(jax.tree.leaves, (in_steps, at_once)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)
    jax.clear_caches()


# Tiles of a sum


@pytest.mark.parametrize("tile", [1, 2**12, 2**30])
@pytest.mark.parametrize("rows", [1, 7, 129])
def test_add_in_tiles_equals_one_addition(tile, rows, route, monkeypatch):
    monkeypatch.setattr(one_cpu, "_TILE_BYTES", tile)
    hidden, _, _ = cases.layer(rows)
    du, total = cases.logits(rows, seed=2), cases.logits(13, samples=rows, seed=3)
    added = one_cpu.add_in_tiles(total, lambda du: du.T @ hidden, du)
    np.testing.assert_allclose(added, total + du.T @ hidden, rtol=1e-4, atol=1e-5)


# Unit weights


def test_unit_weights_are_ones_that_depend_on_the_loss(route):
    weights = one_cpu.unit_weights(jnp.array([2.0, jnp.inf, jnp.nan]))
    if route == "one CPU":
        np.testing.assert_array_equal(weights, [1, 1, 1 + np.finfo(np.float32).eps])
        np.testing.assert_array_equal(jax.grad(lambda loss: one_cpu.unit_weights(loss).sum())(jnp.ones(2)), [0, 0])
    else:
        assert weights is None
