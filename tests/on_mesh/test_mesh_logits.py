"""Losses of logits sharded over samples and classes, in every world, against the float64 oracle."""

import cases
import exact
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import worlds
from closeness import EPS
from covering import covering
from jax.sharding import PartitionSpec as P
from worlds import CLASSES, LOGITS, NAMES, ROWS, SAMPLES

import softjax

EXIST = ((jnp.arange(CLASSES) % 3 > 0) & (jnp.arange(CLASSES) < 18))[None]  # on some shards none do


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


def derivatives(world, shape, loss, arrays, specs, out=worlds.SAME):
    """The value of a loss of the first array, its gradient, and its derivative along its cosine, by one program."""
    f = worlds.split(world, shape, loss, specs, out)
    with worlds.context(world, shape):
        first, *rest = worlds.placed(world, shape, arrays, specs)
        g = jnp.asarray(1.0) if out == worlds.SAME else cases.cotangent(SAMPLES)
        (g,) = worlds.placed(world, shape, [g], [out])

        @jax.jit
        def all_three(g, first, *rest):
            value, pull = jax.vjp(lambda x: f(x, *rest), first)
            tangent = jax.jvp(lambda x: f(x, *rest), (first,), (jnp.cos(first),))[1]
            return value, pull(g.astype(value.dtype))[0], tangent

        return jax.tree.map(np.asarray, all_three(g, first, *rest))


def check(world, shape, x, y, w, where=None, **options):
    out = ROWS if options.get("reduction") == "none" else P()
    specs = [LOGITS, LOGITS if y.ndim == 2 else ROWS, ROWS, P(None, "classes")]
    exist = jnp.ones((1, CLASSES), bool) if where is None else where
    masked = where is not None

    def loss(x, y, w, exist):
        return softjax.cross_entropy(x, y, weights=w, where=exist if masked else None, **NAMES, **options)

    value, gradient, tangent = derivatives(world, shape, loss, (x, y, w, exist), specs, out)
    reduction = options.pop("reduction", "mean")
    over = {"mean": np.asarray(w, np.float64).sum(), "sum": 1.0, "none": 1.0}[reduction]
    g = np.asarray(cases.cotangent(SAMPLES), np.float64) if reduction == "none" else np.ones(SAMPLES)
    rows, dx = oracle.cross_entropy(x, y, weights=w, where=where, cotangent=g / over, **options)
    expected = rows if reduction == "none" else rows.sum() / over
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, dx, rtol=1e-5, atol=1e-5 * np.abs(dx).max())
    if reduction != "none":
        moved = (dx * np.cos(np.asarray(x, np.float64))).sum()
        np.testing.assert_allclose(tangent, moved, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("world", "shape"), worlds.MESHES)
def test_every_mesh(world, shape):
    check(world, shape, *example())


@pytest.mark.parametrize(("world", "soft", "options"), covering(worlds.WORLDS, OPTIONS))
def test_every_option(world, soft, options):
    x, y, w = example(soft=soft)
    if "where" in options and not soft:
        y = y // 3 * 3 % 18 + 1
    check(world, (2, 4), x, y, w, **options)


@pytest.mark.parametrize(("world", "spread"), covering(worlds.WORLDS, [0.02, 100.0], quick=(0, 3)))
def test_flat_and_peaked(world, spread):
    check(world, (2, 4), *example(spread))


@pytest.mark.parametrize("world", worlds.FEW)
def test_rows_and_shards_at_the_edges(world):
    """A shard of −inf, a NaN in a row of weight 0, ids out of range, a shard of samples of weight 0."""
    x, y, w = example()
    x = x.at[:, 6:12].set(-jnp.inf).at[0].set(jnp.nan).at[9, 20].set(jnp.inf).at[3, 1].set(jnp.inf)
    y = jnp.where((y >= 6) & (y < 12), 0, y).at[9].set(20).at[4].set(-1).at[8].set(CLASSES).at[3].set(1)
    w = jnp.ones(SAMPLES).at[jnp.array([0, 4, 8])].set(0).at[12:].set(0)

    def loss(x, y, w, **names):
        return softjax.cross_entropy(x, y, weights=w, **names)

    expected = jax.value_and_grad(loss)(x, y, w)
    f = worlds.split(world, (4, 2), lambda *a: loss(*a, **NAMES), [LOGITS, ROWS, ROWS], P())
    with worlds.context(world, (4, 2)):
        x, y, w = worlds.placed(world, (4, 2), (x, y, w), [LOGITS, ROWS, ROWS])
        value, gradient = jax.jit(jax.value_and_grad(f))(x, y, w)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("world", "invalid"), covering(worlds.WORLDS, [CLASSES, -(2**31)], quick=(0, 3)))
def test_an_id_out_of_range_is_nan_on_every_shard(world, invalid):
    x, y, _ = example()

    def loss(x, y):
        return softjax.cross_entropy(x, y, reduction="none", **NAMES)

    f = worlds.split(world, (2, 4), loss, [LOGITS, ROWS], ROWS)
    with worlds.context(world, (2, 4)):
        x, y = worlds.placed(world, (2, 4), (x, y.at[5].set(invalid)), [LOGITS, ROWS])
        (g,) = worlds.placed(world, (2, 4), [jnp.ones(SAMPLES)], [ROWS])

        @jax.jit
        def both(x, y, g):
            rows, pull = jax.vjp(lambda x: f(x, y), x)
            return rows, pull(g)[0]

        rows, gradient = map(np.asarray, both(x, y, g))
    assert np.isnan(rows).tolist() == [i == 5 for i in range(SAMPLES)]
    assert not gradient[5].any()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("world", "function"), covering(worlds.WORLDS, [softjax.softmax, softjax.log_softmax], quick=(0, 1, 4))
)
def test_softmax(world, function):
    x, _, _ = example()
    g = cases.logits(CLASSES, 1.0, SAMPLES, seed=1)

    def all_of(f, x, g):
        value, pull = jax.vjp(f, x)
        return value, pull(g)[0], jax.jvp(f, (x,), (g,))[1]

    expected, gradient, moved = jax.jit(lambda x, g: all_of(function, x, g))(x, g)
    f = worlds.split(world, (2, 4), lambda x: function(x, axis_name="classes"), [LOGITS], LOGITS)
    with worlds.context(world, (2, 4)):
        x, g = worlds.placed(world, (2, 4), (x, g), [LOGITS, LOGITS])
        q, pulled, tangent = jax.jit(lambda x, g: all_of(f, x, g))(x, g)
        for actual, right in ((q, expected), (pulled, gradient), (tangent, moved)):
            np.testing.assert_allclose(actual, right, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("world", "soft"), covering(worlds.WORLDS, [False, True], quick=(1, 4)))
def test_statistics(world, soft):
    """Every statistic, and the VJP of each alone, of logits with ties across the shards."""
    x, y, _ = example(soft=soft)
    x = x.at[3].set(jnp.round(x[3])).at[4].set(0.5)
    floating = oracle.statistics(x, y)
    expected = jax.jit(softjax.statistics)(x, y)
    g = np.asarray(cases.cotangent(SAMPLES))

    def of(x, y):
        return softjax.statistics(x, y, axis_name="classes")

    specs = [LOGITS, LOGITS if soft else ROWS]
    each = [
        worlds.split(world, (2, 4), lambda x, y, n=n: getattr(of(x, y), n), specs, ROWS)
        for n in softjax.Statistics._fields
    ]
    with worlds.context(world, (2, 4)):
        x, y, ct = worlds.placed(world, (2, 4), (x, y, jnp.asarray(g)), [*specs, ROWS])

        @jax.jit
        def all_of_them(x, y, ct):
            found = {}
            for name, f in zip(softjax.Statistics._fields, each, strict=True):
                if name in floating:
                    value, pull = jax.vjp(lambda x, f=f: f(x, y), x)
                    found[name] = value, pull(ct)[0]
                else:
                    found[name] = f(x, y), None
            return found

        found = all_of_them(x, y, ct)
    for name, (value, slope) in floating.items():
        np.testing.assert_allclose(found[name][0], value, rtol=1e-5, atol=1e-5, err_msg=name)
        at_ties = (
            slice(4, 5) if name in ("max_logit", "peak_entropy") else slice(0, 0)
        )  # the oracle's argmax, in float64
        gradient = np.delete(np.asarray(found[name][1]) - slope * g[:, None], at_ties, 0)
        np.testing.assert_allclose(gradient, 0, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(found["prediction"][0], expected.prediction)
    np.testing.assert_array_equal(found["label_rank"][0], expected.label_rank)


@pytest.mark.parametrize(("world", "gap"), covering(worlds.WORLDS, [17.0, 40.0, 80.0], quick=(0, 2, 4)))
def test_confident_rows_are_exact(world, gap):
    """The peak on any shard, the label on it or not, and a gradient whose rows sum to 0."""
    x = np.asarray(cases.logits(CLASSES, 0.5, SAMPLES), np.float64)
    peak = np.arange(SAMPLES) * 5 % CLASSES
    x[np.arange(SAMPLES), peak] = x.max(1) + gap
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(np.where(np.arange(SAMPLES) % 3, peak, 0), jnp.int32)

    def loss(x, y):
        return softjax.cross_entropy(x, y, reduction="sum", base=np.e, **NAMES)

    f = worlds.split(world, (2, 4), loss, [LOGITS, ROWS], P())
    with worlds.context(world, (2, 4)):
        x_, y_ = worlds.placed(world, (2, 4), (x, y), [LOGITS, ROWS])
        gradient = np.asarray(jax.jit(jax.grad(f))(x_, y_))
    _, expected, sizes = exact.cross_entropy(x, y)
    assert (np.abs(gradient - expected) <= (8 + gap + 3) * EPS * sizes).all()


def rows_with_nan_and_signed_zeros():
    """Row 0 holds only NaN, rows 1 and 2 one NaN on the first or the last shard, row 3 zeros of both signs."""
    x, y, _ = example()
    x = x.at[0].set(jnp.nan).at[1, 0].set(jnp.nan).at[2, -1].set(jnp.nan)
    zeros = jnp.where(jnp.arange(CLASSES) % 3 == 1, 0.0, -0.0)
    return x.at[3].set(zeros), y.at[3].set(CLASSES - 1)


@pytest.mark.parametrize(("world", "kind"), covering(worlds.WORLDS, ["ids", "one-hot", "sparse"], quick=(0, 4)))
def test_rows_with_nan_and_signed_zeros(world, kind):
    """A row with NaN has no prediction and no rank; of equal zeros, 0 precedes −0, as in `jax.lax.top_k`."""
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
    sharded = worlds.split(world, (2, 4), statistics, specs, P("data", None))
    with worlds.context(world, (2, 4)):
        values = np.asarray(sharded(*worlds.placed(world, (2, 4), (x, *leaves), specs)))
    one_device = np.asarray(jax.jit(lambda x: statistics_of_one_device(x, labels, names))(x))
    np.testing.assert_array_equal(values, one_device)
    np.testing.assert_array_equal(values[:3], [[-1, -1, np.nan]] * 3)
    np.testing.assert_array_equal(values[3:, 0], order[3:, 0])
    ranks = [list(row).index(label) for row, label in zip(order, y, strict=True)]
    np.testing.assert_array_equal(values[3:, 1], ranks[3:])


def statistics_of_one_device(x, labels, names):
    s = softjax.statistics(x, labels)
    return jnp.stack([getattr(s, name).astype(jnp.float32) for name in names], -1)


@pytest.mark.parametrize("world", worlds.FEW)
def test_a_row_with_nan_is_not_correct_beside_a_fused_loss(world):
    x, y = rows_with_nan_and_signed_zeros()
    kernel = jnp.eye(CLASSES)

    def correct(hidden, kernel, y):
        def row_loss(s):
            return s.cross_entropy, (s.label_rank >= 0) | (s.prediction >= 0) | jnp.isfinite(s.max_logit)

        _, aux = softjax.linear_loss(row_loss, hidden, kernel, y, has_aux=True, block_size=3, **NAMES)
        return aux

    specs = [P("data", None), P(None, "classes"), ROWS]
    sharded = worlds.split(world, (2, 4), correct, specs, ROWS)
    with worlds.context(world, (2, 4)):
        found = np.asarray(sharded(*worlds.placed(world, (2, 4), (x, kernel, y), specs)))
    assert found.tolist() == [False] * 3 + [True] * (SAMPLES - 3)


@pytest.mark.parametrize("world", worlds.FEW)
def test_the_top_k_of_signed_zeros(world):
    logits = jnp.asarray([[-0.0, 0, 0, -0.0, 0, 0, 1, 1]], jnp.float32)

    def top_k(hidden, kernel):
        return softjax.linear_top_k(hidden, kernel, 5, axis_name="classes").ids

    specs = [P(None, None), P(None, "classes")]
    sharded = worlds.split(world, (1, 2), top_k, specs, P(None, None))
    with worlds.context(world, (1, 2)):
        found = sharded(*worlds.placed(world, (1, 2), (jnp.ones((1, 1)), logits), specs))
    np.testing.assert_array_equal(found, jax.lax.top_k(logits, 5)[1])
