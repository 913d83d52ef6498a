"""Divergences of logits and of two last layers, against float64: values, gradients, options and edge cases."""

import math

import as_users
import cases
import exact
import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest
from covering import ROUTES, covering, slow
from programs import vjp

import softjax
from softjax._xla import one_cpu

KINDS = ["forward_kl", "reverse_kl", "jensen_shannon"]


def pair(classes, spread=1.0, distance=0.5, samples=cases.SAMPLES):
    """The logits of a student, and of a teacher with similar logits."""
    x = cases.logits(classes, spread, samples)
    return x, x + distance * min(spread, 1) * cases.logits(classes, samples=samples, seed=1)


def dense(x, y, **options):
    return softjax.divergence(x, y, reduction="none", **options)


def leading_axis(x, y, **options):
    return softjax.divergence(x.T, y.T, axis=0, reduction="none", **options)


def vmapped(x, y, **options):
    return jax.vmap(lambda x, y: softjax.divergence(x, y, **options))(x, y)


def as_kernel(x, y, **options):
    eye = jnp.eye(len(x), dtype=jnp.float32)
    return softjax.linear_divergence(eye, x, eye, y, reduction="none", block_size=4, **options)


def as_hidden(x, y, **options):
    """The student's logits are the hidden states, the teacher's logits are a kernel."""
    student, teacher = jnp.eye(x.shape[1]), jnp.eye(len(x))
    return softjax.linear_divergence(x, student, teacher, y, reduction="none", block_size=1000, **options)


def fused(x, y, **options):
    """The divergence of each row, as the gradient of the fused sum by the weights."""

    def total(weights):
        eye = jnp.eye(len(x))
        arguments = {"weights": weights, "reduction": "sum", "block_size": 3} | options
        return softjax.linear_divergence(x, jnp.eye(x.shape[1]), eye, y, **arguments)

    return jax.grad(total)(jnp.ones(len(x)))


WAYS = [dense, leading_axis, vmapped, as_kernel, as_hidden]


@pytest.mark.parametrize(("way", "kind", "classes", "spread"), covering(WAYS, KINDS, [(5, 1.0), (129, 8.0), (2, 30.0)]))
def test_value_and_gradient(way, kind, classes, spread):
    x, y = pair(classes, spread)
    for beta, temperature in ((0.5, 1.0), (0.1, 2.5)):
        options = {"kind": kind, "beta": beta, "temperature": temperature, "base": math.e}
        value, (dx,) = vjp(lambda x, options=options: way(x, y, **options), (x,), cases.cotangent())
        expected, gradient, teacher_gradient = exact.divergence(x, y, kind, beta, temperature)
        # the relative change from rounding each logit
        rounding = (np.abs(gradient * x) + np.abs(teacher_gradient * y)).sum(1) * np.finfo(np.float32).eps / expected
        allowed = 1e-5 + rounding
        assert np.all(np.abs(value - expected) <= allowed * expected)
        g = np.asarray(cases.cotangent(), np.float64)
        scale = np.abs(gradient).max(1) * np.abs(g)
        error = np.abs(dx - g[:, None] * gradient).max(1)
        assert np.all(error <= allowed * scale)


@pytest.mark.parametrize(("kind", "route"), covering(KINDS, ROUTES), indirect=["route"])
def test_both_routes(kind, route):
    """The same results on one CPU and on other platforms."""
    x, y = pair(7)
    for way in (dense, as_kernel):
        value, gradient = jax.jit(jax.value_and_grad(lambda x, way=way: jnp.sum(way(x, y, kind=kind, base=math.e))))(x)
        expected, dx, _ = exact.divergence(x, y, kind)
        np.testing.assert_allclose(value, expected.sum(), rtol=1e-5)
        np.testing.assert_allclose(gradient, dx, atol=1e-6)


@pytest.mark.parametrize(("kind", "gap"), covering(KINDS, [10.0, 40.0, 80.0]))
def test_confident_rows(kind, gap):
    """Student and teacher are equally confident or not. Each value and gradient entry has a relative error ≤ 1e-3."""
    x = jnp.asarray([[gap, 0.0, -1.0, 0.5], [gap, 0.0, 0.0, 0.3]])
    y = jnp.asarray([[gap, 0.2, -1.2, 0.3], [gap / 2, 0.4, -1.0, 0.0]])
    for way in (dense, as_kernel):
        value, (dx,) = vjp(lambda x, way=way: way(x, y, kind=kind, base=math.e), (x,), jnp.ones(2))
        expected, gradient, _ = exact.divergence(x, y, kind)
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-37)
        np.testing.assert_allclose(dx, gradient, rtol=1e-3, atol=1e-37)


@pytest.mark.parametrize(("kind", "spread"), covering(KINDS, [0.02, 1.0, 30.0]))
def test_never_negative_and_0_for_equal_logits(kind, spread):
    x = cases.logits(129, spread, samples=500)
    noise = jnp.asarray(
        np.random.default_rng(0).normal(size=x.shape) * np.geomspace(1e-7, 1, 500)[:, None], jnp.float32
    )
    assert np.all(dense(x, x + noise, kind=kind, temperature=1.3) >= 0)
    value, gradient = jax.value_and_grad(lambda x: softjax.divergence(x, cases.logits(129, spread, 500), kind=kind))(x)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("kind", ["jensen_shannon", *slow("forward_kl", "reverse_kl")])
def test_every_option(kind):
    x, y = pair(9)
    exist = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], bool)
    w, base = cases.weights(), 2.0
    expected, gradient, _ = exact.divergence(x[:, exist], y[:, exist], kind, 0.2, 1.7)
    dx = np.zeros(x.shape)
    dx[:, exist] = gradient
    scale = np.asarray(w, np.float64) / np.log(base)
    options = {"kind": kind, "beta": 0.2, "temperature": 1.7, "base": base, "weights": w, "where": jnp.asarray(exist)}
    eye = jnp.eye(len(x))
    for reduction, divisor in (("mean", float(w.sum())), ("sum", 1.0)):
        arguments = options | {"reduction": reduction}
        for way in (
            lambda x, a=arguments: softjax.divergence(x, y, **a),
            lambda x, a=arguments: softjax.linear_divergence(eye, x, eye, y, **a, block_size=4),
        ):
            value, found = jax.jit(jax.value_and_grad(way))(x)
            np.testing.assert_allclose(value, (scale * expected).sum() / divisor, rtol=1e-5)
            np.testing.assert_allclose(found, scale[:, None] * dx / divisor, atol=1e-6)


@pytest.mark.parametrize(("kind", "way"), covering(KINDS, [dense, as_kernel, fused]))
def test_derivatives_by_temperature_and_beta(way, kind):
    x, y = pair(7)

    def total(temperature, beta):
        return jnp.sum(way(x, y, kind=kind, temperature=temperature, beta=beta, base=math.e))

    point, step = (1.7, 0.3), 1e-5
    found = jax.jit(jax.grad(total, argnums=(0, 1)))(*map(jnp.float32, point))
    above, below = (exact.divergence(x, y, kind, point[1], point[0] + s)[0].sum() for s in (step, -step))
    np.testing.assert_allclose(found[0], (above - below) / (2 * step), rtol=1e-4)
    above, below = (exact.divergence(x, y, kind, point[1] + s, point[0])[0].sum() for s in (step, -step))
    np.testing.assert_allclose(found[1], (above - below) / (2 * step), rtol=1e-4, atol=1e-6)
    forward = jax.jvp(total, tuple(map(jnp.float32, point)), (jnp.float32(1), jnp.float32(1)))[1]
    np.testing.assert_allclose(forward, found[0] + found[1], rtol=1e-5)


@pytest.mark.parametrize(("kind", "way"), covering(KINDS, [fused, dense, as_hidden]))
def test_every_mode_of_differentiation(way, kind):
    x, y = pair(5, samples=3)

    def total(x):
        return jnp.sum(way(x, y, kind=kind, beta=0.3, temperature=1.5) * jnp.array([1.0, -0.5, 2.0]))

    direction = cases.logits(5, samples=3, seed=4)
    gradient = jax.jit(jax.grad(total))

    @jax.jit
    def other_modes(x):
        forward = jax.jvp(total, (x,), (direction,))[1]
        forward_over_reverse = jax.jvp(jax.grad(total), (x,), (direction,))[1]
        reverse_over_reverse = jax.grad(lambda x: jnp.vdot(jax.grad(total)(x), direction))(x)
        return forward, (forward_over_reverse, reverse_over_reverse)

    forward, seconds = other_modes(x)
    np.testing.assert_allclose(forward, jnp.vdot(gradient(x), direction), rtol=1e-4)
    step = 1e-2
    expected = (gradient(x + step * direction) - gradient(x - step * direction)) / (2 * step)
    for second in seconds:
        np.testing.assert_allclose(second, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_gets_no_gradient(kind):
    x, y = pair(5)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda y: jnp.sum(dense(x, y, kind=kind))))(y), 0)
    hidden, kernel, bias = cases.layer(5)

    def loss(*teacher):
        return softjax.linear_divergence(hidden, kernel, *teacher[:2], teacher_bias=teacher[2], kind=kind)

    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(hidden + 1, kernel, bias):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_classes_that_only_student_or_teacher_has(temperature):
    inf = jnp.inf
    x, y = (
        jnp.array([[0.0, -inf, 1.0], [0.0, 2.0, 1.0], [0.0, -inf, 1.0]]),
        jnp.array([[0.0, 2.0, 1.0], [0.0, -inf, 1.0], [0.0, -inf, 3.0]]),
    )

    def both(kind):
        return vjp(lambda x: dense(x, y, kind=kind, temperature=temperature, base=math.e), (x,), jnp.ones(3))

    last_row = [exact.divergence(x[2:, ::2], y[2:, ::2], kind, 0.5, temperature)[0][0] for kind in KINDS]
    found = {kind: both(kind) for kind in KINDS}
    np.testing.assert_array_equal(np.isinf(found["forward_kl"][0]), [True, False, False])
    np.testing.assert_array_equal(np.isinf(found["reverse_kl"][0]), [False, True, False])
    np.testing.assert_array_equal(np.isinf(found["jensen_shannon"][0]), [False, False, False])
    for (value, (dx,)), expected in zip(found.values(), last_row, strict=True):
        np.testing.assert_allclose(value[2], expected, rtol=1e-5)
        assert np.all(np.isfinite(dx))
    q, p = jax.nn.softmax(x / temperature), jax.nn.softmax(y / temperature)
    np.testing.assert_allclose(found["forward_kl"][1][0], (q - p) / temperature, atol=1e-6)
    m = (q + p) / 2
    kl = jnp.where(p > 0, p * jnp.log(p / m), 0) + jnp.where(q > 0, q * jnp.log(q / m), 0)
    np.testing.assert_allclose(found["jensen_shannon"][0], kl.sum(1) / 2, rtol=1e-5)


SECOND_DERIVATIVES = {"hessian": jax.hessian, "reverse twice": lambda f, by: jax.jacrev(jax.jacrev(f, by), by)}


@pytest.mark.parametrize(
    ("kind", "lacking", "mode"),
    covering([("forward_kl", "teacher"), ("reverse_kl", "student"), ("jensen_shannon", "student"),
              ("jensen_shannon", "teacher"), ("jensen_shannon", "both"), ("forward_kl", "both")], SECOND_DERIVATIVES),
)  # fmt: skip
def test_second_derivatives_with_a_class_without_probability(kind, lacking, mode, x64):
    """A logit of −inf acts as a very low logit, also in the derivatives by T and β."""
    x, y = (a.astype(jnp.float64) for a in pair(5, samples=3))

    def total(t, beta, x, logit):
        student = x if lacking == "teacher" else x.at[:, 3].set(logit)
        teacher = y if lacking == "student" else y.at[:, 3].set(logit)
        options = {"kind": kind, "temperature": t, "beta": beta, "base": math.e}
        return softjax.divergence(student, teacher, reduction="sum", **options)

    second = jax.jit(SECOND_DERIVATIVES[mode](total, (0, 1, 2)))
    point = jnp.float64(1.7), jnp.float64(0.3), x
    derivatives = (jax.tree.leaves(second(*point, jnp.float64(logit))) for logit in (-jnp.inf, -3000.0))
    for found, expected in zip(*derivatives, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 1e-6, 1 - 1e-6, 1.0])
def test_jensen_shannon_with_an_extreme_beta(beta):
    x, y = pair(5, spread=30.0)
    value = dense(x, y, kind="jensen_shannon", beta=beta, base=math.e)
    if beta in (0.0, 1.0):
        np.testing.assert_array_equal(value, 0)
        by_beta = jax.grad(lambda b: jnp.sum(dense(x, y, kind="jensen_shannon", beta=b, base=math.e)))(
            jnp.float32(beta)
        )
        kind, sign = ("forward_kl", 1) if beta == 0 else ("reverse_kl", -1)
        np.testing.assert_allclose(by_beta, sign * exact.divergence(x, y, kind)[0].sum(), rtol=1e-4)
    else:
        np.testing.assert_allclose(
            value, exact.divergence(x, y, "jensen_shannon", float(np.float32(beta)))[0], rtol=1e-3
        )


@pytest.mark.parametrize(
    ("way", "kind", "bad", "temperature"),
    covering([dense, as_hidden, fused], KINDS, [jnp.nan, jnp.inf, -jnp.inf], [2.0, 1.0]),
)
def test_ignored_rows_may_hold_anything(way, kind, bad, temperature):
    x, y = pair(5)
    w = jnp.ones(len(x)).at[jnp.array([1, 4])].set(0)

    def total(x, y):
        options = {"kind": kind, "temperature": temperature}
        if way is dense:
            return softjax.divergence(x, y, weights=w, reduction="sum", **options)
        if way is as_hidden:
            return jnp.sum(as_hidden(x, y, weights=w, **options))
        eye = jnp.eye(5)
        return softjax.linear_divergence(x, eye, y, eye, weights=w, reduction="sum", block_size=3, **options)

    with_gradient = jax.jit(jax.value_and_grad(total))
    expected, gradient = with_gradient(x, y)
    if way is as_hidden:  # in `as_hidden` the teacher's logits are a kernel
        value, found = with_gradient(x.at[1].set(bad), y)
    else:
        value, found = with_gradient(x.at[1].set(bad).at[4, 2].set(bad), y.at[4].set(bad).at[1, 0].set(bad))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(found, gradient, atol=1e-7)
    np.testing.assert_array_equal(found[jnp.array([1, 4])], 0)


@pytest.mark.parametrize("kind", ["reverse_kl", *slow("forward_kl", "jensen_shannon")])
def test_two_layers_of_different_widths_dtypes_softcaps_and_biases(kind):
    hidden, kernel, bias = cases.layer(29, features=13)
    teacher = [a.astype(jnp.bfloat16) for a in cases.layer(29, features=17, seed=1)]
    options = {"kind": kind, "beta": 0.3, "temperature": 1.5, "weights": cases.weights(), "base": 2.0}

    def unfused(hidden, kernel, bias):
        x = 5 * jnp.tanh((jnp.matmul(hidden, kernel) + bias[None]) / 5)
        h, k, b = (a.astype(jnp.float32) for a in teacher)
        return softjax.divergence(x, 2 * jnp.tanh((jnp.matmul(h, k) + b[None]) / 2), **options)

    def fused(hidden, kernel, bias):
        caps = {"logit_softcap": 5, "teacher_logit_softcap": 2.0, "block_size": 4}
        biases = {"bias": bias, "teacher_bias": teacher[2]}
        return softjax.linear_divergence(hidden, kernel, *teacher[:2], **biases, **caps, **options)

    expected, gradients = jax.jit(jax.value_and_grad(unfused, argnums=(0, 1, 2)))(hidden, kernel, bias)
    value, found = jax.jit(jax.value_and_grad(fused, argnums=(0, 1, 2)))(hidden, kernel, bias)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    for gradient, wanted in zip(found, gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=2e-4 * np.abs(wanted).max())
    transposed = jax.jit(lambda k: fused(hidden, k.T, bias))(kernel.T)
    np.testing.assert_allclose(transposed, value, rtol=1e-5)


@pytest.mark.parametrize(("kind", "reduction", "count"), covering(KINDS, [("mean", 4), ("none", 6)]))
def test_count_of_matmuls_and_no_array_of_all_logits(kind, reduction, count):
    """The value takes two matmuls, its gradients `count`. No array has all samples and classes."""
    arrays = [jnp.ones(shape) for shape in ((64, 8), (8, 97), (64, 6), (6, 97))]

    def loss(*arrays):
        options = {"kind": kind, "reduction": reduction, "block_size": 16, "temperature": 2.0}
        return jnp.sum(softjax.linear_divergence(*arrays, **options))

    with_gradients = jax.value_and_grad(loss, argnums=(0, 1))
    assert len(jaxprs.matmuls(loss, *arrays)) == 2
    assert len(jaxprs.matmuls(with_gradients, *arrays)) == count
    sizes = [v.aval.size for e in jaxprs.equations(jax.make_jaxpr(with_gradients)(*arrays)) for v in e.outvars]
    assert max(sizes) == 16 * 97


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_temporary_memory_of_two_chunks(reduction):
    samples, features, rows, classes = 512, 16, 128, 32768

    def loss(*arrays):
        return softjax.linear_divergence(*arrays, reduction=reduction, block_size=rows, temperature=2.0).sum()

    shapes = (samples, features), (features, classes)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (*shapes, *shapes)]
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile(as_users.OPTIONS)
    chunk, kernel, hidden = (4 * size for size in (rows * classes, features * classes, samples * features))
    arrays = 2.5 if one_cpu.on_one_cpu(jnp.zeros(())) else 8
    assert program.memory_analysis().temp_size_in_bytes < arrays * chunk + kernel + 4 * hidden


def test_not_on_one_cpu_no_pass_keeps_an_array_for_the_next(monkeypatch):
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: False)
    x = jax.ShapeDtypeStruct((512, 4096), jnp.float32)
    program = jax.jit(lambda x, y: dense(x, y, kind="forward_kl")).lower(x, x).compile(as_users.OPTIONS)
    assert program.memory_analysis().temp_size_in_bytes < 3 * 4 * x.size  # 5 if each pass kept an array for the next


def test_no_samples_and_one_class():
    for kind in KINDS:
        assert softjax.divergence(jnp.zeros((0, 5)), jnp.zeros((0, 5)), kind=kind) == 0
        one_class = jnp.ones((3, 1))
        value, gradient = jax.jit(jax.value_and_grad(lambda x, kind=kind: softjax.divergence(x, 2 * x, kind=kind)))(
            one_class
        )
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
        hidden, kernel = jnp.zeros((0, 4)), jnp.zeros((4, 5))
        assert softjax.linear_divergence(hidden, kernel, hidden, kernel, kind=kind, reduction="none").shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_logit_gives_a_nan_divergence(kind):
    x, y = pair(5)

    @jax.jit
    def with_gradient(x, y):
        value, pull = jax.vjp(lambda x: dense(x, y, kind=kind), x)
        return value, pull(jnp.ones(11))[0]

    for student, teacher in ((x.at[2, 1].set(jnp.nan), y), (x, y.at[2].set(-jnp.inf))):
        value, dx = with_gradient(student, teacher)
        np.testing.assert_array_equal(np.isnan(value), np.arange(11) == 2)
        assert np.isnan(dx).any(1).tolist() == [i == 2 for i in range(11)]


def test_shifted_and_large_logits():
    x, y = pair(7)
    x, y = jnp.round(x * 64) / 64, jnp.round(y * 64) / 64
    for kind in KINDS:
        expected = dense(x, y, kind=kind, temperature=1.7)
        np.testing.assert_allclose(dense(x + 1e4, y - 3e4, kind=kind, temperature=1.7), expected, rtol=1e-5)
    assert np.all(np.isfinite(dense(x * 1e4, y * 1e4)))


def test_dtypes(x64):
    x, y = pair(5)
    for student, teacher, wide in (
        (jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.float16, jnp.float16, jnp.float32),
        (jnp.float32, jnp.float64, jnp.float64),
        (jnp.float64, jnp.bfloat16, jnp.float64),
    ):
        a, b = x.astype(student), y.astype(teacher)
        for way in (dense, as_kernel):
            value, (da,) = vjp(
                lambda a, b=b, way=way: way(a, b, temperature=2.0, base=math.e), (a,), jnp.ones(11, wide)
            )
            assert value.dtype == wide
            assert da.dtype == student
            expected = exact.divergence(a.astype(jnp.float64), b.astype(jnp.float64), "forward_kl", temperature=2.0)[0]
            np.testing.assert_allclose(value, expected, rtol=1e-12 if wide == jnp.float64 else 1e-4)


def test_refused_arguments():
    x, (hidden, kernel, bias) = jnp.zeros((3, 5)), cases.layer(5, samples=3)
    for options, error, message in [
        ({"kind": "kl"}, ValueError, "`kind` must be one of 'forward_kl', 'reverse_kl', 'jensen_shannon', got 'kl'"),
        ({"kind": None}, ValueError, "`kind` must be one of"),
        ({"temperature": 0.0}, ValueError, "`temperature` must be finite and greater than 0, got 0.0"),
        (
            {"temperature": jnp.ones(4)},
            ValueError,
            r"`temperature` must broadcast to .* the samples, \(3,\); got \(4,\)",
        ),
        ({"temperature": jnp.ones(3, int)}, TypeError, "`temperature` must be a real floating array"),
        ({"temperature": "1"}, TypeError, "`temperature` must be a number"),
        ({"beta": 1.5}, ValueError, r"`beta` must be in \[0, 1\], got 1.5"),
        ({"base": 1}, ValueError, "`base` must be"),
        ({"reduction": "avg"}, ValueError, "`reduction` must be one of"),
        ({"weights": jnp.ones(4)}, ValueError, "`weights` must broadcast"),
        ({"where": jnp.ones(5)}, TypeError, "`where` must be boolean"),
    ]:
        with pytest.raises(error, match=message):
            softjax.divergence(x, x, **options)
        with pytest.raises(error, match=message):
            softjax.linear_divergence(hidden, kernel, hidden, kernel, **options)
    for teacher, error, message in [
        (jnp.zeros((3, 4)), ValueError, r"`teacher_logits` must have the shape of `logits`, \(3, 5\); got \(3, 4\)"),
        (jnp.zeros((3, 5), int), TypeError, "`teacher_logits` must be a real floating array"),
    ]:
        with pytest.raises(error, match=message):
            softjax.divergence(x, teacher)
    for teacher, options, error, message in [
        (
            (hidden[:2], kernel),
            {},
            ValueError,
            r"`teacher_hidden` must have the samples of `hidden`, \(3,\); got \(2,\)",
        ),
        ((hidden, kernel[:, :4]), {}, ValueError, "`teacher_kernel` must have the 5 classes of `kernel`"),
        ((hidden, kernel.T), {}, ValueError, "Pass its transpose: teacher_kernel.T"),
        ((hidden, kernel), {"teacher_bias": bias[:4]}, ValueError, "`teacher_bias` must have one entry"),
        ((hidden, kernel), {"teacher_logit_softcap": -1}, ValueError, "`teacher_logit_softcap` must be positive"),
    ]:
        with pytest.raises(error, match=message):
            softjax.linear_divergence(hidden, kernel, *teacher, **options)


def test_jensen_shannon_of_rows_that_are_far_apart():
    """ln(m / q) is nearly constant where the student's mass lies, so the differences of the first form would cancel."""
    x, y = jnp.array([0.0, -3.0, -20.0]), jnp.array([-30.0, -30.0, 0.0])
    gradient = jax.grad(lambda x: softjax.divergence(x, y, kind="jensen_shannon", base=math.e))(x)
    np.testing.assert_allclose(gradient, [1.875e-8, 9.33e-10, -1.968e-8], rtol=1e-3)

    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(60, 5)) for _ in range(2))
    student[np.arange(60), rng.integers(0, 5, 60)] += rng.uniform(5, 40, 60)
    teacher[np.arange(60), rng.integers(0, 5, 60)] += rng.uniform(5, 40, 60)
    x, y = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
    for beta in (0.5, 0.1, 0.999):

        def total(x, temperature, beta):
            return jnp.sum(dense(x, y, kind="jensen_shannon", beta=beta, temperature=temperature, base=math.e))

        dx, dt, dbeta = jax.jit(jax.grad(total, (0, 1, 2)))(x, jnp.float32(1.0), jnp.float32(beta))
        wide = [np.asarray(a, np.longdouble) for a in (x, y)]
        b = np.longdouble(np.float32(beta))
        q, p = (np.exp(a - a.max(1, keepdims=True)) for a in wide)
        q, p = q / q.sum(1, keepdims=True), p / p.sum(1, keepdims=True)
        log_ratio = np.log(b * p + (1 - b) * q) - np.log(q)
        # Σ_i q_i (b_j − b_i), a sum of differences of logarithms of ratios
        ratio = p / q * b / (1 - b)
        centred = [(q[:, i : i + 1] * (np.log1p(ratio) - np.log1p(ratio[:, i : i + 1]))) for i in range(5)]
        exact_dx = -(1 - b) * q * sum(centred)
        peak = np.abs(exact_dx).max(1, keepdims=True)
        np.testing.assert_array_less(np.abs(np.asarray(dx) - exact_dx), 1e-3 * np.abs(exact_dx) + 1e-4 * peak)
        exact_dbeta = np.sum(q * log_ratio) - np.sum(p * (np.log(b * p + (1 - b) * q) - np.log(p)))
        np.testing.assert_allclose(dbeta, np.float64(exact_dbeta), rtol=1e-4)
        assert np.isfinite(dt)


def test_without_jit():
    """Python numbers are arrays where a program would make them arrays."""
    x, y = cases.logits(5, samples=3), cases.logits(5, samples=3, seed=1)
    options = {"kind": "jensen_shannon", "beta": 0.3, "temperature": 2.0}

    def both():
        return softjax.divergence(x, y, **options), softjax.linear_divergence(x, jnp.eye(5), y, jnp.eye(5), **options)

    expected = both()
    with jax.disable_jit():
        np.testing.assert_allclose(both(), expected, rtol=1e-6)
