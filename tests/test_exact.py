"""Confident rows keep all digits of the loss, its gradient and the entropy, at any gap and in every mode."""

from functools import partial

import cases
import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import EPS
from covering import ROUTES, covering

import softjax

GAPS = [0.5, 5.0, 15.0, 17.0, 30.0, 37.0, 60.0, 85.0]
NATS = {"base": np.e}


def confident(gap, classes, ties=1, shift=0.0, samples=4, seed=0):
    """Rows whose peak is `gap` above the next logit, and labels: the peak or the class after it."""
    rng = np.random.default_rng([seed, classes, ties])
    x = rng.normal(size=(samples, classes)) * np.array([0.0, 0.1, 1.0, 2.0])[:, None]
    x = np.round((x - x.max(1, keepdims=True)) * 2**10) / 2**10  # the same gaps around 0 and around 1e4
    peaks = rng.permuted(np.arange(classes)[None].repeat(samples, 0), axis=1)[:, :ties]
    np.put_along_axis(x, peaks, gap, axis=1)
    labels = np.where(np.arange(samples) % 2 == 0, peaks[:, 0], (peaks[:, 0] + 1) % classes)
    return jnp.asarray(x + shift, jnp.float32), jnp.asarray(labels, jnp.int32)


def target(kind, labels, classes):
    if kind == "ids":
        return labels
    p = jax.nn.one_hot(labels, classes)
    other = np.random.default_rng(1).dirichlet(np.ones(classes), len(labels))
    targets = {"one-hot": p, "nearly one-hot": (1 - 1e-7) * p + 1e-7 * jnp.asarray(other, jnp.float32), "soft": other}
    return jnp.asarray(targets[kind], jnp.float32)


def gaps(x):
    """The distance of each logit to the peak. For the peak itself, the largest distance of the row."""
    below = np.asarray(x, np.float64).max(1, keepdims=True) - np.asarray(x, np.float64)
    return np.where(below == 0, below.max(1, keepdims=True), below)


def within(actual, expected, sizes, ulp):
    error = np.abs(np.asarray(actual, np.float64) - expected)
    tiny = 1e5 * 2.0**-126  # the terms of a row that underflow, times their gaps
    assert (error <= ulp * EPS * sizes + tiny).all(), (error / (EPS * np.maximum(sizes, tiny)) - ulp).max()


@jax.jit
def both(x, labels):
    loss, pull = jax.vjp(lambda x: softjax.cross_entropy(x, labels, reduction="none", **NATS), x)
    entropy, pull_entropy = jax.vjp(lambda x: softjax.statistics(x, labels).entropy, x)
    return loss, pull(jnp.ones_like(loss))[0], entropy, pull_entropy(jnp.ones_like(entropy))[0]


def check(x, labels):
    loss, gradient, entropy, entropy_gradient = both(x, labels)
    below, row = gaps(x), gaps(x).max(1)
    expected, dx, sizes = exact.cross_entropy(x, labels)
    within(loss, expected, expected, 8 + row)
    within(gradient, dx, sizes, 8 + below)
    expected, dx, sizes = exact.entropy(x)
    within(entropy, expected, expected, 8 + row)
    within(entropy_gradient, dx, sizes, 8 + below)


@pytest.mark.parametrize(
    ("kind", "classes", "route"),
    covering(["ids", "one-hot", "nearly one-hot", "soft"], [2, 3, 10, 129], ROUTES),
    indirect=["route"],
)
def test_every_gap(classes, kind, route):
    for gap in GAPS:
        for ties in (1, 2):
            for shift in (0.0, 1e4, -1e4):
                x, labels = confident(gap, classes, ties, shift)
                check(x, target(kind, labels, classes))


@pytest.mark.parametrize("classes", [1000, 32769, pytest.param(131072, marks=pytest.mark.slow)])
def test_many_classes(classes, route):
    """The label is the peak. The expected values sum the other classes without the peak."""
    for gap in (5.0, 17.0, 40.0):
        x, _ = confident(gap, classes)
        x = jnp.tile(x, (16, 1))  # enough rows for a loop over a few rows at a time
        labels = jnp.argmax(x, -1)
        loss, gradient, *_ = both(x, labels)
        x64 = np.asarray(x, np.float64)
        e = np.exp(x64 - x64.max(1, keepdims=True))
        label = np.asarray(labels)[:, None]
        np.put_along_axis(e, label, 0, 1)
        rest = e.sum(1)
        within(loss, np.log1p(rest), np.log1p(rest), 8 + gap + 14)
        within(
            np.take_along_axis(np.asarray(gradient), label, 1)[:, 0],
            -rest / (1 + rest),
            rest / (1 + rest),
            8 + gap + 14,
        )
        assert (np.abs(np.asarray(gradient, np.float64).sum(1)) <= (8 + gap + 14) * EPS * 2 * rest / (1 + rest)).all()


def test_known_values():
    for gap, expected in ((20.0, 4.1223073e-9), (15.0, 6.1180446e-7)):
        x = jnp.array([[gap, 0.0, 0.0]])
        loss, gradient = jax.value_and_grad(softjax.cross_entropy)(x, jnp.array([0]), **NATS)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient[0], [-expected, expected / 2, expected / 2], rtol=2e-6)
        s = softjax.statistics(x[0], jnp.array(0))
        np.testing.assert_allclose(s.peak_entropy, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bit_logits(dtype):
    for gap in (5.0, 10.0, 17.0, 30.0):
        x, labels = confident(gap, 10)
        x = x.astype(dtype)
        loss, gradient, *_ = both(x, labels)
        expected, dx, sizes = exact.cross_entropy(x, labels)
        within(loss, expected, expected, 8 + gaps(x).max(1))
        ulp = float(jnp.finfo(dtype).eps)
        smallest = float(jnp.finfo(dtype).smallest_subnormal) if dtype == jnp.float16 else 0
        assert (np.abs(np.asarray(gradient, np.float64) - dx) <= (ulp + 1e-5) * sizes + smallest).all()


def test_float64_logits(x64):
    losses = {40.0: 8.496708510e-18, 300.0: 2 * np.exp(-300.0), 700.0: 2 * np.exp(-700.0)}
    for gap, expected in losses.items():
        x = jnp.array([[gap, 0.0, 0.0]], jnp.float64)
        loss, gradient = jax.value_and_grad(softjax.cross_entropy)(x, jnp.array([0]), **NATS)
        np.testing.assert_allclose(loss, expected, rtol=1e-9)
        np.testing.assert_allclose(gradient[0], [-expected, expected / 2, expected / 2], rtol=1e-9)


@pytest.mark.parametrize("smoothing", [1e-9, 1e-3, 0.1])
def test_label_smoothing(smoothing):
    with_gradient = jax.jit(
        jax.vmap(jax.value_and_grad(lambda x, y: softjax.cross_entropy(x, y, label_smoothing=smoothing, **NATS)))
    )
    for gap in GAPS:
        x, labels = confident(gap, 10)
        loss, gradient = with_gradient(x, labels)
        expected, dx, sizes = exact.cross_entropy(x, labels, smoothing)
        within(loss, expected, expected, 12 + gaps(x).max(1))
        within(gradient, dx, sizes, 12 + gaps(x))


def test_softmax_and_log_softmax(route):
    @jax.jit
    def jacobians(x):
        functions = (lambda x: softjax.log_softmax(x, **NATS)), softjax.softmax
        return [jax.vmap(jax.jacrev(f))(x) for f in functions]

    for gap in GAPS:
        for ties in (1, 2):
            x, _ = confident(gap, 10, ties)
            q, not_q, log_q = exact.rows(x)
            within(softjax.log_softmax(x, **NATS), log_q, -log_q, 8 + gaps(x))
            within(softjax.softmax(x), q, q, 8 + gaps(x))
            log_jacobian, jacobian = jacobians(x)
            eye = np.eye(10)[None]
            expected = np.where(eye == 1, not_q[:, :, None], -q[:, None, :])
            within(log_jacobian, expected, np.abs(expected), 10 + gaps(x)[:, None, :].max(2, keepdims=True))
            expected = q[:, :, None] * expected
            within(jacobian, expected, np.abs(expected), 12 + 2 * gaps(x).max())


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_forward_mode_and_hessian_vector_products(reduction):
    v = jnp.asarray(np.random.default_rng(3).normal(size=(4, 10)), jnp.float32)

    @jax.jit
    def derivatives(x, labels):
        def loss(x):
            return softjax.cross_entropy(x, labels, reduction=reduction, **NATS).sum()

        def directional(x):
            return jax.jvp(loss, (x,), (v,))[1]

        return directional(x), jax.jvp(jax.grad(loss), (x,), (v,))[1], jax.grad(directional)(x)

    for gap in (5.0, 17.0, 40.0, 80.0):
        x, labels = confident(gap, 10)

        forward, *hvps = derivatives(x, labels)
        q, not_q, _ = exact.rows(x)
        _, dx, _ = exact.cross_entropy(x, labels)
        v64 = np.asarray(v, np.float64)
        terms = dx * v64
        np.testing.assert_allclose(forward, terms.sum(), rtol=0, atol=(16 + 2 * gap) * EPS * np.abs(terms).sum())
        # (H v)_j = q_j (v_j − Σ_i q_i v_i) = q_j Σ_{i≠j} q_i (v_j − v_i), which does not cancel at the peak
        spread = q[:, None, :] * (v64[:, :, None] - v64[:, None, :])
        expected, sizes = q * spread.sum(2), q * np.abs(spread).sum(2)
        for hvp in hvps:
            within(hvp, expected, sizes + q * not_q, 24 + 3 * gap)


def test_a_linear_layer_with_exact_logits():
    """A float32 matmul with the identity rounds nothing."""

    @partial(jax.jit, static_argnames=("reduction", "block_size"))
    @jax.value_and_grad
    def with_gradient(h, labels, reduction, block_size):
        options = {"reduction": reduction, "block_size": block_size, **NATS}
        return softjax.linear_cross_entropy(h, jnp.eye(10), labels, **options).sum()

    for gap in (5.0, 17.0, 40.0, 80.0):
        x, labels = confident(gap, 10, samples=4)
        loss, expected, sizes = exact.cross_entropy(x, labels)
        for block_size in (None, 3):
            for reduction in ("sum", "none"):
                value, gradient = with_gradient(x, labels, reduction, block_size)
                np.testing.assert_allclose(value, loss.sum(), rtol=(8 + gap) * EPS * 2)
                within(gradient, expected, sizes, 8 + gaps(x))


def test_the_gradient_of_a_confident_row_is_not_0():
    """In float32, q rounds to 1 at this gap."""
    x, labels = jnp.array([[17.5, 0.0]]), jnp.array([0])
    gradient = jax.grad(softjax.cross_entropy)(x, labels, **NATS)
    assert gradient[0, 0] == -gradient[0, 1] != 0


@jax.jit
def of_scaled_logits(x, labels, scale):
    """The loss, its gradient and the statistics of x · scale, a multiplication in the same program."""

    def loss(x, offset):
        return softjax.cross_entropy(x * scale + offset, labels, reduction="none", **NATS)

    value, pull = jax.vjp(loss, x, jnp.zeros_like(x))
    return value, pull(jnp.ones_like(value))[1], softjax.statistics(x * scale, labels)


@pytest.mark.parametrize(
    ("classes", "spread", "route"), covering([2, 5, 40], [1.0, 8.0, 30.0], ROUTES), indirect=["route"]
)
def test_logits_from_a_fused_multiplication(classes, spread, route):
    """A compiler may compute x · scale − peak with a single rounding. At the peak the result is then not 0."""
    x, labels = cases.logits(classes, spread, samples=64), cases.class_ids(classes, samples=64)
    for scale in (1 / 3, 0.37, 2.2985997):
        logits = jax.block_until_ready(x * jnp.float32(scale))  # rounded, which a fused multiplication is not
        expected, dx, sizes = exact.cross_entropy(logits, labels)
        value, gradient, s = of_scaled_logits(x, labels, jnp.float32(scale))
        rounding = np.abs(np.asarray(logits)).max(1)  # of the multiplication, which the program may omit
        row, below = gaps(logits).max(1) + rounding, gaps(logits) + rounding[:, None]
        within(value, expected, np.maximum(expected, 2.0**-20), 8 + row)
        within(gradient, dx, np.maximum(sizes, 2.0**-20), 8 + below)
        q, _, log_q = exact.rows(logits)
        np.testing.assert_allclose(s.collision, (q**2).sum(1), rtol=1e-5)
        np.testing.assert_allclose(s.peak_entropy, -log_q.max(1), rtol=1e-5, atol=1e-6)
        within(s.entropy, -(q * log_q).sum(1), np.maximum(-(q * log_q).sum(1), 2.0**-20), 8 + row)
        log = jax.jit(lambda x, scale: softjax.log_softmax(x * scale, base=np.e))(x, jnp.float32(scale))
        np.testing.assert_allclose(log, log_q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"logit_softcap": 7.0}, {"reduction": "none"}])
def test_a_layer_with_one_feature(options, route):
    """The matmul is then a multiplication, which XLA may fuse with later operations."""
    rng = np.random.default_rng(0)
    h, k = (jnp.asarray(rng.normal(size=shape) * 5, jnp.float32) for shape in ((64, 1), (1, 5)))
    labels = cases.class_ids(5, samples=64)
    u = np.asarray(h * k, np.float64)
    x = u if "logit_softcap" not in options else 7 * np.tanh(u / 7)
    loss = softjax.linear_cross_entropy(h, k, labels, base=np.e, **options)
    expected = exact.cross_entropy(x, labels)[0]
    np.testing.assert_allclose(np.mean(loss), expected.mean(), rtol=1e-5)


def test_hessian_vector_products_of_many_classes():
    """q_j (t_j − Σ q t), in units of the sizes of its terms, where the label is at a peak of small probability."""
    classes = 32000
    rng = np.random.default_rng(0)
    t = rng.normal(size=classes).astype(np.float32)

    @jax.jit
    def products(x, label):
        def gradient(x):
            return jax.grad(lambda x: softjax.cross_entropy(x, label, **NATS))(x)

        return jax.jvp(gradient, (x,), (t,))[1], jax.grad(lambda x: jnp.vdot(gradient(x), t))(x)

    for gap in (0.0, 0.5, 1.0, 5.0):
        x = rng.normal(size=classes).astype(np.float32)
        label = int(np.argmax(x))
        x[label] = np.sort(x)[-2] + np.float32(gap)
        q = np.exp(x.astype(np.float64) - x.max())
        q /= q.sum()
        expected, sizes = q * (t - q @ t), q * (np.abs(t) + q @ np.abs(t))
        for found in products(x, label):
            np.testing.assert_array_less(np.abs(np.asarray(found, np.float64) - expected), 3e-6 * sizes)
