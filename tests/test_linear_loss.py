"""The aux of a row loss is exact, needs no extra matmul and has no derivative. Also closed-over arrays and refusals."""

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from covering import covering, slow

import softjax
from softjax._api import linear_loss as linear_loss_module

C = 9
HIDDEN, KERNEL, BIAS = cases.layer(C, spread=3.0)
LABELS, SCALE = cases.class_ids(C), cases.cotangent()
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def row_loss(s, scale):
    aux = {
        "correct": s.label_rank == 0,
        "prediction": s.prediction,
        "entropy": s.entropy,
        "pair": jnp.stack([s.cross_entropy, s.log_normalizer]).astype(jnp.bfloat16),
        "constant": 1.0,
    }
    return scale * s.cross_entropy, aux


def loss(h, k, scale, labels=LABELS, **options):
    return softjax.linear_loss(row_loss, h, k, labels, scale, bias=BIAS, has_aux=True, **options)


def check(aux, shape=HIDDEN.shape[:-1]):
    logits = np.asarray(HIDDEN, np.float64) @ np.asarray(KERNEL, np.float64) + np.asarray(BIAS, np.float64)
    expected = oracle.statistics(logits, LABELS)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in aux.items()} == {
        "correct": (shape, bool),
        "prediction": (shape, np.int32),
        "entropy": (shape, np.float32),
        "pair": ((*shape, 2), jnp.bfloat16),
        "constant": (shape, np.float32),
    }
    np.testing.assert_array_equal(aux["prediction"].reshape(-1), logits.argmax(1))
    np.testing.assert_array_equal(aux["correct"].reshape(-1), logits.argmax(1) == np.asarray(LABELS))
    np.testing.assert_allclose(aux["entropy"].reshape(-1), expected["entropy"][0], rtol=1e-5)
    pair = np.stack([expected["cross_entropy"][0], expected["log_normalizer"][0]], -1)
    np.testing.assert_allclose(np.asarray(aux["pair"], np.float64).reshape(-1, 2), pair, rtol=0.01)
    np.testing.assert_array_equal(aux["constant"], 1)


@pytest.mark.parametrize(("reduction", "block_size"), covering(["mean", "sum", "none"], [None, 1, 4]))
def test_aux_changes_no_value_and_no_gradient(reduction, block_size):
    def without_aux(h, k, scale):
        return softjax.linear_loss(
            lambda s, a: row_loss(s, a)[0], h, k, LABELS, scale, bias=BIAS, reduction=reduction, block_size=block_size
        )

    def with_aux(h, k, scale):
        return loss(h, k, scale, reduction=reduction, block_size=block_size)

    @jax.jit
    def with_gradients(*arrays):
        g = SCALE if reduction == "none" else jnp.float32(0.7)
        expected, pull = jax.vjp(without_aux, *arrays)
        value, pull_with_aux, aux = jax.vjp(with_aux, *arrays, has_aux=True)
        return (value, expected), aux, (pull_with_aux(g), pull(g))

    value, aux = with_aux(HIDDEN, KERNEL, SCALE)
    check(aux)
    values, aux, gradients = with_gradients(HIDDEN, KERNEL, SCALE)
    check(aux)
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
def test_no_derivative_flows_through_aux(reduction):
    def sum_of_aux(h, k, scale):
        value, aux = loss(h, k, scale, reduction=reduction, block_size=4)
        return jnp.sum(aux["entropy"]) + 0 * jnp.sum(value)

    @jax.jit
    def both_modes(*arrays):
        return jax.grad(sum_of_aux, (0, 1, 2))(*arrays), jax.jvp(sum_of_aux, arrays, arrays)[1]

    gradients, tangent = both_modes(HIDDEN, KERNEL, SCALE)
    assert not any(map(np.any, gradients))
    assert tangent == 0


@pytest.mark.parametrize(("reduction", "matmuls"), [("mean", 3), ("sum", 3), ("none", 4)])
def test_aux_takes_no_extra_matmul(reduction, matmuls):
    def gradient(h, k):
        return jax.value_and_grad(
            lambda h, k: jax.tree.map(jnp.sum, loss(h, k, SCALE, reduction=reduction)), (0, 1), True
        )(h, k)

    program = jax.jit(gradient).lower(HIDDEN, KERNEL)
    assert program.as_text().count("dot_general") == matmuls


@REDUCTIONS
def test_ignored_samples_and_ignored_chunks(reduction):
    weights = jnp.arange(cases.SAMPLES) < 5
    bad = jnp.where(weights[:, None], HIDDEN, jnp.nan), jnp.where(weights, SCALE, jnp.inf)

    def value(h, k, scale, weights):
        return loss(h, k, scale, reduction=reduction, weights=weights, block_size=2)

    def total(h, k, scale, weights):
        losses, aux = value(h, k, scale, weights)
        return jnp.sum(losses), aux

    with_gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), True))
    (found, aux), gradients = with_gradients(bad[0], KERNEL, bad[1], weights)
    (clean, clean_aux), expected = with_gradients(HIDDEN, KERNEL, SCALE, weights)
    np.testing.assert_allclose(found, clean, rtol=1e-6)
    chex.assert_trees_all_close(gradients, expected, rtol=1e-6)
    for leaf, wanted in zip(jax.tree.leaves(aux), jax.tree.leaves(clean_aux), strict=True):
        np.testing.assert_array_equal(np.asarray(leaf[:5], np.float64), np.asarray(wanted[:5], np.float64))


def test_aux_under_vmap_scan_and_checkpoint_and_with_several_sample_axes():
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


FACTOR = 1.0


def with_global(s):
    return FACTOR * s.cross_entropy


@jax.custom_jvp
def with_rule(h):
    return h


with_rule.defjvp(lambda primals, tangents: (primals[0], FACTOR * tangents[0]))


def test_eager_calls_see_what_a_row_loss_reads_change(monkeypatch):
    """A global number, also in a helper or a custom derivative, and the attribute of an object."""

    class Settings:
        factor = 1.0

    def gradient(row_loss):
        return jax.grad(lambda h: softjax.linear_loss(row_loss, h, KERNEL, LABELS))(HIDDEN)

    row_losses = [
        with_global,
        lambda s: with_global(s),
        lambda s: with_rule(s.cross_entropy),
        lambda s: Settings.factor * s.cross_entropy,
    ]
    before = list(map(gradient, row_losses))
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    Settings.factor = 2.0
    for row_loss, first in zip(row_losses, before, strict=True):
        np.testing.assert_allclose(gradient(row_loss), 2 * first, rtol=1e-6)


def test_eager_calls_compile_a_program_once():
    """A new function with the same program does not compile again, nor does one with a custom derivative."""
    compiled = linear_loss_module._cached_linear_loss
    for row_losses in ([lambda s: 3 * s.entropy, lambda s: 3 * s.entropy], [softjax.losses.focal] * 2):
        first, second = row_losses
        softjax.linear_loss(first, HIDDEN, KERNEL, LABELS)
        size = compiled._cache_size()
        softjax.linear_loss(second, HIDDEN, KERNEL, LABELS)
        assert compiled._cache_size() == size
    softjax.linear_loss(lambda s: 4 * s.entropy, HIDDEN, KERNEL, LABELS)
    assert compiled._cache_size() == size + 1


def test_each_call_reads_closed_over_arrays_again():
    box = [jnp.float32(1)]

    def scaled(s):
        return box[0] * s.cross_entropy

    first = softjax.linear_loss(scaled, HIDDEN, KERNEL, LABELS)
    box[0] = jnp.float32(2)
    assert softjax.linear_loss(scaled, HIDDEN, KERNEL, LABELS) == 2 * first


def test_wrong_results_of_a_row_loss_are_refused_by_name():
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
    for (value, gradient), wanted, summed in zip(found, values, sums, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        np.testing.assert_allclose(gradient, summed, rtol=1e-5)
    assert loss(3.0) == loss(jnp.float32(3))
    with pytest.raises(ValueError, match=r"got shape \(2,\)\. .* Add axes of length 1: row_arg\[:, None\]\."):
        loss(scale[:, 0])


@pytest.mark.parametrize("index", [lambda e: jnp.mean(e, -1), lambda e: e[0], lambda e: e[:, None].sum()])
def test_a_row_loss_that_expects_a_batch_is_refused(index):
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
def test_ignored_rows_in_every_mode_of_differentiation(reduction):
    """Ignored rows hold NaN, and no derivative is NaN, in forward or reverse mode."""
    hidden, kernel, _ = cases.layer(5)
    weights, labels = cases.weights(), cases.class_ids(5)
    clean, t = hidden, cases.layer(5, seed=2)[0]
    hidden = hidden.at[::4].set(jnp.nan)  # the ignored rows

    def loss(h):
        options = {"weights": weights, "reduction": reduction, "block_size": 3}
        return softjax.linear_loss(lambda s: s.cross_entropy**2 / s.entropy, h, kernel, labels, **options).sum()

    @jax.jit
    def modes(h):
        gradient, forward_over_reverse = jax.jvp(jax.grad(loss), (h,), (t,))
        forward = jax.jvp(loss, (h,), (t,))[1]
        return gradient, forward, forward_over_reverse, jax.grad(lambda h: jax.jvp(loss, (h,), (t,))[1])(h)

    (gradient, forward, *seconds), (expected, _, second, _) = modes(hidden), modes(clean)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(forward, (gradient * t).sum(), rtol=1e-4)
    np.testing.assert_allclose(*seconds, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(seconds[0], second, rtol=1e-3, atol=1e-5)
