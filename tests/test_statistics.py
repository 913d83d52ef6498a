"""Each row statistic and its gradient against the float64 oracle; a statistic that is not read costs nothing."""

from functools import partial

import cases
import exact
import few
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from covering import ROUTES, covering, slow

import softjax

FLOATING = list(cases.floating(softjax.statistics(cases.logits(2), cases.class_ids(2))))
SAMPLES = 5
KINDS = ["ids", "one-hot", "distribution", "distribution of mass 3"]


def labels_of(kind, classes):
    ids, p = cases.class_ids(classes), cases.distribution(classes)
    labels = {"ids": ids, "one-hot": jax.nn.one_hot(ids, classes), "distribution": p, "distribution of mass 3": 3 * p}
    return labels[kind]


@jax.jit
def each_with_vjp(x, labels, g):
    """Each floating statistic and its VJP alone for the cotangent g."""

    def floating(x):
        stats = softjax.statistics(x, labels)
        return tuple(getattr(stats, name) for name in FLOATING)

    values, pull = jax.vjp(floating, x)
    one_cotangent = [[g if i == j else jnp.zeros_like(g) for i in range(len(FLOATING))] for j in range(len(FLOATING))]
    gradients = [pull(tuple(cotangents))[0] for cotangents in one_cotangent]
    return dict(zip(FLOATING, zip(values, gradients, strict=True), strict=True))


def test_each_statistic_is_described_under_attributes():
    described = softjax.Statistics.__doc__.split("Attributes:")[1]
    assert [name for name in softjax.Statistics._fields if f"\n        {name}: " not in described] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 5, 129])
def test_each_statistic_and_its_vjp_alone(classes, kind):
    g, labels = cases.cotangent(), labels_of(kind, classes)
    for spread in cases.SPREADS:
        x = cases.logits(classes, spread)
        actual = each_with_vjp(x, labels, g)
        expected_statistics = oracle.statistics(x, labels)
        assert expected_statistics.keys() == actual.keys(), "tests/oracle.py has a formula for each statistic"
        for name, (value, derivative) in expected_statistics.items():
            found, gradient = actual[name]
            size = max(1, spread) * max(1, np.abs(value).max())
            np.testing.assert_allclose(found, value, rtol=3e-6, atol=3e-7 * size, err_msg=name)
            expected = np.asarray(g, np.float64)[:, None] * derivative
            size = np.abs(g).max() * max(1, np.abs(derivative).max())
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=4e-6 * size, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "axis", "route"), covering(["ids", "distribution"], [-1, 0], ROUTES), indirect=["route"]
)
def test_masked_classes_act_as_deleted(kind, axis, route):
    x, labels = cases.logits(9, 3.0, SAMPLES), labels_of(kind, 9)[:SAMPLES]
    # Each row keeps its label and four more classes, which differ by row.
    ids, rng = np.asarray(cases.class_ids(9)[:SAMPLES]), np.random.default_rng(0)
    kept = np.stack([np.sort([y, *rng.permutation(np.delete(np.arange(9), y))[:4]]) for y in ids])
    where = (kept[:, :, None] == np.arange(9)).any(1)
    transpose = (lambda a: a.T) if axis == 0 else (lambda a: a)
    all_labels = labels if kind == "ids" else transpose(labels)

    def masked(x):
        stats = softjax.statistics(transpose(x), all_labels, where=transpose(jnp.asarray(where)), axis=axis)
        return tuple(cases.floating(stats).values()), (stats.prediction, stats.label_rank)

    kept_labels = jnp.asarray((kept < ids[:, None]).sum(1)) if kind == "ids" else np.take_along_axis(labels, kept, 1)

    def deleted(x):
        stats = softjax.statistics(x, kept_labels)
        return tuple(cases.floating(stats).values()), (stats.prediction, stats.label_rank)

    @partial(jax.jit, static_argnums=0)
    def with_gradient(function, x):
        floating, pull, integers = jax.vjp(function, x, has_aux=True)
        return floating, pull(tuple(map(jnp.ones_like, floating)))[0], integers

    found, gradient, (prediction, rank) = with_gradient(masked, x)
    expected, dx, (place, expected_rank) = with_gradient(deleted, jnp.take_along_axis(x, jnp.asarray(kept), 1))
    for name, value, wanted in zip(FLOATING, found, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(prediction, np.take_along_axis(kept, np.asarray(place)[:, None], 1)[:, 0])
    np.testing.assert_array_equal(rank, expected_rank)
    np.testing.assert_allclose(np.take_along_axis(np.asarray(gradient), kept, 1), dx, rtol=1e-5, atol=1e-5)
    assert not gradient[~where].any()


def test_the_vjp_of_all_statistics_together():
    x, ids = cases.logits(7, 2.0), cases.class_ids(7)
    cotangents = [cases.cotangent(seed=s) for s in range(len(FLOATING))]
    _, pull = jax.vjp(lambda x: cases.floating(softjax.statistics(x, ids)), x)
    expected = oracle.statistics(x, ids)
    gradients = [np.asarray(g, np.float64)[:, None] * expected[n][1] for n, g in zip(FLOATING, cotangents, strict=True)]
    np.testing.assert_allclose(pull(dict(zip(FLOATING, cotangents, strict=True)))[0], sum(gradients), atol=1e-5)


@pytest.mark.parametrize(("kind", "classes"), covering(["ids", "one-hot", "distribution"], [1, 2, 9, 129]))
def test_prediction_and_rank_are_those_of_top_k(kind, classes, route):
    x = jnp.round(cases.logits(classes, 2.0))  # many ties, also of −0 and 0, which top_k orders
    labels = labels_of(kind, classes)
    stats = jax.jit(softjax.statistics)(x, labels)
    _, order = jax.lax.top_k(x, classes)
    label = labels if kind == "ids" else jnp.argmax(labels, -1)
    np.testing.assert_array_equal(stats.prediction, order[:, 0])
    np.testing.assert_array_equal(stats.label_rank, np.argmax(np.asarray(order) == np.asarray(label)[:, None], 1))
    assert stats.prediction.dtype == stats.label_rank.dtype == jnp.int32


def test_edge_cases_of_prediction_and_rank(route):
    inf, nan = jnp.inf, jnp.nan
    x = jnp.array([[1.0, 3, 2], [1, inf, inf], [nan, 1, 2], [-inf, 0, -inf], [0, 0, 0], [1, 2, 3]])
    stats = softjax.statistics(x, jnp.array([0, 2, 1, 2, 3, -1]))
    np.testing.assert_array_equal(stats.prediction, [1, 1, -1, 1, 0, 2])
    np.testing.assert_array_equal(stats.label_rank, [2, 1, -1, 2, -1, -1])
    masked = softjax.statistics(x[0], jnp.array(1), where=jnp.array([True, False, True]))
    assert (masked.prediction, masked.label_rank) == (2, 2**31 - 1)
    p = jnp.array([[0.0, 0, 0], [0.4, 0.2, 0.4], [nan, 0, 1]])
    np.testing.assert_array_equal(softjax.statistics(x[:1].repeat(3, 0), p).label_rank, [-1, 2, -1])


def test_the_label_logit_is_the_logit_itself():
    x = jnp.array([[1e8, 1e-3, 3.0], [-1e8, 0.5, 1e4]])
    for labels in (jnp.array([1, 0]), jax.nn.one_hot(jnp.array([1, 0]), 3)):
        np.testing.assert_array_equal(softjax.statistics(x, labels).label_logit, x[jnp.arange(2), [1, 0]])


def test_labels_out_of_range_or_masked():
    x = cases.logits(5, samples=3)
    where = jnp.array([False, True, True, True, True])
    stats, pull = jax.vjp(lambda x: cases.floating(softjax.statistics(x, jnp.array([-1, 0, 5]), where=where)), x)
    np.testing.assert_array_equal(np.asarray(stats["label_logit"]), [np.nan, -np.inf, np.nan])
    np.testing.assert_array_equal(np.asarray(stats["cross_entropy"]), [np.nan, np.inf, np.nan])
    np.testing.assert_array_equal(np.asarray(stats["label_miss"]), [np.nan, 1, np.nan])
    expected = 1 + stats["collision"][1]  # Σ_j q_j², and 1 for the label
    np.testing.assert_allclose(np.asarray(stats["brier_score"]), [np.nan, expected, np.nan], rtol=1e-6)
    assert np.isfinite(stats["log_normalizer"]).all()
    of_label = ("label_logit", "cross_entropy", "label_miss", "brier_score")
    cotangents = {n: jnp.ones(3) if n in of_label else jnp.zeros(3) for n in FLOATING}
    assert not pull(cotangents)[0][np.array([0, 2])].any()


def test_a_logit_of_minus_inf_adds_nothing_to_the_entropy():
    def entropy(x):
        return softjax.statistics(x, jnp.array(0)).entropy

    @jax.jit
    def derivatives(x):
        modes = (lambda f: f, jax.grad, jax.jacfwd, jax.hessian, lambda f: jax.jacrev(jax.grad(f)))
        return [mode(entropy)(x) for mode in modes]

    x = jnp.array([0.0, -jnp.inf, 1.0])
    for actual, expected in zip(derivatives(x), derivatives(x[::2]), strict=True):
        kept = actual[tuple(slice(None, None, 2) for _ in range(actual.ndim))]
        np.testing.assert_allclose(kept, expected, rtol=1e-5, atol=1e-7)
        assert np.isfinite(actual).all()


@pytest.mark.parametrize("order", [2, *slow(3)])
def test_higher_derivatives(order):
    """Also where logits tie at the peak, and in a confident row."""
    rows = jnp.array([[0.3, -0.2, 1.1, 0.0], [2.0, 2.0, -1.0, 0.5], [30.0, 0.0, 1.0, -2.0]])

    def total(x, labels):
        s = softjax.statistics(x, labels)
        scores = s.brier_score / 2 + s.label_miss
        return s.log_normalizer + s.cross_entropy + s.entropy + 2 * s.collision + s.mean_logit + scores

    def plain(x, labels):
        first = jax.lax.stop_gradient(x[0])  # a constant, because the maximum would have a derivative
        log_q = x - jnp.log(jnp.sum(jnp.exp(x - first))) - first
        q = jnp.exp(log_q)
        p = labels if labels.ndim else jax.nn.one_hot(labels, 4)
        scores = jnp.sum((q - p) ** 2) / 2 + jnp.sum(p * (1 - q))
        return x[0] - log_q[0] - p @ log_q - jnp.sum(q * log_q) + 2 * jnp.sum(q**2) + jnp.mean(x) + scores

    def derivatives(f, outer):
        for _ in range(order - 1):
            f = jax.jacrev(f)
        return jax.vmap(jax.vmap(outer(f), (0, None)), (None, 0))

    @jax.jit
    def of_all_rows(labels):
        expected = derivatives(plain, jax.jacrev)(rows, labels)
        return [derivatives(total, outer)(rows, labels) for outer in (jax.jacfwd, jax.jacrev)], expected

    for labels in (jnp.array([0, 2]), jnp.array([[0.1, 0.4, 0.3, 0.2]])):
        found, expected = of_all_rows(labels)
        for derivative in found:
            np.testing.assert_allclose(derivative, expected, rtol=2e-4, atol=2e-6)


def _score_targets(x):
    """Targets of five rows, each with the class ids or the distribution that it means."""
    ids = jnp.array([0, 1, 0, 2, 1])
    soft = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(4), 5), jnp.float32)
    hot = jax.nn.one_hot(ids, 4)
    nearly = (1 - 1e-7) * hot + 1e-7 * soft
    sparse = softjax.SparseLabels(
        jnp.array([[0, 0, 9], [1, 0, 1], [0, 2, 0], [3, 2, 1], [-1, 1, 1]]),
        jnp.array([[0.5, 0.5, 0.0], [0.3, 0.5, 0.2], [0.5, 1e-9, 0.5], [0.2, 0.7, 0.1], [0.0, 0.25, 0.75]]),
    )
    return [(ids, ids), (hot, hot), (nearly, nearly), (soft, soft), (sparse, few.dense(sparse, 4))]


@pytest.mark.parametrize("gap", [0.5, 10.0, 20.0, 60.0])
def test_scores_of_confident_rows_keep_their_digits(gap, route):
    """`label_miss` and `brier_score`, with the mass at the peak, beside it and at both."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32).at[:, 0].set(gap)
    x = x.at[4, 1].set(gap)  # a tie
    bound = (16 + 2 * gap) * 2.0**-23
    for labels, same in _score_targets(x):
        found = _scores_with_gradients(x, labels)
        for name, (value, gradient) in exact.scores(x, same).items():
            np.testing.assert_allclose(found[name][0], value, rtol=bound, atol=1e-37, err_msg=name)
            # a difference of terms of this size, such as q d and q D
            size = np.abs(gradient).max(1, keepdims=True)
            error = np.abs(np.asarray(found[name][1], np.float64) - gradient)
            assert (error <= bound * size + 1e-37).all(), (name, error / size)


@jax.jit
def _scores_with_gradients(x, labels):
    def rows(x):
        s = softjax.statistics(x, labels)
        return {name: getattr(s, name) for name in ("label_miss", "brier_score")}

    values, pull = jax.vjp(rows, x)
    zeros = jax.tree.map(jnp.zeros_like, values)
    return {name: (value, pull(zeros | {name: jnp.ones_like(value)})[0]) for name, value in values.items()}


def test_derivatives_of_scores_by_logits_and_probabilities():
    """First and second derivatives, in forward and reverse mode, against JAX's of the formulas in float64."""
    x = jnp.array([[0.3, -0.2, 1.1, 0.0], [2.0, 2.0, -1.0, 0.5], [9.0, 0.0, 1.0, -2.0], [1, 2, 3, 4], [0, 0, 0, -9.0]])
    g = cases.cotangent(5)
    sparse = _score_targets(x)[-1][0]
    p = jnp.asarray(few.dense(sparse, 4), jnp.float32)

    def total(x, p, target=None):
        s = softjax.statistics(x, p if target is None else target(p))
        return g @ (s.label_miss + 2 * s.brier_score)

    def plain(x, p):
        q = jax.nn.softmax(x)
        return g.astype(x.dtype) @ jnp.sum(p * (1 - q) + 2 * (q - p) ** 2, 1)

    def all_derivatives(f, *args):
        return (
            jax.grad(f, (0, 1))(*args),
            jax.hessian(f)(*args),
            jax.jacrev(jax.grad(f))(*args),
            jax.jacfwd(f, 1)(*args),
        )

    with jax.enable_x64(True):
        expected = jax.jit(lambda *a: all_derivatives(plain, *a))(x.astype(jnp.float64), p.astype(jnp.float64))
    (by_x, by_p), *second, forward_by_p = jax.tree.map(np.asarray, expected)
    (found_x, found_p), *found_second, found_forward = jax.jit(lambda *a: all_derivatives(total, *a))(x, p)
    np.testing.assert_allclose(found_x, by_x, atol=3e-6)
    np.testing.assert_allclose(found_p, by_p, atol=3e-6)
    np.testing.assert_allclose(found_forward, forward_by_p, atol=3e-6)
    for found, wanted in zip(found_second, second, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)

    def of_sparse(x, p):
        return total(x, p, lambda p: softjax.SparseLabels(sparse.ids, p))

    (found_x, found_p), *found_second, _ = jax.jit(lambda *a: all_derivatives(of_sparse, *a))(x, sparse.probabilities)
    np.testing.assert_allclose(found_x, by_x, atol=3e-6)
    np.testing.assert_allclose(found_p, few.entries_at(by_p, sparse.ids), atol=3e-6)
    for found, wanted in zip(found_second, second, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_scores_of_invalid_ids_and_masked_classes():
    """NaN with zero gradient for mass at an id out of range. Mass at a masked class is ignored."""
    x, exist = cases.logits(5, samples=3), jnp.array([True, True, True, True, False])
    labels = softjax.SparseLabels(jnp.array([[0, 7], [0, 4], [-1, 1]]), jnp.array([[0.5, 0.5], [0.4, 0.6], [0.0, 1.0]]))

    @jax.jit
    def with_gradient(labels, x):
        def scores(x):
            s = softjax.statistics(x, labels, where=exist)
            return s.label_miss, s.brier_score

        values, pull = jax.vjp(scores, x)
        return values, pull(jax.tree.map(jnp.ones_like, values))[0]

    values, dx = with_gradient(labels, x)
    dense = jnp.zeros((3, 5)).at[1].set(jnp.array([0.4, 0, 0, 0, 0.6])).at[2, 1].set(1.0)
    expected, dense_dx = with_gradient(dense, x)
    for found, wanted in zip(values, expected, strict=True):
        assert np.isnan(found[0])
        np.testing.assert_allclose(found[1:], wanted[1:], rtol=1e-5)
    assert not dx[0].any()
    np.testing.assert_allclose(dx[1:], dense_dx[1:], atol=1e-6)
    empty = softjax.statistics(x, jnp.array([0, 1, 2]), where=jnp.zeros((3, 5), bool))
    assert not empty.label_miss.any()
    assert not empty.brier_score.any()


@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
def test_a_class_without_probability_in_labels_and_logits(mode):
    """0 · −inf is 0 in derivatives by labels, in forward mode, and with labels that depend on the logits."""
    x = jnp.array([-jnp.inf, 0.0, 1.0])
    through = mode(lambda x: softjax.cross_entropy(x, softjax.softmax(x), base=np.e))(x)
    np.testing.assert_allclose(through, [0, 0.19661193, -0.19661193], rtol=1e-5)
    p = jnp.array([0.0, 0.25, 0.75])
    np.testing.assert_allclose(
        mode(lambda x: softjax.cross_entropy(x, p, base=np.e))(x), [0, 0.01894142, -0.01894142], rtol=1e-5
    )
    by_labels = jax.grad(lambda p: softjax.cross_entropy(x, p))(jnp.array([0.1, 0.4, 0.5]))
    assert by_labels[0] == jnp.inf
    assert np.isfinite(by_labels[1:]).all()
    with_label_logit = jax.grad(lambda p: (lambda s: s.cross_entropy + 0 * s.label_logit)(softjax.statistics(x, p)))
    assert with_label_logit(jnp.array([0.1, 0.4, 0.5]))[0] == jnp.inf
    with jax.debug_nans(False):
        assert softjax.cross_entropy(x, jnp.array([0.1, 0.4, 0.5])) == jnp.inf


X, Y = cases.logits(2049), cases.class_ids(2049)


def program(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def count_arrays(hlo, operation):
    """The number of operations of this name with one value per logit in the compiled program."""
    return sum(
        f" {operation}(" in line and "2049]" in line.split("=")[1][:40] for line in hlo.splitlines() if "=" in line
    )


def test_the_count_of_exponentials_per_logit():
    """The value takes one, and one more if a row is confident. The gradient reuses the statistics and adds one."""

    def count(f):
        return count_arrays(program(f, X), "exponential")

    plain = count(lambda x: softjax.cross_entropy(x, Y))
    assert plain <= 2
    assert count(jax.value_and_grad(lambda x: softjax.cross_entropy(x, Y))) <= plain + 1
    smoothed = jax.value_and_grad(lambda x: softjax.cross_entropy(x, Y, label_smoothing=0.1, z_loss=0.1))
    assert count(smoothed) <= plain + 1


@pytest.mark.parametrize("axis", [-1, *slow(0)])
def test_weights_add_no_exponential(axis):
    """With weights, the gradient still reuses the exponentials of the value."""
    transpose = (lambda x: x.T) if axis == 0 else (lambda x: x)

    def count(weights):
        gradient = jax.value_and_grad(lambda x, w: softjax.cross_entropy(x, Y, weights=w, axis=axis))
        text = program(gradient, transpose(X), weights)
        shape = ",".join(map(str, transpose(X).shape))
        return sum(" exponential(" in line and f"[{shape}]" in line.split("=")[1] for line in text.splitlines())

    plain = count(None)
    assert plain >= 1
    for weights in (cases.weights(), cases.weights() > 0):
        assert count(weights) == plain


@pytest.mark.parametrize("name", FLOATING)
def test_an_unread_statistic_is_not_in_the_program(name):
    """The value and the gradient of one statistic compute none of the others."""

    def total(x):
        return getattr(softjax.statistics(x, Y), name).sum()

    value, gradient = program(total, X), program(jax.grad(total), X)
    logarithms = {"log_normalizer", "entropy", "cross_entropy", "peak_entropy"}
    assert (" log(" in value or "log-plus-one" in value) == (name in logarithms)
    assert " log(" not in gradient or name in logarithms
    assert gradient.count(" reduce(") <= 5


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}, {"weights": cases.weights()}])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_residuals_are_the_logits_and_a_few_values_per_row(options, dtype):
    x = X.astype(dtype)
    _, pull = jax.vjp(lambda x: softjax.cross_entropy(x, Y, **options), x)
    kept = [leaf for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size")]
    large = [leaf for leaf in kept if leaf.size >= x.size]
    assert len(large) == 1
    assert large[0].dtype == dtype
    assert sum(leaf.size for leaf in kept) - x.size <= 16 * cases.SAMPLES + 16
