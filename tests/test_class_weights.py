"""`class_weights`: a weight for each class, as in torch, with smoothing, weights, masks and every kind of label."""

import math
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering
from jaxprs import count, matmuls

import softjax

CLASSES = 9
W = np.asarray(np.random.default_rng(7).uniform(0.2, 3.0, CLASSES), np.float32)
EXIST = np.arange(CLASSES) % 4 != 1


def expected(x, labels, w, weights=None, smoothing=0.0, exist=None, z_loss=0.0):
    """Losses in nats and the divisor of the mean, in float64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    exist = np.ones(x.shape[1], bool) if exist is None else exist
    z = np.log(np.exp(x - x.max(1, keepdims=True))[:, exist].sum(1)) + x.max(1)
    if isinstance(labels, softjax.SparseLabels):
        p = np.zeros_like(x)
        for i, (ids, probabilities) in enumerate(zip(*map(np.asarray, labels), strict=True)):
            np.add.at(p[i], ids, probabilities.astype(np.float64))
    elif labels.ndim == 1:
        p = np.eye(x.shape[1])[np.asarray(labels)]
    else:
        p = np.asarray(labels, np.float64)
    smoothed = (1 - smoothing) * p + smoothing / exist.sum()
    terms = np.where(exist, smoothed * w * (z[:, None] - x), 0)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    by_label = w[np.asarray(labels)] if not isinstance(labels, tuple) and labels.ndim == 1 else 1
    return terms.sum(1) + z_loss * z**2, weights, (weights * by_label).sum()


def labels_of(kind):
    if kind == "ids":
        return jnp.asarray(np.flatnonzero(EXIST)[np.asarray(cases.class_ids(int(EXIST.sum())))], jnp.int32)
    if kind == "distribution":
        return cases.distribution(CLASSES)
    ids = np.stack([cases.class_ids(CLASSES), cases.class_ids(CLASSES, seed=1), cases.class_ids(CLASSES)], -1)
    p = np.random.default_rng(3).dirichlet(np.ones(3), cases.SAMPLES)
    return softjax.SparseLabels(jnp.asarray(ids, jnp.int32), jnp.asarray(p, jnp.float32))


def test_the_value_of_torch():
    x, y, w = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0]), jnp.array([1.0, 2.0, 3.0])
    loss = softjax.cross_entropy(x, y, class_weights=w, label_smoothing=0.3, base=math.e)
    np.testing.assert_allclose(loss, 2.3299, atol=5e-5)


@pytest.mark.parametrize(("kind", "fused"), covering(["ids", "distribution", "sparse"], [True, False], quick=(0, 1, 2)))
def test_every_kind_of_label(kind, fused):
    """Value and gradient of each reduction, with smoothing, weights, a mask of the classes and a z-loss."""
    (hidden, kernel, _), labels, weights = cases.layer(CLASSES, spread=2.0), labels_of(kind), cases.weights()
    x = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    masked = kind != "sparse"  # the oracle does not know masked sparse labels
    for smoothing, reduction in ((0.0, "sum"), (0.3, "mean"), (0.3, "none")):
        options = {"weights": weights, "class_weights": W, "label_smoothing": smoothing, "base": math.e}
        options |= {"z_loss": 0.01, "reduction": reduction, "where": jnp.asarray(EXIST) if masked else None}
        exist = EXIST if masked else None
        rows, row_weights, divisor = expected(x, labels, W, weights, smoothing, exist, 0.01)
        g = np.asarray(cases.cotangent(), np.float64) if reduction == "none" else np.ones(len(x))

        def loss(hidden, options=options, g=g):
            if fused:
                losses = softjax.linear_cross_entropy(hidden, kernel, labels, block_size=4, **options)
            else:
                losses = softjax.cross_entropy(hidden @ kernel, labels, **options)
            return jnp.sum(losses * jnp.asarray(g, jnp.float32)) if losses.ndim else losses

        value, gradient = jax.jit(jax.value_and_grad(loss))(hidden)
        scale = row_weights * g / (divisor if reduction == "mean" else 1)
        np.testing.assert_allclose(value, (rows * scale).sum(), rtol=1e-5)

        def oracle(h, smoothing=smoothing, scale=scale, exist=exist):
            rows, _, _ = expected(h @ np.asarray(kernel, np.float64), labels, W, weights, smoothing, exist, 0.01)
            return (rows * scale).sum()

        h, t = np.asarray(hidden, np.float64), np.asarray(cases.layer(CLASSES, seed=5)[0], np.float64)
        slope = (oracle(h + 1e-6 * t) - oracle(h - 1e-6 * t)) / 2e-6
        np.testing.assert_allclose(np.vdot(gradient, t), slope, rtol=1e-4)


def test_edges():
    x = jnp.array([[0.0, 1.0, -jnp.inf], [2.0, 0.0, 1.0], [1.0, 1.0, 0.0], [jnp.nan, 0.0, 1.0]])
    y, w = jnp.array([1, 3, 0, -100]), jnp.array([2.0, 0.5, 0.0])
    weights = jnp.array([1.0, 1.0, 1.0, 0.0])
    for smoothing in (0.0, 0.1):
        options = {"class_weights": w, "weights": weights, "label_smoothing": smoothing, "base": math.e}

        def losses(x, options=options):
            return softjax.cross_entropy(x, y, reduction="none", **options)

        found, pull = jax.vjp(losses, x)
        (gradient,) = pull(jnp.ones(4))
        assert np.isfinite(found[0])  # the class of logit −inf has weight 0
        assert np.isnan(found[1])  # out of range
        np.testing.assert_array_equal(gradient[1], 0)
        np.testing.assert_array_equal((found[3], *gradient[3]), 0)  # ignored
        assert np.isfinite(gradient).all()
        kept = jnp.array([True, False, True, False])
        mean = softjax.cross_entropy(x, y, class_weights=w, weights=kept, label_smoothing=smoothing, base=math.e)
        np.testing.assert_allclose(mean, (found[0] + found[2]) / (0.5 + 2.0), rtol=1e-6)
    assert softjax.cross_entropy(x[1:2], jnp.array([2]), class_weights=w) == 0  # every weight is 0


def test_confident_rows_are_exact():
    """A dominant class with nearly all of the class weight: (q_j W − w_j) / C would cancel."""
    x, w = jnp.array([40.0, 0.0, 1.0]), jnp.array([1.0, 1e-9, 2e-9])
    gradient = jax.grad(
        partial(softjax.cross_entropy, labels=jnp.array(0), class_weights=w, label_smoothing=0.5, base=math.e)
    )(x)
    q = np.exp(np.asarray(x, np.float64) - 40)
    beside, total, w64 = q[1:].sum(), q.sum(), np.asarray(w, np.float64)
    q = q / total
    smooth = np.array([w64[1:].sum() - beside / total * w64.sum(), *(q[1:] * w64.sum() - w64[1:])]) / 3
    plain = np.array([-beside / total, *q[1:]])
    np.testing.assert_allclose(gradient, (0.5 * plain + 0.5 * smooth) / w64[0], rtol=1e-5)


def test_class_weights_are_constants_and_ones_change_nothing():
    hidden, kernel, _ = cases.layer(CLASSES)
    labels = labels_of("ids")

    def loss(w, hidden):
        return softjax.linear_cross_entropy(hidden, kernel, labels, class_weights=w, label_smoothing=0.1, block_size=4)

    np.testing.assert_array_equal(jax.grad(loss)(jnp.asarray(W), hidden), 0)
    plain = softjax.linear_cross_entropy(hidden, kernel, labels, label_smoothing=0.1, block_size=4)
    np.testing.assert_allclose(loss(jnp.ones(CLASSES, int), hidden), plain, rtol=1e-6)
    np.testing.assert_allclose(loss(jnp.ones(CLASSES, bool), hidden), plain, rtol=1e-6)
    second = jax.jvp(jax.grad(loss, 1), (jnp.asarray(W), hidden), (jnp.zeros(CLASSES), jnp.cos(hidden)))[1]
    assert np.isfinite(second).all()


def test_fused_in_three_matmuls_without_the_logits():
    hidden, kernel, _ = cases.layer(65, samples=48)
    labels = cases.class_ids(65, samples=48)

    def loss(hidden, kernel):
        options = {"class_weights": jnp.ones(65), "label_smoothing": 0.1, "block_size": 4}
        return softjax.linear_cross_entropy(hidden, kernel, labels, **options)

    step = jax.value_and_grad(loss, (0, 1))
    assert len(matmuls(step, hidden, kernel)) == 3
    for primitive in ("mul", "gather", "broadcast_in_dim", "exp"):
        assert count(step, hidden, kernel, primitive=primitive, size=48 * 65) == 0


def test_refused_class_weights():
    x, y = jnp.zeros((3, 5)), jnp.zeros(3, int)
    for w, error, message in [
        (jnp.ones(4), ValueError, r"`class_weights` must have one weight for each class, \(5,\); got shape \(4,\)"),
        (jnp.ones((3, 5)), ValueError, "`class_weights` must have one weight for each class"),
        (jnp.ones(5, complex), TypeError, "`class_weights` must be a real floating array"),
        ([1.0] * 5, TypeError, "`class_weights` must be an array"),
    ]:
        with pytest.raises(error, match=message):
            softjax.cross_entropy(x, y, class_weights=w)
        with pytest.raises(error, match=message):
            softjax.linear_cross_entropy(x, jnp.eye(5), y, class_weights=w)
