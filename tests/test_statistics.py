"""The statistics of a row and their pull-backs, each alone, against the float64 oracle; what is not wanted is free."""

import cases
import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import oracle
import pytest

import softjax
from softjax._statistics import Wanted, row_statistics


@pytest.mark.parametrize("spread", cases.SPREADS)
@pytest.mark.parametrize("classes", [1, 5, 129])
@pytest.mark.parametrize("one_hot", [False, True])
def test_each_output_pulled_back_alone(classes, spread, one_hot):
    x, ids, g = cases.logits(classes, spread), cases.class_ids(classes), cases.cotangent()
    labels = jax.nn.one_hot(ids, classes) if one_hot else ids
    stats, pull = jax.vjp(lambda x: softjax.statistics(x, labels), x)
    values, gradients = oracle.statistics(x, ids)
    for field, value, gradient in zip(softjax.Statistics._fields, values, gradients, strict=True):
        number = getattr(stats, field)
        assert number.shape == (cases.SAMPLES,)
        np.testing.assert_allclose(number, value, rtol=3e-6, atol=3e-6 * max(1, spread), err_msg=field)
        cotangent = softjax.Statistics(*(g if f == field else jnp.zeros_like(g) for f in softjax.Statistics._fields))
        expected = np.asarray(g, np.float64)[:, None] * gradient
        np.testing.assert_allclose(pull(cotangent)[0], expected, rtol=1e-4, atol=5e-6 * max(1, spread), err_msg=field)


def test_all_outputs_together():
    x, ids = cases.logits(7, 2.0), cases.class_ids(7)
    stats, pull = jax.vjp(lambda x: softjax.statistics(x, ids), x)
    cotangents = softjax.Statistics(*(cases.cotangent(seed=s) for s in range(4)))
    _, gradients = oracle.statistics(x, ids)
    expected = sum(np.asarray(g, np.float64)[:, None] * d for g, d in zip(cotangents, gradients, strict=True))
    np.testing.assert_allclose(pull(cotangents)[0], expected, atol=1e-5)
    assert stats.entropy.dtype == jnp.float32


def test_the_label_logit_is_the_logit_itself():
    x = jnp.array([[1e8, 1e-3, 3.0], [-1e8, 0.5, 1e4]])
    np.testing.assert_array_equal(softjax.statistics(x, jnp.array([1, 0])).label_logit, x[jnp.arange(2), [1, 0]])
    np.testing.assert_array_equal(
        softjax.statistics(x, jax.nn.one_hot(jnp.array([1, 0]), 3)).label_logit, x[jnp.arange(2), [1, 0]]
    )


def test_labels_that_name_no_class_or_a_left_out_one():
    x = cases.logits(5, samples=3)
    stats = softjax.statistics(x, jnp.array([-1, 0, 5]), where=jnp.array([False, True, True, True, True]))
    np.testing.assert_array_equal(np.asarray(stats.label_logit), [np.nan, -np.inf, np.nan])
    assert np.isfinite(stats.log_normalizer).all()


def test_minus_inf_has_no_part_in_the_entropy():
    x = jnp.array([[0.0, -jnp.inf, 1.0]])
    entropy, pull = jax.vjp(lambda x: softjax.statistics(x, jnp.array([0])).entropy, x)
    expected, both = jax.vjp(lambda x: softjax.statistics(x, jnp.array([0])).entropy, x[:, ::2])
    np.testing.assert_allclose(entropy, expected, rtol=1e-6)
    gradient = pull(jnp.ones(1))[0]
    np.testing.assert_allclose(gradient[:, ::2], both(jnp.ones(1))[0], rtol=1e-5)
    assert gradient[0, 1] == 0


def test_the_entropy_differentiates_twice_past_minus_inf():
    def entropy(x):
        return softjax.statistics(x, jnp.array(0)).entropy

    hessian = jax.hessian(entropy)(jnp.array([0.0, -jnp.inf, 1.0]))
    expected = jax.hessian(entropy)(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(hessian[::2, ::2], expected, rtol=1e-4)


X, Y = cases.logits(2049), cases.class_ids(2049)


def exps(function):
    return jaxprs.count(function, X, primitive="exp", size=X.size)


def test_plain_cross_entropy_computes_one_exp_an_element_each_way():
    assert exps(lambda x: softjax.cross_entropy(x, Y)) == 1
    assert exps(jax.value_and_grad(lambda x: softjax.cross_entropy(x, Y))) == 2
    smoothed = jax.value_and_grad(lambda x: softjax.cross_entropy(x, Y, label_smoothing=0.1, z_loss=0.1))
    assert exps(smoothed) == 2


@pytest.mark.parametrize("differentiated", [False, True])
def test_a_loss_sums_over_the_classes_only_what_it_uses(differentiated, monkeypatch):
    def sums(function):
        function = jax.grad(function) if differentiated else function
        jaxpr = jax.make_jaxpr(function)(X)
        return sum(
            e.primitive.name == "reduce_sum" and e.invars[0].aval.size >= X.size for e in jaxprs.equations(jaxpr)
        )

    plain = sums(lambda x: softjax.cross_entropy(x, Y))
    assert sums(lambda x: softjax.cross_entropy(x, Y, z_loss=0.1)) == plain
    assert sums(lambda x: softjax.cross_entropy(x, Y, label_smoothing=0.1)) == plain + 1


def test_unused_statistics_cost_nothing_backward():
    def log_probability(x):
        stats = softjax.statistics(x, Y)
        return (stats.label_logit - stats.log_normalizer).sum()

    hlo = jax.jit(jax.grad(log_probability)).lower(X).compile().as_text()
    entropy = jax.jit(jax.grad(lambda x: softjax.statistics(x, Y).entropy.sum())).lower(X).compile().as_text()
    # The entropy of a row needs a logarithm; the log-probability's gradient has none.
    assert " log(" in entropy
    assert " log(" not in hlo


def test_wanted_numbers_alone_are_computed():
    rows = row_statistics(Wanted(-1, label=False), X, Y, None)
    assert rows[1:4] == (None, None, None)
    labels = jnp.full_like(Y, -1)  # not looked at: a NaN would show
    assert jnp.isfinite(row_statistics(Wanted(-1, label=False), X, labels, None).log_normalizer).all()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1}, {"weights": cases.weights()}])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_residuals_are_the_logits_and_a_few_numbers_a_row(options, dtype):
    x = X.astype(dtype)
    _, pull = jax.vjp(lambda x: softjax.cross_entropy(x, Y, **options), x)
    kept = [leaf for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size")]
    large = [leaf for leaf in kept if leaf.size >= x.size]
    assert len(large) == 1
    assert large[0].dtype == dtype
    assert sum(leaf.size for leaf in kept) - x.size <= 12 * cases.SAMPLES
