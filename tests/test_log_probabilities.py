"""Log-probabilities at given class ids, of logits and of a last layer, and the top k classes."""

import cases
import few
import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import oracle
import pytest
from closeness import EPS, near
from covering import ON_ONE_CPU, ROUTES, covering
from programs import vjp

import softjax


def log_softmax64(x, where=None):
    x = np.asarray(x, np.float64)
    x = x if where is None else np.where(where, x, -np.inf)
    return np.stack([oracle.log_softmax(row) for row in x])


@pytest.mark.parametrize(
    ("k", "spread", "route", "block_size"),
    covering([0, 3, 9, 1, 8, 40], [0.02, 1.0, 30.0, 1000.0], ROUTES, [None, 4], quick=range(4)),
    indirect=["route"],
)
def test_log_probabilities(k, spread, block_size, route):
    x, ids = cases.logits(9, spread), np.random.default_rng(k).integers(0, 9, (11, k))
    g = np.random.default_rng(1).normal(size=ids.shape).astype(np.float32)
    log_q = log_softmax64(x)
    dx = -np.exp(log_q) * g.sum(-1, keepdims=True, dtype=np.float64)
    for i, j in np.ndindex(ids.shape):
        dx[i, ids[i, j]] += g[i, j]
    linear = lambda x: softjax.linear_log_probabilities(jnp.eye(11), x, ids, base=np.e, block_size=block_size)  # noqa: E731
    for f in (lambda x: softjax.log_probabilities(x, ids, base=np.e), linear):
        actual, (gradient,) = vjp(f, (x,), jnp.asarray(g))
        near(actual, np.take_along_axis(log_q, ids, -1), 64)
        near(gradient, dx, 64)


@pytest.mark.parametrize("gap", [17.0, 40.0, 80.0])
def test_confident_rows(gap):
    x = jnp.zeros((1, 7)).at[:, 2].set(gap)
    actual, pull = jax.vjp(lambda x: softjax.log_probabilities(x, jnp.array([[2, 0]]), base=np.e), x)
    rest = 6 * np.exp(-gap)
    np.testing.assert_allclose(actual, [[-np.log1p(rest), -gap - np.log1p(rest)]], rtol=4 * EPS)
    (dx,) = pull(jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(dx[0, 2], rest / (1 + rest), rtol=(8 + gap) * EPS)
    np.testing.assert_allclose(dx[0, 0], -np.exp(-gap) / (1 + rest), rtol=(8 + gap) * EPS)


@ON_ONE_CPU
def test_ids_out_of_range_and_masked_classes(route):
    x, exist = cases.logits(5, samples=2), jnp.array([True, True, False, True, True])
    ids = jnp.array([[0, -1, 2], [5, 2, 4]])
    log_q = log_softmax64(x, np.asarray(exist))
    expected = [[log_q[0, 0], np.nan, -np.inf], [np.nan, -np.inf, log_q[1, 4]]]
    linear = lambda x: softjax.linear_log_probabilities(jnp.eye(2), x, ids, where=exist, base=np.e)  # noqa: E731
    for f in (lambda x: softjax.log_probabilities(x, ids, where=exist, base=np.e), linear):
        actual, (dx,) = vjp(f, (x,), jnp.ones((2, 3)))
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
        q = np.exp(log_q)
        np.testing.assert_allclose(dx, np.eye(5)[[0, 4]] - q, rtol=1e-5, atol=1e-6)  # the NaN entries add nothing
    no_class = softjax.log_probabilities(x, jnp.array([[0], [1]]), where=False)
    np.testing.assert_array_equal(no_class, [[-np.inf], [-np.inf]])
    np.testing.assert_array_equal(
        softjax.linear_log_probabilities(jnp.eye(2), x, ids[:, :1] * 0, where=False), no_class
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_k_is_the_last_axis_for_any_class_axis(axis):
    x, ids = cases.logits(7, samples=6).reshape(2, 3, 7), np.random.default_rng(0).integers(0, 7, (2, 3, 4))
    moved = softjax.log_probabilities(jnp.moveaxis(x, -1, axis), ids, axis=axis)
    np.testing.assert_allclose(moved, np.take_along_axis(softjax.log_softmax(x), ids, -1), rtol=1e-5)


@pytest.mark.parametrize("base", [2.0, 10.0])
def test_options_of_the_layer(base):
    hidden, kernel, bias = cases.layer(9)
    ids = np.random.default_rng(0).integers(0, 9, (11, 3))
    options = {"bias": bias, "logit_softcap": 3.0, "base": base, "block_size": 4}
    logits = 3 * jnp.tanh((hidden @ kernel + bias[None]) / 3)
    expected = np.take_along_axis(log_softmax64(logits), ids, -1) / np.log(base)
    near(softjax.linear_log_probabilities(hidden, kernel, ids, **options), expected, 64)
    embedding = jax.jit(lambda e: softjax.linear_log_probabilities(hidden, e.T, ids, **options))(kernel.T)
    near(embedding, expected, 64)


def test_count_of_matmuls():
    """One matmul forward, three more backward."""
    hidden, kernel, _ = cases.layer(9)
    ids = np.random.default_rng(0).integers(0, 9, (11, 3))
    f = lambda h, k: softjax.linear_log_probabilities(h, k, ids, block_size=4).sum()  # noqa: E731
    assert len(jaxprs.matmuls(f, hidden, kernel)) == 1
    assert len(jaxprs.matmuls(jax.grad(f, (0, 1)), hidden, kernel)) == 4


@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("block_size", [None, 4])
def test_top_k(k, block_size, route):
    hidden, kernel, bias = cases.layer(9, spread=3.0)
    kernel = kernel.at[:, 5].set(kernel[:, 2])  # two equal logits
    bias = bias.at[5].set(bias[2])
    t = softjax.linear_top_k(hidden, kernel, k, bias=bias, base=np.e, block_size=block_size)
    logits = hidden @ kernel + bias[None]
    _, ids = jax.lax.top_k(logits, k)
    assert t.ids.dtype == jnp.int32
    np.testing.assert_array_equal(t.ids, ids)
    near(t.log_probabilities, np.take_along_axis(log_softmax64(logits), np.asarray(ids), -1), 64)


def test_the_top_k_have_the_gradient_of_log_probabilities_at_their_ids():
    hidden, kernel, _ = cases.layer(9, spread=3.0)
    g = jnp.asarray(np.random.default_rng(0).normal(size=(11, 3)), jnp.float32)
    ids = softjax.linear_top_k(hidden, kernel, 3).ids
    top = jax.vjp(lambda h, k: softjax.linear_top_k(h, k, 3, block_size=4).log_probabilities, hidden, kernel)[1](g)
    expected = jax.vjp(lambda h, k: softjax.linear_log_probabilities(h, k, ids, block_size=4), hidden, kernel)[1](g)
    for a, b in zip(top, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_top_k_as_sparse_labels():
    """With k = C they are the distribution of the teacher."""
    hidden, kernel, _ = cases.layer(9, spread=3.0)
    t = softjax.linear_top_k(hidden, kernel, 9, base=np.e)
    labels = softjax.SparseLabels(t.ids, jnp.exp(t.log_probabilities))
    x = cases.logits(9, seed=5)
    np.testing.assert_allclose(
        softjax.cross_entropy(x, labels), softjax.cross_entropy(x, jax.nn.softmax(hidden @ kernel)), rtol=1e-5
    )


def test_the_top_k_with_masked_classes():
    hidden, kernel, _ = cases.layer(9)
    exist = jnp.arange(9) % 3 == 0
    t = softjax.linear_top_k(hidden, kernel, 5, where=exist)
    assert (t.ids[:, :3] % 3 == 0).all()
    assert jnp.isfinite(t.log_probabilities[:, :3]).all()
    np.testing.assert_array_equal(t.log_probabilities[:, 3:], -np.inf)
    np.testing.assert_allclose((10 ** t.log_probabilities[:, :3]).sum(-1), 1, rtol=1e-5)


def test_no_samples():
    hidden, kernel, _ = cases.layer(9)
    assert softjax.linear_top_k(hidden[:0], kernel, 2).ids.shape == (0, 2)
    assert softjax.linear_log_probabilities(hidden[:0], kernel, jnp.zeros((0, 3), int)).shape == (0, 3)
    assert softjax.log_probabilities(jnp.zeros((0, 5)), jnp.zeros((0, 3), int)).shape == (0, 3)


def test_refused_arguments():
    hidden, kernel, _ = cases.layer(9)
    for k, error, message in [
        (0, ValueError, "`k` must be at least 1, got 0"),
        (10, ValueError, "`k` must be at most the number of classes, 9; got 10"),
        (2.0, TypeError, "`k` must be an integer"),
        (True, TypeError, "`k` must be an integer"),
    ]:
        with pytest.raises(error, match=message):
            softjax.linear_top_k(hidden, kernel, k)
    for ids, error, message in [
        (jnp.zeros(11, int), ValueError, r"ids\[\.\.\., None\]"),
        (jnp.zeros((3, 2), int), ValueError, r"k ids for each of \(11,\); got shape \(3, 2\)"),
        (jnp.zeros((11, 2)), TypeError, "`ids` must be integer class ids, got float32"),
    ]:
        for call in (softjax.linear_log_probabilities, lambda h, k, y: softjax.log_probabilities(h @ k, y)):
            with pytest.raises(error, match=message):
                call(hidden, kernel, ids)


def test_the_top_k_of_nan_logits_are_those_of_lax_top_k():
    x = jnp.array([[1.0, jnp.nan, 2.0], [3.0, 1.0, 2.0]])
    t = softjax.linear_top_k(jnp.eye(2), jnp.where(jnp.isnan(x), 0, x), 2)
    assert t.ids.tolist() == [[2, 0], [0, 2]]
    t = softjax.linear_top_k(jnp.array([[jnp.nan, 0.0], [0.0, 1.0]]), jnp.where(jnp.isnan(x), 0, x), 2)
    assert jnp.isnan(t.log_probabilities[0]).all()
    assert t.ids[1].tolist() == [0, 2]


def test_ids_of_wide_and_unsigned_dtypes_do_not_wrap():
    x = cases.logits(9)
    assert jnp.isnan(softjax.log_probabilities(x, np.full((11, 1), 2**40))).all()
    assert jnp.isnan(softjax.log_probabilities(x, few.sparse(9, 3).ids.astype(jnp.uint8) * 0 + 200)).all()
