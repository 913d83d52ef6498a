"""Losses of logits sharded over samples and classes, in every setup of mesh_setups.py, against float64."""

import cases
import exact
import jax
import jax.numpy as jnp
import mesh_setups
import numpy as np
import oracle
import pytest
from closeness import EPS
from covering import covering
from jax.sharding import PartitionSpec as P
from mesh_setups import CLASSES, LOGITS, NAMES, ROWS, SAMPLES

import softjax
from softjax._mesh import axes

EXIST = ((jnp.arange(CLASSES) % 3 > 0) & (jnp.arange(CLASSES) < 18))[None]  # on some shards no class exists


OPTIONS = [
    (True, {"label_smoothing": 0.2, "z_loss": 0.01, "base": 2.0}),
    (True, {"reduction": "sum"}),
    (False, {"reduction": "none", "label_smoothing": 0.1, "z_loss": 0.01}),
    (True, {"where": EXIST, "reduction": "none"}),
    (False, {"where": EXIST, "label_smoothing": 0.1}),
]


def example(spread=3.0, soft=False):
    x = cases.logits(CLASSES, spread, SAMPLES)
    y = cases.distribution(CLASSES, SAMPLES) if soft else cases.class_ids(CLASSES, SAMPLES)
    return x, y, cases.weights(SAMPLES)


def derivatives(setup, shape, loss, arrays, specs, out=mesh_setups.REPLICATED):
    """The value of a loss, its VJP by the first array, and its JVP with the tangent cos(array), by one program."""
    f = mesh_setups.shard_function(setup, shape, loss, specs, out)
    with mesh_setups.mesh_context(setup, shape):
        first, *rest = mesh_setups.placed(setup, shape, arrays, specs)
        g = jnp.asarray(1.0) if out == mesh_setups.REPLICATED else cases.cotangent(SAMPLES)
        (g,) = mesh_setups.placed(setup, shape, [g], [out])

        @jax.jit
        def value_vjp_and_jvp(g, first, *rest):
            value, pull = jax.vjp(lambda x: f(x, *rest), first)
            tangent = jax.jvp(lambda x: f(x, *rest), (first,), (jnp.cos(first),))[1]
            return value, pull(g.astype(value.dtype))[0], tangent

        return jax.tree.map(np.asarray, value_vjp_and_jvp(g, first, *rest))


def check(setup, shape, x, y, w, where=None, **options):
    out = ROWS if options.get("reduction") == "none" else P()
    specs = [LOGITS, LOGITS if y.ndim == 2 else ROWS, ROWS, P(None, "classes")]
    exist = jnp.ones((1, CLASSES), bool) if where is None else where
    masked = where is not None

    def loss(x, y, w, exist):
        return softjax.cross_entropy(x, y, weights=w, where=exist if masked else None, **NAMES, **options)

    value, gradient, tangent = derivatives(setup, shape, loss, (x, y, w, exist), specs, out)
    reduction = options.pop("reduction", "mean")
    divisor = {"mean": np.asarray(w, np.float64).sum(), "sum": 1.0, "none": 1.0}[reduction]
    g = np.asarray(cases.cotangent(SAMPLES), np.float64) if reduction == "none" else np.ones(SAMPLES)
    rows, dx = oracle.cross_entropy(x, y, weights=w, where=where, cotangent=g / divisor, **options)
    expected = rows if reduction == "none" else rows.sum() / divisor
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, dx, rtol=1e-5, atol=1e-5 * np.abs(dx).max())
    if reduction != "none":
        expected_tangent = (dx * np.cos(np.asarray(x, np.float64))).sum()
        np.testing.assert_allclose(tangent, expected_tangent, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("setup", "shape"), mesh_setups.MESHES)
def test_every_mesh(setup, shape):
    check(setup, shape, *example())


@pytest.mark.parametrize(("setup", "soft", "options"), covering(mesh_setups.SETUPS, OPTIONS))
def test_every_option(setup, soft, options):
    x, y, w = example(soft=soft)
    if "where" in options and not soft:
        y = y // 3 * 3 % 18 + 1
    check(setup, (2, 4), x, y, w, **options)


@pytest.mark.parametrize(("setup", "spread"), covering(mesh_setups.SETUPS, [0.02, 100.0], quick=(0, 3)))
def test_flat_and_peaked(setup, spread):
    check(setup, (2, 4), *example(spread))


@pytest.mark.parametrize("setup", mesh_setups.TWO_QUICK)
def test_edge_cases_of_rows_and_shards(setup):
    """A shard of −inf, NaN and a label out of range in ignored rows, a shard of ignored samples."""
    x, y, w = example()
    x = x.at[:, 6:12].set(-jnp.inf).at[0].set(jnp.nan).at[9, 20].set(jnp.inf).at[3, 1].set(jnp.inf)
    y = jnp.where((y >= 6) & (y < 12), 0, y).at[9].set(20).at[4].set(-1).at[8].set(CLASSES).at[3].set(1)
    w = jnp.ones(SAMPLES).at[jnp.array([0, 4, 8])].set(0).at[12:].set(0)

    def loss(x, y, w, **names):
        return softjax.cross_entropy(x, y, weights=w, **names)

    expected = jax.value_and_grad(loss)(x, y, w)
    f = mesh_setups.shard_function(setup, (4, 2), lambda *a: loss(*a, **NAMES), [LOGITS, ROWS, ROWS], P())
    with mesh_setups.mesh_context(setup, (4, 2)):
        x, y, w = mesh_setups.placed(setup, (4, 2), (x, y, w), [LOGITS, ROWS, ROWS])
        value, gradient = jax.jit(jax.value_and_grad(f))(x, y, w)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("setup", "invalid"), covering(mesh_setups.SETUPS, [CLASSES, -(2**31)], quick=(0, 3)))
def test_a_label_out_of_range_gives_nan_on_every_shard(setup, invalid):
    x, y, _ = example()

    def loss(x, y):
        return softjax.cross_entropy(x, y, reduction="none", **NAMES)

    f = mesh_setups.shard_function(setup, (2, 4), loss, [LOGITS, ROWS], ROWS)
    with mesh_setups.mesh_context(setup, (2, 4)):
        x, y = mesh_setups.placed(setup, (2, 4), (x, y.at[5].set(invalid)), [LOGITS, ROWS])
        (g,) = mesh_setups.placed(setup, (2, 4), [jnp.ones(SAMPLES)], [ROWS])

        @jax.jit
        def both(x, y, g):
            rows, pull = jax.vjp(lambda x: f(x, y), x)
            return rows, pull(g)[0]

        rows, gradient = map(np.asarray, both(x, y, g))
    assert np.isnan(rows).tolist() == [i == 5 for i in range(SAMPLES)]
    assert not gradient[5].any()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("setup", "function"), covering(mesh_setups.SETUPS, [softjax.softmax, softjax.log_softmax], quick=(0, 1, 4))
)
def test_softmax(setup, function):
    x, _, _ = example()
    g = cases.logits(CLASSES, 1.0, SAMPLES, seed=1)

    def derivatives_of(f, x, g):
        value, pull = jax.vjp(f, x)
        return value, pull(g)[0], jax.jvp(f, (x,), (g,))[1]

    expected = jax.jit(lambda x, g: derivatives_of(function, x, g))(x, g)
    f = mesh_setups.shard_function(setup, (2, 4), lambda x: function(x, axis_name="classes"), [LOGITS], LOGITS)
    with mesh_setups.mesh_context(setup, (2, 4)):
        x, g = mesh_setups.placed(setup, (2, 4), (x, g), [LOGITS, LOGITS])
        actual = jax.jit(lambda x, g: derivatives_of(f, x, g))(x, g)
        for found, wanted in zip(actual, expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("setup", "soft"), covering(mesh_setups.SETUPS, [False, True], quick=(1, 4)))
def test_statistics(setup, soft):
    """Each statistic and its VJP alone, for logits with ties across the shards."""
    x, y, _ = example(soft=soft)
    x = x.at[3].set(jnp.round(x[3])).at[4].set(0.5)
    floating = oracle.statistics(x, y)
    expected = jax.jit(softjax.statistics)(x, y)
    g = np.asarray(cases.cotangent(SAMPLES))

    def statistics(x, y):
        return softjax.statistics(x, y, axis_name="classes")

    specs = [LOGITS, LOGITS if soft else ROWS]
    functions = [
        mesh_setups.shard_function(setup, (2, 4), lambda x, y, n=n: getattr(statistics(x, y), n), specs, ROWS)
        for n in softjax.Statistics._fields
    ]
    with mesh_setups.mesh_context(setup, (2, 4)):
        x, y, ct = mesh_setups.placed(setup, (2, 4), (x, y, jnp.asarray(g)), [*specs, ROWS])

        @jax.jit
        def values_and_gradients(x, y, ct):
            found = {}
            for name, f in zip(softjax.Statistics._fields, functions, strict=True):
                if name in floating:
                    value, pull = jax.vjp(lambda x, f=f: f(x, y), x)
                    found[name] = value, pull(ct)[0]
                else:
                    found[name] = f(x, y), None
            return found

        found = values_and_gradients(x, y, ct)
    for name, (value, derivative) in floating.items():
        np.testing.assert_allclose(found[name][0], value, rtol=1e-5, atol=1e-5, err_msg=name)
        at_ties = (
            slice(4, 5) if name in ("max_logit", "peak_entropy") else slice(0, 0)
        )  # the oracle's argmax, in float64
        gradient = np.delete(np.asarray(found[name][1]) - derivative * g[:, None], at_ties, 0)
        np.testing.assert_allclose(gradient, 0, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(found["prediction"][0], expected.prediction)
    np.testing.assert_array_equal(found["label_rank"][0], expected.label_rank)


@pytest.mark.parametrize(("setup", "gap"), covering(mesh_setups.SETUPS, [17.0, 40.0, 80.0], quick=(0, 2, 4)))
def test_confident_rows_are_exact(setup, gap):
    """The peak is on any shard, and the label is the peak or another class."""
    x = np.asarray(cases.logits(CLASSES, 0.5, SAMPLES), np.float64)
    peak = np.arange(SAMPLES) * 5 % CLASSES
    x[np.arange(SAMPLES), peak] = x.max(1) + gap
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(np.where(np.arange(SAMPLES) % 3, peak, 0), jnp.int32)

    def loss(x, y):
        return softjax.cross_entropy(x, y, reduction="sum", base=np.e, **NAMES)

    f = mesh_setups.shard_function(setup, (2, 4), loss, [LOGITS, ROWS], P())
    with mesh_setups.mesh_context(setup, (2, 4)):
        sharded_x, sharded_y = mesh_setups.placed(setup, (2, 4), (x, y), [LOGITS, ROWS])
        gradient = np.asarray(jax.jit(jax.grad(f))(sharded_x, sharded_y))
    _, expected, sizes = exact.cross_entropy(x, y)
    assert (np.abs(gradient - expected) <= (8 + gap + 3) * EPS * sizes).all()


def rows_with_nan_and_signed_zeros():
    """Row 0 holds only NaN, rows 1 and 2 one NaN on the first or the last shard, row 3 zeros of both signs."""
    x, y, _ = example()
    x = x.at[0].set(jnp.nan).at[1, 0].set(jnp.nan).at[2, -1].set(jnp.nan)
    zeros = jnp.where(jnp.arange(CLASSES) % 3 == 1, 0.0, -0.0)
    return x.at[3].set(zeros), y.at[3].set(CLASSES - 1)


@pytest.mark.parametrize(("setup", "kind"), covering(mesh_setups.SETUPS, ["ids", "one-hot", "sparse"], quick=(0, 4)))
def test_rows_with_nan_and_signed_zeros(setup, kind):
    """A row with NaN has no prediction and no rank. As in `jax.lax.top_k`, 0 is above −0."""
    x, y = rows_with_nan_and_signed_zeros()
    one_hot = jax.nn.one_hot(y, CLASSES)
    sparse = softjax.SparseLabels(y[:, None], jnp.ones((SAMPLES, 1)))
    labels = {"ids": y, "one-hot": one_hot, "sparse": sparse}[kind]
    order = np.asarray(jax.lax.top_k(x, CLASSES)[1])
    names = ("prediction", "label_rank", "max_logit")

    def statistics(x, *labels):
        labels = softjax.SparseLabels(*labels) if kind == "sparse" else labels[0]
        s = softjax.statistics(x, labels, axis_name="classes")
        return jnp.stack([getattr(s, name).astype(jnp.float32) for name in names], -1)

    leaves = jax.tree.leaves(labels)
    specs = [LOGITS, *([LOGITS] if kind == "one-hot" else [ROWS] * len(leaves))]
    sharded = mesh_setups.shard_function(setup, (2, 4), statistics, specs, P("data", None))
    with mesh_setups.mesh_context(setup, (2, 4)):
        values = np.asarray(sharded(*mesh_setups.placed(setup, (2, 4), (x, *leaves), specs)))
    one_device = np.asarray(jax.jit(lambda x: statistics_of_one_device(x, labels, names))(x))
    np.testing.assert_array_equal(values, one_device)
    np.testing.assert_array_equal(values[:3], [[-1, -1, np.nan]] * 3)
    np.testing.assert_array_equal(values[3:, 0], order[3:, 0])
    ranks = [list(row).index(label) for row, label in zip(order, y, strict=True)]
    np.testing.assert_array_equal(values[3:, 1], ranks[3:])


def statistics_of_one_device(x, labels, names):
    s = softjax.statistics(x, labels)
    return jnp.stack([getattr(s, name).astype(jnp.float32) for name in names], -1)


@pytest.mark.parametrize("setup", mesh_setups.TWO_QUICK)
def test_a_row_with_nan_is_not_correct_in_the_aux_of_a_fused_loss(setup):
    x, y = rows_with_nan_and_signed_zeros()
    kernel = jnp.eye(CLASSES)

    def correct(hidden, kernel, y):
        def row_loss(s):
            return s.cross_entropy, (s.label_rank >= 0) | (s.prediction >= 0) | jnp.isfinite(s.max_logit)

        _, aux = softjax.linear_loss(row_loss, hidden, kernel, y, has_aux=True, block_size=3, **NAMES)
        return aux

    specs = [P("data", None), P(None, "classes"), ROWS]
    sharded = mesh_setups.shard_function(setup, (2, 4), correct, specs, ROWS)
    with mesh_setups.mesh_context(setup, (2, 4)):
        found = np.asarray(sharded(*mesh_setups.placed(setup, (2, 4), (x, kernel, y), specs)))
    assert found.tolist() == [False] * 3 + [True] * (SAMPLES - 3)


@pytest.mark.parametrize("setup", mesh_setups.TWO_QUICK)
def test_the_top_k_of_signed_zeros(setup):
    logits = jnp.asarray([[-0.0, 0, 0, -0.0, 0, 0, 1, 1]], jnp.float32)

    def top_k(hidden, kernel):
        return softjax.linear_top_k(hidden, kernel, 5, axis_name="classes").ids

    specs = [P(None, None), P(None, "classes")]
    sharded = mesh_setups.shard_function(setup, (1, 2), top_k, specs, P(None, None))
    with mesh_setups.mesh_context(setup, (1, 2)):
        found = sharded(*mesh_setups.placed(setup, (1, 2), (jnp.ones((1, 1)), logits), specs))
    np.testing.assert_array_equal(found, jax.lax.top_k(logits, 5)[1])


@pytest.mark.parametrize("device_with_nan", [0, 1])
def test_pmax_over_devices_keeps_nan(device_with_nan):
    x = jnp.array([[1.0, -jnp.inf, -0.0, 3.0], [2.0, -jnp.inf, 0.0, jnp.inf]])
    x = jnp.concatenate([x, jnp.full((2, 1), 7.0).at[device_with_nan].set(jnp.nan)], 1)
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    found = jax.jit(jax.shard_map(lambda x: axes.pmax(x, ("i",)), mesh=mesh, in_specs=P("i"), out_specs=P()))(x)
    np.testing.assert_array_equal(found[0], [2, -np.inf, 0, np.inf, np.nan])
