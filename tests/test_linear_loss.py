"""The `aux` of a row loss is exact, takes no extra pass and has no derivative. Also tests closed-over arrays."""

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from covering import covering, slow

import softjax

C = 9
HIDDEN, KERNEL, BIAS = cases.layer(C, spread=3.0)
LABELS, SCALE = cases.class_ids(C), cases.cotangent()
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def row_loss(s, scale):
    aux = {
        "hit": s.label_rank == 0,
        "prediction": s.prediction,
        "entropy": s.entropy,
        "pair": jnp.stack([s.cross_entropy, s.log_normalizer]).astype(jnp.bfloat16),
        "one": 1.0,
    }
    return scale * s.cross_entropy, aux


def loss(h, k, scale, labels=LABELS, **options):
    return softjax.linear_loss(row_loss, h, k, labels, scale, bias=BIAS, has_aux=True, **options)


def check(aux, shape=HIDDEN.shape[:-1]):
    logits = np.asarray(HIDDEN, np.float64) @ np.asarray(KERNEL, np.float64) + np.asarray(BIAS, np.float64)
    expected = oracle.statistics(logits, LABELS)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in aux.items()} == {
        "hit": (shape, bool),
        "prediction": (shape, np.int32),
        "entropy": (shape, np.float32),
        "pair": ((*shape, 2), jnp.bfloat16),
        "one": (shape, np.float32),
    }
    np.testing.assert_array_equal(aux["prediction"].reshape(-1), logits.argmax(1))
    np.testing.assert_array_equal(aux["hit"].reshape(-1), logits.argmax(1) == np.asarray(LABELS))
    np.testing.assert_allclose(aux["entropy"].reshape(-1), expected["entropy"][0], rtol=1e-5)
    pair = np.stack([expected["cross_entropy"][0], expected["log_normalizer"][0]], -1)
    np.testing.assert_allclose(np.asarray(aux["pair"], np.float64).reshape(-1, 2), pair, rtol=0.01)
    np.testing.assert_array_equal(aux["one"], 1)


@pytest.mark.parametrize(("reduction", "block_size"), covering(["mean", "sum", "none"], [None, 1, 4]))
def test_beside_the_value_and_the_gradient(reduction, block_size):
    def without(h, k, scale):
        return softjax.linear_loss(
            lambda s, a: row_loss(s, a)[0], h, k, LABELS, scale, bias=BIAS, reduction=reduction, block_size=block_size
        )

    def with_aux(h, k, scale):
        return loss(h, k, scale, reduction=reduction, block_size=block_size)

    @jax.jit
    def with_gradients(*arrays):
        g = SCALE if reduction == "none" else jnp.float32(0.7)
        expected, pull = jax.vjp(without, *arrays)
        same, pull_beside, beside = jax.vjp(with_aux, *arrays, has_aux=True)
        return (same, expected), beside, (pull_beside(g), pull(g))

    value, aux = with_aux(HIDDEN, KERNEL, SCALE)
    check(aux)
    values, beside, gradients = with_gradients(HIDDEN, KERNEL, SCALE)
    check(beside)
    chex.assert_trees_all_close(value, *values, rtol=1e-6)
    chex.assert_trees_all_close(*gradients, rtol=1e-5, atol=1e-6)


@REDUCTIONS
def test_reductions(reduction):
    value, _ = loss(HIDDEN, KERNEL, SCALE, reduction=reduction, weights=cases.weights(), block_size=4)
    h = oracle.linear_cross_entropy(HIDDEN, KERNEL, LABELS, bias=BIAS, base=np.e)[0]
    rows = np.asarray(cases.weights(), np.float64) * np.asarray(SCALE, np.float64) * h
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / float(cases.weights().sum())}[reduction]
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@REDUCTIONS
def test_no_derivative_flows_through_it(reduction):
    def of_aux(h, k, scale):
        value, aux = loss(h, k, scale, reduction=reduction, block_size=4)
        return jnp.sum(aux["entropy"]) + 0 * jnp.sum(value)

    @jax.jit
    def both_modes(*arrays):
        return jax.grad(of_aux, (0, 1, 2))(*arrays), jax.jvp(of_aux, arrays, arrays)[1]

    gradients, tangent = both_modes(HIDDEN, KERNEL, SCALE)
    assert not any(map(np.any, gradients))
    assert tangent == 0


@pytest.mark.parametrize(("reduction", "products"), [("mean", 3), ("sum", 3), ("none", 4)])
def test_it_takes_no_further_product(reduction, products):
    def gradient(h, k):
        return jax.value_and_grad(
            lambda h, k: jax.tree.map(jnp.sum, loss(h, k, SCALE, reduction=reduction)), (0, 1), True
        )(h, k)

    program = jax.jit(gradient).lower(HIDDEN, KERNEL)
    assert program.as_text().count("dot_general") == products


@REDUCTIONS
def test_samples_of_weight_zero_and_blocks_of_them(reduction):
    weights = jnp.arange(cases.SAMPLES) < 5
    poisoned = jnp.where(weights[:, None], HIDDEN, jnp.nan), jnp.where(weights, SCALE, jnp.inf)

    def value(h, k, scale, weights):
        return loss(h, k, scale, reduction=reduction, weights=weights, block_size=2)

    def total(h, k, scale, weights):
        value_, aux = value(h, k, scale, weights)
        return jnp.sum(value_), aux

    with_gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), True))
    (first, aux), gradients = with_gradients(poisoned[0], KERNEL, poisoned[1], weights)
    (clean, beside), expected = with_gradients(HIDDEN, KERNEL, SCALE, weights)
    np.testing.assert_allclose(first, clean, rtol=1e-6)
    chex.assert_trees_all_close(gradients, expected, rtol=1e-6)
    for leaf, other in zip(jax.tree.leaves(aux), jax.tree.leaves(beside), strict=True):
        np.testing.assert_array_equal(np.asarray(leaf[:5], np.float64), np.asarray(other[:5], np.float64))


def test_under_vmap_scan_checkpoint_and_in_the_shape_of_the_samples():
    value, aux = jax.vmap(lambda h, y, a: loss(h, KERNEL, a, labels=y), in_axes=0)(
        HIDDEN[:, None], LABELS[:, None], SCALE[:, None]
    )
    check(jax.tree.map(lambda leaf: leaf[:, 0], aux))
    _, (values, scanned) = jax.lax.scan(
        lambda _, x: (None, loss(x[0], KERNEL, x[2], labels=x[1])),
        None,
        (HIDDEN[:, None], LABELS[:, None], SCALE[:, None]),
    )
    check(jax.tree.map(lambda leaf: leaf[:, 0], scanned))
    np.testing.assert_allclose(values, value, rtol=1e-6)
    check(jax.checkpoint(loss)(HIDDEN, KERNEL, SCALE)[1])
    shaped = jax.tree.map(lambda a: a[:10].reshape(2, 5, *a.shape[1:]), (HIDDEN, SCALE, LABELS))
    _, aux = loss(shaped[0], KERNEL, shaped[1], labels=shaped[2], block_size=4)
    _, flat = loss(HIDDEN[:10], KERNEL, SCALE[:10], labels=LABELS[:10], block_size=4)
    chex.assert_trees_all_equal(aux, jax.tree.map(lambda leaf: leaf.reshape(2, 5, *leaf.shape[1:]), flat))


def test_an_eager_call_traces_a_function_once():
    calls = []

    def counted(s):
        calls.append(s)
        return s.cross_entropy

    for _ in range(3):
        softjax.linear_loss(counted_without_closure, HIDDEN, KERNEL, LABELS)
        softjax.linear_loss(counted, HIDDEN, KERNEL, LABELS)
    assert len(CALLS) == 1
    assert len(calls) == 3  # it closes over what may change


CALLS = []


def counted_without_closure(s):
    CALLS.append(None)
    return s.cross_entropy


def test_a_function_that_closes_over_an_array_sees_it_anew():
    box = [jnp.float32(1)]

    def scaled(s):
        return box[0] * s.cross_entropy

    first = softjax.linear_loss(scaled, HIDDEN, KERNEL, LABELS)
    box[0] = jnp.float32(2)
    assert softjax.linear_loss(scaled, HIDDEN, KERNEL, LABELS) == 2 * first


def test_a_wrong_result_is_refused_by_name():
    def call(row_loss, **options):
        return softjax.linear_loss(row_loss, HIDDEN, KERNEL, LABELS, **options)

    with pytest.raises(TypeError, match=r"got a tuple; `\(loss, aux\)` needs `has_aux=True`"):
        call(lambda s: (s.cross_entropy, s.entropy))
    with pytest.raises(TypeError, match=r"`row_loss` must give `\(loss, aux\)` with `has_aux=True`, got"):
        call(lambda s: s.cross_entropy, has_aux=True)
    with pytest.raises(TypeError, match="`aux` must be an array, got str"):
        call(lambda s: (s.cross_entropy, "hit"), has_aux=True)
    with pytest.raises(TypeError, match="`has_aux` must be True or False, got int: 1"):
        call(lambda s: (s.cross_entropy, s.entropy), has_aux=1)
    with pytest.raises(ValueError, match="`reduction` must be one of"):
        call(lambda s: s.cross_entropy, reduction="max")


@pytest.mark.parametrize("reduction", ["sum", *slow("none")])
def test_row_args_broadcast_to_the_samples(reduction):
    hidden, labels, scale = HIDDEN[:10].reshape(2, 5, -1), LABELS[:10].reshape(2, 5), jnp.arange(10.0).reshape(2, 5)

    def loss(scale):
        def row_loss(s, scale):
            return scale * s.cross_entropy

        return softjax.linear_loss(row_loss, hidden, KERNEL, labels, scale, reduction=reduction, block_size=4).sum()

    small = [jnp.float32(3), scale[:, :1], scale[:1]]
    full = jnp.stack([jnp.broadcast_to(row_arg, (2, 5)) for row_arg in small])
    found = jax.jit(lambda args: [jax.value_and_grad(loss)(row_arg) for row_arg in args])(small)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(full)
    sums = [gradients[0].sum(), gradients[1].sum(1, keepdims=True), gradients[2].sum(0, keepdims=True)]
    for (value, gradient), right, summed in zip(found, values, sums, strict=True):
        np.testing.assert_allclose(value, right, rtol=1e-6)
        np.testing.assert_allclose(gradient, summed, rtol=1e-5)
    assert loss(3.0) == loss(jnp.float32(3))
    with pytest.raises(ValueError, match=r"got shape \(2,\)\. .* Add axes of length 1: row_arg\[:, None\]\."):
        loss(scale[:, 0])


@pytest.mark.parametrize("index", [lambda e: jnp.mean(e, -1), lambda e: e[0], lambda e: e[:, None].sum()])
def test_a_row_loss_for_a_batch_is_told_that_it_sees_one_sample(index):
    with pytest.raises(ValueError, match="`row_loss` is called for one sample: each of its statistics is a scalar"):
        softjax.linear_loss(lambda s: index(s.entropy), HIDDEN, KERNEL, LABELS)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_nan_weight_ignores_no_other_sample(reduction):
    labels, weights = jnp.zeros(64, jnp.int32), jnp.ones(64).at[5].set(jnp.nan)
    options = {"weights": weights, "reduction": reduction, "block_size": 8}
    value = softjax.linear_cross_entropy(jnp.ones((64, 3)), jnp.ones((3, 5)), labels, **options)
    expected = jnp.full(64, jnp.log10(5)).at[5].set(jnp.nan) if reduction == "none" else jnp.nan
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["none", *slow("mean")])
def test_weighted_in_every_mode(reduction):
    """A row of weight 0 holds NaN: no derivative of the caller's loss is NaN, forward or reverse."""
    hidden, kernel, _ = cases.layer(5)
    weights, labels = cases.weights(), cases.class_ids(5)
    clean, t = hidden, cases.layer(5, seed=2)[0]
    hidden = hidden.at[::4].set(jnp.nan)  # of weight 0

    def loss(h):
        options = {"weights": weights, "reduction": reduction, "block_size": 3}
        return softjax.linear_loss(lambda s: s.cross_entropy**2 / s.entropy, h, kernel, labels, **options).sum()

    @jax.jit
    def modes(h):
        gradient, over = jax.jvp(jax.grad(loss), (h,), (t,))
        return gradient, jax.jvp(loss, (h,), (t,))[1], over, jax.grad(lambda h: jax.jvp(loss, (h,), (t,))[1])(h)

    (gradient, push, over, under), (expected, _, second, _) = modes(hidden), modes(clean)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(push, (gradient * t).sum(), rtol=1e-4)
    np.testing.assert_allclose(over, under, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(over, second, rtol=1e-3, atol=1e-5)
