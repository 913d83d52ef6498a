"""The code for a single CPU gives the same numbers, is unused under a mesh, and saves memory."""

import os
import subprocess
import sys
from pathlib import Path

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
from softjax._mesh.axes import ClassAxis
from softjax._rows.log_sum import log_sum
from softjax._xla import gather, layout, one_cpu, transpose
from softjax._xla.one_cpu import widen

CASES = Path(__file__).with_name("sharded.py")


def test_on_one_cpu_here():
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    assert one_cpu.on_one_cpu(jnp.zeros(3)) == alone


@pytest.mark.parametrize(
    ("kind", "spec", "shape", "dtype"),
    covering(
        list(jax.sharding.AxisType)[:2],
        [[P("x", None)], [P(None, "x")]],
        [((8, 16), jnp.float32), ((64, 40000), jnp.bfloat16)],
    ),
)
def test_under_a_mesh_of_one_device(kind, spec, shape, dtype):
    x, y = jnp.ones(shape, dtype), jnp.zeros(shape[0], jnp.int32)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, *spec))
        assert not one_cpu.on_one_cpu(placed)
        value, gradient = jax.jit(jax.value_and_grad(softjax.cross_entropy))(placed, y)
    assert gradient.shape == shape
    np.testing.assert_allclose(value, np.log10(shape[1]), rtol=1e-6)


def test_class_ids(route):
    x, ids = jnp.zeros((2, 3)), jnp.ones((2, 1), jnp.int32)
    assert ((gather.class_iota(x, -1, ids) == ids) == jnp.array([[False, True, False]] * 2)).all()
    assert (jnp.broadcast_to(gather.class_iota(x, -2, ids), x.shape) == jnp.array([[0] * 3, [1] * 3])).all()


@pytest.mark.parametrize("axis", [-1, -2])
def test_count(axis, route):
    condition = np.random.default_rng(0).random((300, 500)) < 0.7
    number = one_cpu.count_true(jnp.asarray(condition), axis)
    assert number.dtype == jnp.int32
    np.testing.assert_array_equal(number, condition.sum(axis, keepdims=True))


def test_a_count_that_float32_might_round_is_one_of_integers():
    for length, floats in ((2**24, one_cpu.on_one_cpu(jnp.zeros(3))), (2**24 + 1, False)):
        count = jax.make_jaxpr(lambda x: one_cpu.count_true(x, -1))(jax.ShapeDtypeStruct((1, length), jnp.bool_))
        assert any(v.aval.dtype == jnp.float32 for e in count.eqns for v in e.outvars) == floats


@pytest.mark.slow
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


def test_every_bfloat16(route):
    every = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint32).astype(jnp.uint16), jnp.bfloat16)
    expected = np.asarray(every).astype(np.float32)
    numbers = ~np.isnan(expected) & ((np.abs(expected) >= 2.0**-126) | (expected == 0))  # a CPU may flush subnormals
    widened = np.asarray(widen(every))
    np.testing.assert_array_equal(widened[numbers], expected[numbers])
    assert np.isnan(widened[np.isnan(expected)]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_derivatives(dtype, route):
    x = jnp.array([1.5, -2.0], dtype)
    np.testing.assert_array_equal(jax.grad(lambda x: widen(x).sum())(x), jnp.ones(2, dtype))
    np.testing.assert_array_equal(jax.jvp(widen, (x,), (x,))[1], [1.5, -2.0])


def test_wide(x64):
    assert accumulation_dtype(jnp.zeros(1, jnp.float16), jnp.zeros(1, jnp.bfloat16)) == jnp.float32
    assert accumulation_dtype(jnp.zeros(1, jnp.float64), jnp.zeros(1, jnp.bfloat16)) == jnp.float64


def test_a_transpose_is_seen_through_derivatives_and_casts():
    seen = []

    def see(matrix):
        seen.append(layout.is_transpose(matrix))
        return matrix.sum()

    embedding = jnp.ones((3, 2))
    jax.jit(lambda e: see(e.T))(embedding)
    jax.jit(jax.grad(lambda e: see(e.T.astype(jnp.bfloat16).astype(jnp.float32))))(embedding)
    jax.jit(jax.grad(lambda e: see(jnp.swapaxes(e, 0, 1))))(embedding)
    assert all(seen)
    jax.jit(lambda e: see(e))(embedding)
    jax.jit(lambda e: see(e + 1))(embedding)
    see(embedding.T)
    assert seen[3:] == [False, False, False]


LAST = ClassAxis(-1)


@pytest.mark.parametrize(("rows", "dtype"), covering([1, 2, 5, 7, 11], [jnp.float32, jnp.float16, jnp.bfloat16]))
def test_rows_a_few_at_a_time(rows, dtype):
    x = cases.logits(129, 3.0, dtype=dtype).at[3, 5].set(-jnp.inf).at[4].set(jnp.nan).at[5].mul(9)
    beside = jnp.arange(cases.SAMPLES)[:, None]
    numbers, double = jax.jit(
        lambda x: one_cpu.reduce_in_steps(lambda x, b: (log_sum(LAST, x, None), 2 * b), rows, x, beside)
    )(x)
    for a, b in zip(numbers, log_sum(LAST, x, None), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_array_equal(double, 2 * beside)


def test_rows_of_a_batch_with_several_axes():
    x = cases.logits(129, samples=12).reshape(3, 4, 129)
    s = one_cpu.reduce_in_steps(lambda x: log_sum(LAST, x, None), 5, x)
    np.testing.assert_allclose(s.peak + s.log_mass, jax.nn.logsumexp(x, -1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "most"), [(jnp.float32, 0.2), (jnp.float16, 0.2), (jnp.bfloat16, 2.2)])
def test_temporary_memory_on_one_cpu(dtype, most, monkeypatch):
    # A float32 copy would take 4 bytes per logit. bfloat16 has its bits copied: 2 bytes per logit.
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: True)
    x = jax.ShapeDtypeStruct((1024, 131072), dtype)
    program = jax.jit(lambda x: log_sum(LAST, x, None).log_mass).lower(x).compile()
    assert program.memory_analysis().temp_size_in_bytes / x.size < most


def test_if_any_asks_where_there_is_work(route):
    small, large = jnp.zeros(3), 2**18

    def of(condition, work):
        return jax.make_jaxpr(lambda x: one_cpu.cond_any(x < condition, lambda: x + 1, x, work))(small)

    assert [e.primitive.name for e in of(1.0, large).eqns].count("cond") == (route == "one CPU")
    assert "cond" not in str(of(1.0, 1))
    for condition, right in ((1.0, 1), (-1.0, 0)):
        if route == "one CPU" or condition > 0:
            assert (one_cpu.cond_any(small < condition, lambda: small + 1, small, large) == right).all()


@pytest.mark.parametrize("tile", [1, 2**12, 2**30])
@pytest.mark.parametrize("rows", [1, 7, 129])
def test_a_sum_is_added_to_tile_by_tile(tile, rows, route, monkeypatch):
    monkeypatch.setattr(one_cpu, "_TILE_BYTES", tile)
    hidden, _, _ = cases.layer(rows)
    du, total = cases.logits(rows, seed=2), cases.logits(13, samples=rows, seed=3)
    added = one_cpu.add_in_tiles(total, lambda du: du.T @ hidden, du)
    np.testing.assert_allclose(added, total + du.T @ hidden, rtol=1e-4, atol=1e-5)


def test_picked(route):
    x = jnp.array([[1.0, jnp.nan, jnp.inf], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    ids = jnp.array([[0], [2], [-1]])
    np.testing.assert_array_equal(gather.take_classes(x, ids, -1), [[1], [6], [0]])


@pytest.mark.parametrize(("k", "axis"), covering([0, 1, 4, 9], [-1, -2, -3]))
def test_several_of_a_row(k, axis, route):
    """Gather and scatter-add, or comparison: with repeated classes, and with classes of another device."""
    x = jnp.moveaxis(cases.logits(7, samples=6).reshape(2, 3, 7), -1, axis)
    local = np.random.default_rng(k).integers(-2, 9, (2, 3, k))
    numbers = np.random.default_rng(k).normal(size=local.shape).astype(np.float32)
    picked, added = np.zeros(local.shape, np.float32), np.array(jnp.moveaxis(x, axis, -1))
    for place, j in np.ndenumerate(local):
        if 0 <= j < 7:
            picked[place] = np.moveaxis(np.asarray(x), axis, -1)[*place[:-1], j]
            added[*place[:-1], j] += numbers[place]
    local, numbers = (jnp.moveaxis(jnp.asarray(a), -1, axis) for a in (local, numbers))
    np.testing.assert_array_equal(jnp.moveaxis(gather.take_classes(x, local, axis), axis, -1), picked)
    np.testing.assert_allclose(jnp.moveaxis(gather.add_at_classes(x, local, axis, numbers), axis, -1), added, rtol=1e-6)


def test_a_gradient_that_is_computed_once_is_the_same_in_every_mode(route):
    x = cases.logits(2**15, samples=8).reshape(2, 4, -1).at[0, 0, :3].set(jnp.array([-0.0, jnp.nan, jnp.inf]))

    def once(x):
        return 2 * transpose.compute_gradient_once(x)

    value, pull = jax.vjp(once, x)
    _, push = jax.linearize(once, x)
    again = jax.linear_transpose(lambda g: pull(g)[0], x)(x)[0]
    for number in (value, pull(x)[0], push(x), again, jax.vmap(once)(x[None])[0], jax.vmap(pull)(x[None])[0][0]):
        np.testing.assert_array_equal(number, 2 * x)
        assert jnp.signbit(number[0, 0, 0])
    assert ("scatter" in str(jax.make_jaxpr(pull)(x))) == (route == "one CPU")
    assert "scatter" not in str(jax.make_jaxpr(jax.vjp(once, x.astype(jnp.bfloat16))[1])(x.astype(jnp.bfloat16)))


@pytest.mark.parametrize(("samples", "dtype"), covering([[256], [4, 64], [2, 2, 64]], [jnp.float32, jnp.bfloat16]))
def test_memory_of_a_product_and_its_loss(samples, dtype, monkeypatch):
    """At most two arrays at once: logits and gradient, then gradient and its transpose. XLA widens bfloat16 itself."""
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: True)
    hidden, kernel = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((*samples, 32), (32, 2048)))
    labels = jax.ShapeDtypeStruct(tuple(samples), jnp.int32)
    for weights in (None, jax.ShapeDtypeStruct(labels.shape, jnp.float32)):

        def loss(hidden, kernel, labels, weights):
            return softjax.cross_entropy(hidden @ kernel, labels, weights=weights)

        program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, kernel, labels, weights).compile()
        arrays = program.memory_analysis().temp_size_in_bytes / (4 * 256 * 2048)
        assert arrays < (2.1 if dtype == jnp.float32 else 2.7)


@pytest.mark.parametrize("samples", [24, *slow(21, 23)])
@pytest.mark.parametrize("route", ["one CPU"], indirect=True)
def test_a_few_rows_of_a_block_at_a_time(samples, route, monkeypatch):
    """All statistics and gradients with 4 rows at a time, with 3, and with all rows where no number divides them."""
    x, labels, kernel = cases.logits(9, samples=samples), cases.class_ids(9, samples), jnp.eye(9)
    weights, exist = cases.weights(samples), jnp.arange(9) != 4
    x = x.at[0].set(jnp.nan)  # its weight is 0

    def loss(x, temperature):
        s = softjax.linear_statistics(x, kernel, labels, where=exist)
        numbers = [jnp.where(weights > 0, n.astype(jnp.float32), 0) for n in s]
        given = {"weights": weights, "reduction": "sum", "temperature": temperature}
        of_teacher = [
            softjax.linear_divergence(x, kernel, jnp.sin(x), kernel, kind=k, **given)
            for k in ("forward_kl", "jensen_shannon")
        ]
        fused = softjax.linear_cross_entropy(x, kernel, labels, weights=weights)
        return sum(jnp.vdot(jnp.cos(n), n) for n in numbers) + sum(of_teacher) + fused, s

    def both(*arrays):
        return jax.jit(jax.value_and_grad(lambda *a: loss(*a), (0, 1), has_aux=True))(*arrays)

    expected = both(x, jnp.float32(2))
    monkeypatch.setattr(one_cpu, "_CACHE_BYTES", 5 * 9 * 4)
    jax.clear_caches()
    assert one_cpu._rows_per_step(x) == {24: 4, 21: 3, 23: None}[samples]
    for ours, theirs in zip(*map(jax.tree.leaves, (both(x, jnp.float32(2)), expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
    jax.clear_caches()
