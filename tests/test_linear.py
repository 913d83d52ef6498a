"""`linear_cross_entropy` equals `cross_entropy(hidden @ kernel + bias)` for all chunk sizes, options and dtypes."""

import math
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from covering import ROUTES, covering, slow
from linear_law import RTOL, check
from programs import vjp

import softjax

REDUCTIONS = ["mean", "sum", "none"]
BLOCK_SIZES = [None, 1, 3, cases.SAMPLES, 1000]


@pytest.mark.parametrize(("block_size", "reduction", "spread"), covering(BLOCK_SIZES, REDUCTIONS, [0.02, 1.0, 20.0]))
def test_block_sizes_and_spreads(reduction, block_size, spread):
    check(reduction, *cases.layer(129, spread=spread), cases.class_ids(129), block_size)


@pytest.mark.parametrize(
    ("route", "reduction", "classes"),
    covering(ROUTES, ["sum", "none"], [1, 5, 127, 129, 2049]),
    indirect=["route"],
)
def test_class_counts(reduction, classes, route):
    check(reduction, *cases.layer(classes), cases.class_ids(classes), 4)


@pytest.mark.parametrize(("reduction", "block_size", "softcap"), covering(REDUCTIONS, [None, 4], [None, 3.0]))
def test_every_option(reduction, block_size, softcap):
    options = {"weights": cases.weights(), "label_smoothing": 0.1, "z_loss": 1e-3, "base": math.e}
    for labels in (cases.class_ids(9), cases.distribution(9)):
        check(reduction, *cases.layer(9, spread=3.0), labels, block_size, logit_softcap=softcap, **options)


@pytest.mark.parametrize(
    ("reduction", "dtype", "spread"), covering(["mean", "none"], [jnp.float16, jnp.bfloat16], [0.02, 1.0, 20.0])
)
def test_low_precision_is_as_exact_as_the_unfused_baseline(reduction, dtype, spread):
    # The bound is the error of the unfused baseline, whose matmuls take the same operands, plus a few ulp of the dtype.
    hidden, kernel, bias = cases.layer(129, spread=spread, dtype=dtype)
    labels, g = cases.class_ids(129), cases.cotangent()

    def fused(h, k, b):
        return softjax.linear_cross_entropy(h, k, labels, bias=b, reduction=reduction, block_size=4)

    def unfused(h, k, b):
        x = jnp.matmul(h, k, preferred_element_type=jnp.float32) + b.astype(jnp.float32)[None]
        return softjax.cross_entropy(x, labels, reduction=reduction)

    cotangent = g if reduction == "none" else g.mean()
    scale = np.asarray(g, np.float64) if reduction == "none" else float(g.mean()) / len(labels)
    loss, exact = oracle.linear_cross_entropy(
        hidden, kernel, labels, bias=bias, cotangent=np.broadcast_to(scale, len(labels))
    )
    value, gradients = vjp(fused, (hidden, kernel, bias), cotangent)
    np.testing.assert_allclose(value, loss if reduction == "none" else loss.mean(), rtol=3e-6, atol=3e-6)
    ulp = float(jnp.finfo(dtype).eps)
    _, baselines = vjp(unfused, (hidden, kernel, bias), cotangent)
    for gradient, baseline, true in zip(gradients, baselines, exact, strict=True):
        assert gradient.dtype == dtype
        error, bound = (np.abs(np.asarray(a, np.float64) - true).max() for a in (gradient, baseline))
        assert error <= bound + 3 * ulp * np.abs(true).max()


@pytest.mark.parametrize(("dtype", "size"), covering([jnp.float16, jnp.bfloat16], [1e-6, 1e6]))
def test_weights_of_any_size_in_low_precision(dtype, size):
    hidden, kernel, bias = cases.layer(9, dtype=dtype)
    w = cases.weights()

    @jax.jit
    def gradients(weights):
        def loss(h, k, b):
            return softjax.linear_cross_entropy(h, k, cases.class_ids(9), bias=b, weights=weights, block_size=4)

        return jax.grad(loss, (0, 1, 2))(hidden, kernel, bias)

    for scaled, unscaled in zip(gradients(w * size), gradients(w), strict=True):
        ulp = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(scaled.astype(jnp.float32), unscaled.astype(jnp.float32), rtol=4 * ulp, atol=ulp / 4)


def test_float64(x64):
    hidden, kernel, bias = (a.astype(jnp.float64) for a in cases.layer(129))
    value = check("mean", hidden, kernel, bias, cases.class_ids(129), 4, rtol=1e-13)
    assert value.dtype == jnp.float64


@pytest.mark.parametrize(
    ("dtypes", "reduction"),
    covering(
        [["bfloat16", "float32"], ["float32", "bfloat16"], ["float32", "float16"]],
        ["mean", "none"],
        quick=(0, 1, 2),
    ),
)
def test_mixed_dtypes(reduction, dtypes):
    hidden, kernel, bias = cases.layer(9)
    h, k = hidden.astype(dtypes[0]), kernel.astype(dtypes[1])

    def loss(h, k, b):
        return softjax.linear_cross_entropy(h, k, cases.class_ids(9), bias=b, block_size=4, reduction=reduction).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(h, k, bias)
    assert [a.dtype for a in gradients] == [h.dtype, k.dtype, bias.dtype]
    exact, _ = oracle.linear_cross_entropy(h, k, cases.class_ids(9), bias=bias)
    np.testing.assert_allclose(value, exact.mean() if reduction == "mean" else exact.sum(), rtol=1e-5)


@pytest.mark.parametrize(("labels", "reduction"), covering(["ids", "distribution"], ["sum", "none"]))
def test_float64_labels_or_kernel_of_a_float32_layer(x64, labels, reduction):
    hidden, kernel, bias = cases.layer(9)
    y = cases.class_ids(9) if labels == "ids" else cases.distribution(9).astype(jnp.float64)

    def loss(h, k, b, y=y):
        return softjax.linear_cross_entropy(h, k, y, bias=b, block_size=4, reduction=reduction).sum()

    for h, k in ((hidden, kernel.astype(jnp.float64)), (hidden, kernel)):
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(h, k, bias)
        assert [a.dtype for a in gradients] == [h.dtype, k.dtype, bias.dtype]
        assert value.dtype == (jnp.float64 if jnp.float64 in (k.dtype, y.dtype) else jnp.float32)
        exact, dense = oracle.linear_cross_entropy(h, k, y, bias=bias)
        np.testing.assert_allclose(value, exact.sum(), rtol=1e-6)
        np.testing.assert_allclose(gradients[1], dense[1], rtol=1e-5, atol=1e-5)


def test_leading_axes():
    hidden, kernel, bias = cases.layer(9, samples=12)
    labels, w = cases.class_ids(9, 12), cases.weights(12)
    flat = softjax.linear_cross_entropy(hidden, kernel, labels, bias=bias, weights=w, reduction="none")
    shaped = softjax.linear_cross_entropy(
        hidden.reshape(3, 2, 2, -1), kernel, labels.reshape(3, 2, 2), bias=bias, weights=w.reshape(3, 2, 2),
        reduction="none", block_size=5,
    )  # fmt: skip
    np.testing.assert_allclose(shaped.reshape(-1), flat, rtol=RTOL)
    single = softjax.linear_cross_entropy(hidden[3], kernel, labels[3], bias=bias)
    np.testing.assert_allclose(single, softjax.cross_entropy((hidden @ kernel + bias[None])[3], labels[3]), rtol=RTOL)
    broadcast = softjax.linear_cross_entropy(
        hidden.reshape(3, 4, -1), kernel, labels.reshape(3, 4), weights=w[None, :4]
    )
    dense = softjax.cross_entropy((hidden @ kernel).reshape(3, 4, -1), labels.reshape(3, 4), weights=w[None, :4])
    np.testing.assert_allclose(broadcast, dense, rtol=RTOL)


@pytest.mark.parametrize(("reduction", "block_size"), covering(REDUCTIONS, [4, None]))
def test_an_ignored_row_may_hold_anything(reduction, block_size):
    hidden, kernel, bias = cases.layer(9)
    labels, w = cases.class_ids(9), cases.weights()
    penalties = {"z_loss": 0.1, "label_smoothing": 0.1}
    ignored = np.asarray(w) == 0
    bad = hidden.at[0].set(jnp.nan).at[4].set(jnp.inf).at[8].set(1e38)

    @jax.jit
    def gradients(hidden, labels):
        def loss(h, k, b, w):
            losses = softjax.linear_cross_entropy(
                h, k, labels, bias=b, weights=w, reduction=reduction, block_size=block_size, **penalties
            )
            return (losses * (cases.cotangent() if reduction == "none" else 1)).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(hidden, kernel, bias, w)

    value, (dh, dk, db) = gradients(bad, jnp.where(ignored, -100, labels))
    expected, (eh, ek, eb) = gradients(hidden, labels)
    np.testing.assert_allclose(value, expected, rtol=RTOL)
    np.testing.assert_array_equal(dh[ignored], 0)
    for gradient, wanted in ((dh, eh), (dk, ek), (db, eb)):
        np.testing.assert_allclose(gradient, wanted, rtol=RTOL, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", *slow("sum", "none")])
def test_edge_cases(reduction):
    """No active sample, a label out of range, and no samples."""
    hidden, kernel, _ = cases.layer(5)
    labels = cases.class_ids(5)

    @jax.jit
    def grad(h=hidden, y=labels, **options):
        def loss(h, k):
            return softjax.linear_cross_entropy(h, k, y, reduction=reduction, block_size=4, **options).sum()

        return jax.value_and_grad(loss, (0, 1))(h, kernel)

    value, (dh, dk) = grad(weights=jnp.zeros(cases.SAMPLES))
    assert value == 0
    assert not dh.any()
    assert not dk.any()
    value, (dh, dk) = grad(y=labels.at[2].set(5))
    assert jnp.isnan(value)
    _, (eh, ek) = grad(weights=jnp.ones(cases.SAMPLES).at[2].set(0))
    scale = (cases.SAMPLES - 1) / cases.SAMPLES if reduction == "mean" else 1
    np.testing.assert_allclose(dh, eh * scale, rtol=RTOL, atol=1e-6)
    np.testing.assert_allclose(dk, ek * scale, rtol=RTOL, atol=1e-6)
    value, (dh, dk) = grad(h=hidden[:0], y=labels[:0])
    assert value == 0
    assert dh.shape == (0, 13)
    assert not dk.any()


def test_the_gradient_by_the_weights():
    hidden, kernel, _ = cases.layer(5)
    labels = cases.class_ids(5)

    @partial(jax.jit, static_argnums=1)
    @jax.grad
    def by_weights(w, reduction):
        options = {"weights": w, "reduction": reduction, "block_size": 2}
        return softjax.linear_cross_entropy(hidden, kernel, labels, **options).sum()

    for w in (cases.weights(), jnp.zeros(cases.SAMPLES)):
        # also of ignored samples and ignored chunks
        for reduction in ("sum", "none"):
            gradient = by_weights(w, reduction)
            np.testing.assert_allclose(gradient, oracle.linear_cross_entropy(hidden, kernel, labels)[0], rtol=RTOL)

    def total(k, w):
        return softjax.linear_cross_entropy(hidden, k, labels, weights=w, reduction="sum", block_size=2)

    mixed = jax.jit(jax.jacfwd(jax.grad(total), 1))(kernel, jnp.zeros(cases.SAMPLES))
    g = cases.cotangent()
    _, (_, dk, _) = oracle.linear_cross_entropy(hidden, kernel, labels, cotangent=g)
    np.testing.assert_allclose(mixed @ g, dk, atol=1e-4)


@pytest.mark.parametrize("reduction", ["mean", *slow("none")])
def test_every_mode_of_differentiation(reduction):
    hidden, kernel, bias = cases.layer(7, features=3)
    labels, g = cases.class_ids(7), cases.cotangent()
    tangents = tuple(cases.layer(7, features=3, seed=1))

    def fused(h, k, b, w=None):
        loss = softjax.linear_cross_entropy(
            h, k, labels, bias=b, weights=w, reduction=reduction, block_size=4, z_loss=0.1
        )
        return (loss * (g if reduction == "none" else 1)).sum()

    def unfused(h, k, b, w=None):
        loss = softjax.cross_entropy(h @ k + b[None], labels, weights=w, reduction=reduction, z_loss=0.1)
        return (loss * (g if reduction == "none" else 1)).sum()

    def weighted(f, w):
        return f(hidden, kernel, bias, w)

    def derivatives(f):
        point = (hidden, kernel, bias)
        yield jax.jvp(f, point, tangents)
        yield jax.jvp(jax.grad(f, (0, 1, 2)), point, tangents)  # a Hessian-vector product
        yield jax.grad(lambda k: sum((a**2).sum() for a in jax.grad(f, (0, 1))(hidden, k, bias)))(kernel)
        yield jax.hessian(f, 1)(*point)
        yield jax.grad(jax.checkpoint(f), (0, 1))(*point)
        yield jax.linearize(f, *point)[1](*tangents)
        yield jax.vmap(jax.value_and_grad(f, (0, 1)), (0, None, None))(jnp.stack([hidden, -hidden]), kernel, bias)
        yield jax.grad(lambda k: jax.vmap(f, (0, None, None))(jnp.stack([hidden, -hidden]), k, bias).sum())(kernel)
        yield jax.grad(lambda w: jax.vmap(lambda w: weighted(f, w))(w).sum())(jnp.stack([g, -g]))
        yield jax.vmap(f, (None, 0, None))(hidden, jnp.stack([kernel, -kernel]), bias)
        yield jax.lax.scan(lambda c, h: (c + f(h, kernel, bias), None), 0.0, jnp.stack([hidden, -hidden]))[0]

    for actual, expected in zip(*(jax.jit(lambda f=f: list(derivatives(f)))() for f in (fused, unfused)), strict=True):
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("route", ["mean", "sum", "none", "loss"])
def test_the_loss_scale_keeps_float16_gradients_from_underflow(route):
    """Gradients of confident logits underflow float16. So the loss scale multiplies them before they are rounded."""
    h, k, y = jnp.array([[4.0]], jnp.float16), jnp.array([[4.75, 0.0]], jnp.float16), jnp.array([0])

    def loss(h, k):
        if route == "loss":
            return 2.0**15 * softjax.linear_loss(lambda s: s.cross_entropy, h, k, y)
        return 2.0**15 * softjax.linear_cross_entropy(h, k, y, reduction=route, base=np.e).sum()

    rest = np.exp(-19.0)
    dh, dk = jax.jit(jax.grad(loss, (0, 1)))(h, k)
    np.testing.assert_allclose(dk[0].astype(jnp.float32), [-(2**15) * 4 * rest, 2**15 * 4 * rest], rtol=2e-3)  # 7.34e-4
    np.testing.assert_allclose(dh[0, 0].astype(jnp.float32), -(2**15) * 4.75 * rest, rtol=2e-3)
