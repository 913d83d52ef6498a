"""The metrics against scikit-learn on real predictions, and their edge cases against NumPy."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import predictions
import pytest
from covering import slow
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

import softjax
from softjax import metrics

X, Y = predictions.held_out()
S = softjax.statistics(X, Y)
W = np.random.default_rng(0).uniform(0, 2, len(Y)).astype(np.float32)
W[::5] = 0
METRICS = {
    "accuracy": metrics.accuracy,
    "top_k_accuracy": lambda s, weights=None: metrics.top_k_accuracy(s, 3, weights),
    "perplexity": metrics.perplexity,
    "brier_score": metrics.brier_score,
    "expected_error": lambda s, weights=None: metrics.calibration(s, 10, weights).expected_error(),
    "maximum_error": lambda s, weights=None: metrics.calibration(s, 10, weights).maximum_error(),
}


def probabilities(x=X):
    e = np.exp(np.asarray(x, np.float64) - np.max(x, 1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def close(actual, expected, rtol=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol)


@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
def test_means_equal_scikit_learn(weights):
    q, options = probabilities(), {"sample_weight": weights}
    close(metrics.accuracy(S, weights), sklearn_metrics.accuracy_score(Y, q.argmax(1), **options))
    for k in (1, 2, 5, 9):
        close(metrics.top_k_accuracy(S, k, weights), sklearn_metrics.top_k_accuracy_score(Y, q, k=k, **options))
    close(metrics.perplexity(S, weights), np.exp(sklearn_metrics.log_loss(Y, q, **options)))
    close(metrics.brier_score(S, weights), sklearn_metrics.brier_score_loss(Y, q, scale_by_half=False, **options))


def test_two_classes_have_twice_the_binary_brier_score():
    x, y = predictions.held_out(classes=2)
    expected = 2 * sklearn_metrics.brier_score_loss(y, probabilities(x)[:, 1], scale_by_half=True)
    close(metrics.brier_score(softjax.statistics(x, y)), expected)


@pytest.mark.parametrize("bins", [1, 4, 10, 15])
def test_calibration_curve_equals_scikit_learn(bins):
    q = probabilities()
    accuracy, confidence = calibration_curve(q.argmax(1) == Y, q.max(1), n_bins=bins)
    curve = metrics.calibration(S, bins).curve()
    fetched = jax.device_get(metrics.calibration(S, bins)).curve()  # of NumPy arrays, as from a checkpoint
    jax.tree.map(np.testing.assert_array_equal, fetched, curve)
    occupied = np.asarray(curve.share) > 0
    close(curve.accuracy[occupied], accuracy)
    close(curve.confidence[occupied], confidence)
    close(curve.share.sum(), 1)
    assert np.isnan(curve.accuracy[~occupied]).all()
    assert np.isnan(curve.confidence[~occupied]).all()


def test_calibration_of_weighted_samples():
    q, bins = probabilities(), 12
    measured = metrics.calibration(S, bins, W)
    correct, confidence = q.argmax(1) == Y, q.max(1)
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    expected = [np.bincount(index, W * values, bins) for values in (np.ones(len(Y)), confidence, correct)]
    close([measured.weight, measured.confidence, measured.correct], expected, 2e-5)
    gap = np.abs(expected[2] - expected[1])
    close(measured.expected_error(), gap.sum() / W.sum(), 2e-5)
    close(measured.maximum_error(), (gap / np.maximum(expected[0], 1e-9)).max(), 2e-5)


def test_calibrations_add_up():
    """By `+`, by `sum` and in a `scan`. A `Calibration` that `vmap` stacked has the errors of each batch."""
    x, y, w = (a[:1400].reshape(7, 200, *a.shape[1:]) for a in (jnp.asarray(X), jnp.asarray(Y), jnp.asarray(W)))
    at_once = metrics.calibration(jax.tree.map(lambda n: n[:1400], S), 10, W[:1400])

    def step(total, batch):
        x, y, w = batch
        return total + metrics.calibration(softjax.statistics(x, y), 10, w), None

    scanned, _ = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, at_once), (x, y, w))
    batches = [metrics.calibration(softjax.statistics(x, y), 10, w) for x, y, w in zip(x, y, w, strict=True)]
    for total in (batches[0] + batches[1] + sum(batches[2:]), sum(batches), scanned):
        assert isinstance(total, metrics.Calibration)
        for field in ("weight", "confidence", "correct"):
            close(getattr(total, field), getattr(at_once, field), 1e-5)
    stacked = jax.vmap(lambda x, y, w: metrics.calibration(softjax.statistics(x, y), 10, w))(x, y, w)
    fifth = jax.tree.map(lambda a: a[4], stacked)
    for method in ("expected_error", "maximum_error", "curve"):
        for found, wanted in zip(*(jax.tree.leaves(getattr(c, method)()) for c in (stacked, fifth)), strict=True):
            close(found[4], wanted, 1e-6)


@pytest.mark.parametrize("jitted", [True, False])
def test_calibrations_add_up_beyond_2_to_24(jitted):
    """A float32 sum of 2²⁴ stays there if 1, or a confidence below 1, is added to it."""
    large = jnp.array([0.0, 2.0**24])
    one = metrics.calibration(with_peak_entropy(np.float32(0.25)), 2)

    def add_64(start):
        return jax.lax.scan(lambda total, _: (total + one, None), start, length=64)[0]

    total = (jax.jit(add_64) if jitted else add_64)(metrics.Calibration(large, 0.75 * large, large))
    np.testing.assert_array_equal(total.weight, [0, 2**24 + 64])
    np.testing.assert_array_equal(total.correct, [0, 2**24 + 64])
    confidence = 0.75 * 2**24 + 64 * np.float64(one.confidence[1])
    np.testing.assert_allclose(total.confidence, [0, confidence], rtol=2**-24)
    close(total.expected_error(), 1 - confidence / (2**24 + 64), 1e-6)
    close((one + total).weight, (total + one).weight, 0)
    summed = jax.vmap(lambda c: jax.lax.psum(c, "batch"), axis_name="batch")(jax.tree.map(lambda a: a[None], total))
    close(summed.expected_error()[0], total.expected_error(), 1e-6)


def test_a_calibration_adds_only_to_one_with_the_same_bins():
    a, b = metrics.calibration(S, 10), metrics.calibration(S, 1)
    with pytest.raises(ValueError, match=r"`Calibration`s that are added must have the same bins, got \(10,\) and"):
        a + b
    for other in (1, (0, 0, 0), np.ones(10)):
        with pytest.raises(TypeError):
            a + other
    with pytest.raises(TypeError):
        1 + a


def with_peak_entropy(peak_entropy):
    """`Statistics` of correct predictions with the confidence exp(−peak_entropy)."""
    peak_entropy = jnp.asarray(peak_entropy, jnp.float32)
    zeros, rank = jnp.zeros_like(peak_entropy), jnp.zeros(peak_entropy.shape, jnp.int32)
    statistics = dict.fromkeys(softjax.Statistics._fields, zeros)
    return softjax.Statistics(**statistics | {"peak_entropy": peak_entropy, "prediction": rank, "label_rank": rank})


# row n has n + 1 equal logits, so its confidence is 1 / (n + 1)
EQUAL = softjax.statistics(
    jnp.where(jnp.arange(40)[None] <= jnp.arange(40)[:, None], 3.0, -jnp.inf), jnp.zeros(40, int)
)


@pytest.mark.parametrize("bins", [1, 2, 3, 5, 7, 10, 15, 100])
def test_bins_are_closed_to_the_right(bins):
    """For confidences 1/n of n equal logits, each edge of a bin, and confidences that round to 0 and 1."""

    @jax.jit
    def bin_of(s):
        weight = jax.vmap(lambda s: metrics.calibration(s, bins).weight)(s)
        return jnp.where(weight.sum(1) == 1, jnp.argmax(weight, 1), -1)

    np.testing.assert_array_equal(bin_of(EQUAL), -(-bins // np.arange(1, 41)) - 1)  # ⌈bins / n⌉ − 1
    edges, index = np.arange(1, bins + 1) / bins, np.arange(bins)
    np.testing.assert_array_equal(bin_of(with_peak_entropy(-np.log(edges))), index)
    np.testing.assert_array_equal(bin_of(with_peak_entropy(-np.log(edges - 0.5 / bins))), index)
    np.testing.assert_array_equal(
        bin_of(with_peak_entropy(-np.log(edges * (1 + 3e-6)))), np.minimum(index + 1, bins - 1)
    )
    last = bins - 1
    np.testing.assert_array_equal(
        bin_of(with_peak_entropy([200.0, jnp.inf, 0.0, 1e-9, 1e-30])), [0, 0, last, last, last]
    )


def test_a_nan_confidence_gives_nan_errors():
    measured = metrics.calibration(with_peak_entropy([jnp.nan, 0.1]), 5)
    assert measured.weight.sum() == 2
    assert np.isnan(measured.expected_error())
    assert np.isnan(measured.maximum_error())


def test_top_k_accuracy_breaks_ties_as_lax_top_k():
    x = jnp.asarray([[1.0, 3, 3, 2], [1, 1, 1, 1]])
    s = softjax.statistics(x, jnp.array([2, 3]))
    expected = [0, 0.5, 0.5, 1, 1, 1]
    for k, accuracy in zip((1, 2, 3, 4, 5, 2**40), expected, strict=True):
        assert metrics.top_k_accuracy(s, k) == accuracy


def test_labels_out_of_range_or_masked():
    """Accuracy counts both as wrong for every k. The perplexity is NaN for the first and infinite for the second."""
    x = cases.logits(4, samples=4)
    where = jnp.array([True, True, True, False])
    s = softjax.statistics(x, jnp.array([-1, 4, 3, 0]), where=where)
    correct = float(s.label_rank[3] == 0)
    assert metrics.accuracy(s) == correct / 4
    assert metrics.top_k_accuracy(s, 2**31 + 5) == 0.25
    assert np.isnan(metrics.perplexity(s))
    assert np.isnan(metrics.brier_score(s))
    measured = metrics.calibration(s, 3)
    assert measured.weight.sum() == 4
    assert measured.correct.sum() == correct
    known = jnp.array([False, False, True, True])
    assert metrics.perplexity(s, known) == jnp.inf
    assert 0.5 < metrics.brier_score(s, known) < 2


@pytest.mark.parametrize("name", METRICS)
def test_ignored_samples_may_hold_anything(name):
    inf, nan = jnp.inf, jnp.nan
    x = jnp.array([[1.0, 3, 2], [3, 1, 0], [nan, 0, 0], [inf, 1, inf], [-inf, -inf, -inf], [1, 2, 3]])
    y, w = jnp.array([1, 1, 0, 0, 1, -100]), jnp.array([1.0, 2, 0, 0, 0, 0])
    function = METRICS[name]

    def measured(x, y, w=None, where=None):
        return function(softjax.statistics(x, y, where=where), w)

    expected = measured(x[:2], y[:2], w[:2])
    assert np.isfinite(expected)
    close(measured(x, y, w), expected)
    close(measured(x, y, w > 0), measured(x[:2], y[:2]))
    without_samples = 1.0 if name == "perplexity" else 0.0
    assert measured(x, y, jnp.zeros(6)) == without_samples
    assert measured(x[:0], y[:0]) == without_samples
    # a row in which no class exists is ignored, as in a mean of losses
    exist = jnp.arange(6)[:, None] < 2
    close(measured(x, jnp.maximum(y, 0), where=exist), measured(x[:2], y[:2]))


@pytest.mark.parametrize("name", ["accuracy", "perplexity", "expected_error"])
def test_every_shape_and_transform(name):
    """For a single sample, for several sample axes with broadcast weights, under `jit` and `vmap`."""
    function = METRICS[name]
    x, y = cases.logits(5, samples=12).reshape(3, 4, 5), cases.class_ids(5, 12).reshape(3, 4)
    w = jnp.array([[1.0], [0.0], [2.5]])
    flat = function(softjax.statistics(x.reshape(12, 5), y.reshape(12)), w.repeat(4, 1).reshape(12))
    s = softjax.statistics(x, y)
    close(jax.jit(function)(s, w), flat)
    assert flat.dtype == jnp.float32
    assert flat.shape == ()
    mapped = jax.jit(jax.vmap(lambda x, y: function(softjax.statistics(x, y))))(x, y)
    close(mapped, [function(jax.tree.map(lambda a, i=i: a[i], s)) for i in range(3)], 1e-5)
    assert np.isfinite(function(softjax.statistics(x[0, 0], y[0, 0])))


def test_float64_metrics(x64):
    x = jnp.asarray(X, jnp.float64)
    s = softjax.statistics(x, Y)
    for function in METRICS.values():
        assert function(s, W).dtype == jnp.float64
    q = probabilities()
    close(metrics.brier_score(s), sklearn_metrics.brier_score_loss(Y, q, scale_by_half=False), 1e-12)
    close(metrics.perplexity(s), np.exp(sklearn_metrics.log_loss(Y, q)), 1e-12)


def test_the_brier_score_of_confident_rows_and_of_distributions():
    def score(x, y):
        return metrics.brier_score(softjax.statistics(x, y))

    close(score(jnp.array([10.0, 0, 0]), jnp.array(0)), 1.2364678e-8)
    x = jnp.array([20.0, 0, 0])
    close(jax.grad(score)(x, jnp.array(1)), [1.23669218e-8, -8.2446145e-9, -4.1223073e-9])
    x, p = cases.logits(5), cases.distribution(5)
    close(score(x, p), ((probabilities(x) - np.asarray(p, np.float64)) ** 2).sum(1).mean())


@pytest.mark.parametrize("gap", [3.0, 6.0, 10.0, 17.0, 40.0])
def test_the_brier_score_of_confident_rows(gap):
    """Where 1 − 2 q_y + S cancels, the result lies between (1 − q_y)² and 2 (Σ_{j≠y} q_j² + (1 − q_y)²)."""
    for others in ([0.0], [0.0, 0.5], [0.0] * 40):
        x = np.asarray([[gap, *others], [*others, gap]])
        for y in (0, len(others)):
            e = np.exp(x - gap)
            e[np.arange(2), [0, -1]] = 0
            rest = e.sum(1, keepdims=True)
            q = np.where(e > 0, e, 1) / (1 + rest)
            correct = np.array([y == 0, y == len(others)])[:, None]
            label = np.arange(len(others) + 1)[None] == y
            not_q = np.where(correct, rest / (1 + rest), 1 - q)
            expected = np.where(label, not_q**2, q**2).sum(1)
            score = np.asarray([metrics.brier_score(softjax.statistics(jnp.asarray(row), y)) for row in x])
            assert (score >= 0.9999 * np.where(correct[:, 0], (rest[:, 0] / (1 + rest[:, 0])) ** 2, 0)).all()
            assert (score <= 2 * expected * 1.0001).all()
            assert (np.abs(score - expected) <= 1e-6 * expected + 3e-7 * (expected < 1)).all()


@pytest.mark.parametrize("call", [*METRICS.values(), metrics.calibration, metrics.accuracy])
def test_logits_instead_of_statistics_are_refused(call):
    with pytest.raises(TypeError, match="`s` must be `Statistics`, as"):
        call(cases.logits(5))


def test_refused_arguments():
    s = softjax.statistics(cases.logits(5), cases.class_ids(5))
    for name, call in (("k", lambda n: metrics.top_k_accuracy(s, n)), ("bins", lambda n: metrics.calibration(s, n))):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
            call(0)
        for value in (1.0, "2", None, jnp.ones(2)):
            with pytest.raises(TypeError, match=f"`{name}` must be an integer, got"):
                call(value)
    for function in (*METRICS.values(), lambda s, w: metrics.calibration(s, 15, w)):
        with pytest.raises(ValueError, match=r"`weights` must broadcast to the shape of .*\(11,\); got \(5,\)"):
            function(s, jnp.ones(5))
        with pytest.raises(TypeError, match="`weights` must be"):
            function(s, "all")


def test_a_row_of_minus_inf_is_not_correct():
    s = softjax.statistics(jnp.full((2, 3), -jnp.inf).at[1, 0].set(0.0), jnp.array([0, 0]))
    np.testing.assert_array_equal(s.label_rank, [-1, 0])
    np.testing.assert_array_equal(s.max_logit, [-np.inf, 0])
    assert softjax.metrics.accuracy(s) == 0.5


@pytest.mark.parametrize("where", [*slow(None), jnp.arange(5) < 4])
def test_gradients_ignore_rows_of_weight_0_whatever_they_hold(where):
    """Of metrics and losses on statistics, dense and of a layer: 0 in these rows, and no NaN elsewhere."""
    x, w = cases.logits(5, samples=6), jnp.array([1.0, 0.0, 1.0, 0.0, 2.0, 1.0])
    bad, ids = x.at[1].set(jnp.nan).at[3, 2].set(jnp.inf), cases.class_ids(4, samples=6)
    sparse = softjax.SparseLabels(jnp.stack([ids, (ids + 1) % 4], -1), jnp.tile(jnp.array([0.75, 0.25]), (6, 1)))
    functions = {
        "perplexity": lambda s: metrics.perplexity(s, w),
        "brier_score": lambda s: metrics.brier_score(s, w),
        "expected_error": lambda s: metrics.calibration(s, 4, w).expected_error(),
        "focal": lambda s: jnp.sum(jnp.where(w > 0, softjax.losses.focal(s), 0)),
        "all": lambda s: jnp.sum(jnp.where(w > 0, sum(cases.floating(s).values()), 0)),
    }

    @jax.jit
    def gradients(x):
        found = {}
        for kind, labels in {"ids": ids, "distribution": jax.nn.one_hot(ids, 5), "sparse": sparse}.items():
            for name, function in functions.items():

                def dense(x, labels=labels, function=function):
                    return function(softjax.statistics(x, labels, where=where))

                def layer(hidden, kernel, labels=labels, function=function):
                    return function(softjax.linear_statistics(hidden, kernel, labels, where=where, block_size=4))

                if kind == "ids" or name == "all":
                    found[kind, name] = jax.grad(dense)(x), *jax.grad(layer, (0, 1))(x, jnp.eye(5))
        return found

    for clean, found in zip(*map(jax.tree.leaves, (gradients(x), gradients(bad))), strict=True):
        if len(clean) == 6:
            np.testing.assert_array_equal(found[w == 0], 0)
        np.testing.assert_allclose(found, clean, rtol=1e-5, atol=1e-6)


def test_a_row_that_counts_keeps_its_nan():
    x = cases.logits(5, samples=3).at[1].set(jnp.nan)
    gradient = jax.grad(lambda x: metrics.perplexity(softjax.statistics(x, cases.class_ids(5, samples=3))))(x)
    assert jnp.isnan(gradient).all()
    rows = jax.grad(lambda x: softjax.statistics(x, cases.class_ids(5, samples=3)).entropy.sum())(x)
    np.testing.assert_array_equal(jnp.isnan(rows).all(1), [False, True, False])
