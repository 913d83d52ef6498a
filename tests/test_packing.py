"""Ignored samples cost no chunk: active samples are packed together, and results come back in the caller's order."""

from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import slow
from jaxprs import matmuls

import softjax
from softjax._linear import chunks

ROWS = 3  # samples of a chunk
ACTIVE = np.asarray(cases.weights()) != 0
assert 0 < ACTIVE.sum() < len(ACTIVE), ACTIVE


def with_nan(array):
    """The array with NaN in ignored samples."""
    return array.at[~ACTIVE].set(jnp.nan)


def scattered(samples, fraction, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=samples) < fraction)


def test_pack_puts_active_samples_first_and_keeps_their_order():
    active = jnp.array([False, True, False, True, True, False, False])
    packing = chunks.pack(active, 3)
    np.testing.assert_array_equal(packing.sample, [[1, 3, 4], [0, 2, 5], [6, 6, 6]])  # the last one pads
    np.testing.assert_array_equal(packing.row, [3, 0, 4, 1, 2, 5, 6])
    x = jnp.arange(14.0).reshape(7, 2)
    np.testing.assert_array_equal(packing.restore(packing.take(x)), x)


@pytest.mark.parametrize("reduction", ["mean", *slow("sum"), "none"])
def test_the_active_samples_alone_decide(reduction):
    """Value, gradients and aux equal those of a call on the active samples, and ignored ones have gradient 0."""
    hidden, kernel, bias = cases.layer(9)
    labels, weights, t = cases.class_ids(9), cases.weights(), jnp.linspace(0.5, 2.0, cases.SAMPLES)
    advantages = cases.cotangent(seed=1)

    def row_loss(s, advantage):
        return advantage * s.cross_entropy + s.entropy, {"rank": s.label_rank, "entropy": s.entropy}

    def loss(labels, weights, rows, g, hidden, kernel, bias, advantages, t):
        options = {"bias": bias, "weights": weights, "block_size": rows, "temperature": t}
        custom, aux = softjax.linear_loss(
            row_loss, hidden, kernel, labels, advantages, reduction=reduction, has_aux=True, **options
        )
        plain = softjax.linear_cross_entropy(hidden, kernel, labels, reduction=reduction, **options)
        return jnp.sum(g * (custom + plain)), (custom, aux)

    gradient = jax.jit(jax.value_and_grad(loss, (4, 5, 6, 7, 8), has_aux=True), static_argnums=2)
    arrays, g = (hidden, kernel, bias, advantages, t), cases.cotangent() if reduction == "none" else jnp.float32(1)
    packed = (with_nan(hidden), kernel, bias, with_nan(advantages), with_nan(t))
    (value, (custom, aux)), gradients = gradient(labels.at[~ACTIVE].set(-100), weights, ROWS, g, *packed)
    alone = [array[ACTIVE] if len(array) == cases.SAMPLES else array for array in arrays]
    expected = gradient(labels[ACTIVE], weights[ACTIVE], None, g[ACTIVE] if g.ndim else g, *alone)
    np.testing.assert_allclose(value, expected[0][0], rtol=1e-5)
    if reduction == "none":
        np.testing.assert_allclose(custom[ACTIVE], expected[0][1][0], rtol=1e-5)
        np.testing.assert_array_equal(custom[~ACTIVE], 0)
    for name, leaf in aux.items():
        np.testing.assert_allclose(leaf[ACTIVE], expected[0][1][1][name], rtol=1e-5)
    for array, found, exact in zip(arrays, gradients, expected[1], strict=True):
        if len(array) == cases.SAMPLES:
            np.testing.assert_array_equal(found[~ACTIVE], 0)
            found = found[ACTIVE]
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("kind", [*slow("forward_kl"), "jensen_shannon"])
def test_a_teacher_is_packed_with_its_student(kind):
    (hidden, kernel, _), (teacher, teacher_kernel, _) = cases.layer(9), cases.layer(9, features=5, seed=1)
    weights, t = cases.weights(), jnp.linspace(0.5, 2.0, cases.SAMPLES)

    @partial(jax.jit, static_argnums=0)
    def gradient(rows, *arrays):
        def loss(hidden, kernel, t):
            arguments = hidden, kernel, arrays[3], teacher_kernel
            return softjax.linear_divergence(*arguments, kind=kind, weights=arrays[4], temperature=t, block_size=rows)

        return jax.value_and_grad(loss, (0, 1, 2))(*arrays[:3])

    found = gradient(ROWS, with_nan(hidden), kernel, with_nan(t), with_nan(teacher), weights)
    alone = gradient(None, hidden[ACTIVE], kernel, t[ACTIVE], teacher[ACTIVE], weights[ACTIVE])
    np.testing.assert_allclose(found[0], alone[0], rtol=1e-5)
    np.testing.assert_allclose(found[1][0][ACTIVE], alone[1][0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found[1][1], alone[1][1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1][2][ACTIVE], alone[1][2], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[1][0][~ACTIVE], 0)


def chunks_computed(weights, rows, vmapped=False, differentiate=0):
    """How many chunks `linear_loss` computes, counted on the host."""
    calls = []

    def count(h):
        calls.append(h.shape)
        return np.zeros_like(h)

    def row_loss(s):
        h = jax.lax.stop_gradient(s.cross_entropy)
        zero = jax.pure_callback(count, jax.ShapeDtypeStruct((), h.dtype), h, vmap_method="expand_dims")
        return s.cross_entropy * (1 + zero)

    samples = weights.shape[-1]
    hidden, kernel, _ = cases.layer(5, samples=samples)

    def loss(hidden, weights):
        labels = jnp.zeros(samples, jnp.int32)
        return softjax.linear_loss(row_loss, hidden, kernel, labels, weights=weights, block_size=rows)

    gradient = jax.grad(loss, differentiate)
    gradient = jax.vmap(gradient, (None, 0)) if vmapped else gradient
    jax.block_until_ready(jax.jit(gradient)(hidden, weights))
    return len(calls)


@pytest.mark.parametrize("fraction", [0.0, *slow(0.1, 1.0), 0.5])
def test_only_chunks_with_active_samples_are_computed(fraction):
    weights = scattered(40, fraction).astype(jnp.float32)
    assert chunks_computed(weights, 8) == int(np.ceil(weights.sum() / 8))


def test_differentiated_weights_compute_every_chunk():
    """A sample of weight 0 has a derivative with respect to its weight: its loss."""
    weights = scattered(40, 0.2).astype(jnp.float32)
    assert chunks_computed(weights, 8, differentiate=1) == 5
    hidden, kernel, _ = cases.layer(9)
    labels = cases.class_ids(9)

    def loss(weights, reduction):
        options = {"reduction": reduction, "block_size": ROWS}
        return softjax.linear_cross_entropy(hidden, kernel, labels, weights=weights, **options).sum()

    losses = softjax.linear_cross_entropy(hidden, kernel, labels, reduction="none")
    for reduction in ("sum", "none"):
        np.testing.assert_allclose(jax.grad(loss)(cases.weights(), reduction), losses, rtol=1e-5)


def test_under_vmap_the_fullest_example_decides():
    weights = jnp.zeros((2, 40)).at[0, :3].set(1).at[1, 7:20].set(1)
    assert chunks_computed(weights, 8, vmapped=True) == 2


def test_every_transform():
    """Scattered weights in small chunks give the derivatives of one chunk, in every mode and transform."""
    hidden, kernel, _ = cases.layer(9)
    labels, t = cases.class_ids(9), cases.layer(9, seed=2)[0]
    weights = jnp.stack([cases.weights(), cases.weights(seed=1)])

    @partial(jax.jit, static_argnums=0)
    def results(rows, hidden, kernel):
        def loss(reduction, hidden, kernel, weights=weights[0]):
            options = {"weights": weights, "reduction": reduction, "block_size": rows}
            losses = softjax.linear_cross_entropy(hidden, kernel, labels, **options)
            return jnp.sum(losses**2)

        def scanned(hidden):
            return jax.lax.scan(lambda total, w: (total + loss("mean", hidden, kernel, w), None), 0.0, weights)[0]

        found = [jax.vmap(jax.grad(partial(loss, "mean")), (None, None, 0))(hidden, kernel, weights)]
        found += [jax.grad(scanned)(hidden), jax.grad(jax.checkpoint(partial(loss, "none")))(hidden, kernel)]
        for reduction in ("mean", "none"):
            gradient = jax.grad(partial(loss, reduction), (0, 1))
            found.append(jax.jvp(partial(loss, reduction), (hidden, kernel), (t, kernel))[1])
            found.append(jax.jvp(gradient, (hidden, kernel), (t, kernel))[1])
            found.append(jax.grad(lambda h, gradient=gradient: jnp.vdot(gradient(h, kernel)[1], kernel))(hidden))
        return found

    packed, in_one_chunk = (jax.tree.leaves(results(rows, hidden, kernel)) for rows in (2, None))
    for found, expected in zip(packed, in_one_chunk, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5 * float(jnp.abs(expected).max()))


def test_a_mask_of_ones_changes_no_bit():
    hidden, kernel, _ = cases.layer(9, samples=12)
    gradient = jax.jit(
        jax.value_and_grad(
            lambda h, k, w: softjax.linear_cross_entropy(h, k, cases.class_ids(9, samples=12), weights=w, block_size=4),
            (0, 1),
        )
    )
    for a, b in zip(*(jax.tree.leaves(gradient(hidden, kernel, w)) for w in (None, jnp.ones(12, bool))), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_packing_takes_no_copy_of_the_hidden_states(reduction):
    hidden, kernel, labels = jnp.zeros((512, 64)), jnp.zeros((64, 1024)), jnp.zeros(512, jnp.int32)

    def step(hidden, kernel, weights):
        def loss(hidden, kernel):
            options = {"weights": weights, "reduction": reduction, "block_size": 64}
            return softjax.linear_cross_entropy(hidden, kernel, labels, **options).sum()

        return jax.value_and_grad(loss, (0, 1))(hidden, kernel)

    weights = scattered(512, 0.3)
    without, packed = (
        jax.jit(step).lower(hidden, kernel, w).compile().memory_analysis().temp_size_in_bytes for w in (None, weights)
    )
    assert packed <= without + hidden.nbytes + 2**14  # the gradient of the hidden states in the order of the chunks
    count = {w is not None: matmuls(partial(step, hidden, kernel), w) for w in (None, weights)}
    assert count[True] == count[False]
