"""`LogSum`: edge cases, derivatives of any order, and digits of (peak, rest) in confident rows."""

import cases
import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest
from covering import slow

from softjax._mesh.axes import ClassAxis
from softjax._rows.log_sum import LogSum, below_peak, log_sum, mean_distance_to_peak
from softjax._xla import one_cpu

INF, LAST = jnp.inf, ClassAxis(-1)


@pytest.mark.parametrize(
    ("row", "peak", "rest"),
    [
        ([0.0, 0.0], 0, 1),
        ([1e4, 1e4, 1e4], 1e4, 2),
        ([-INF, 3.0], 3, 0),
        ([INF, 3.0], INF, 0),
        ([INF, INF], INF, 0),
        ([-INF, -INF], -INF, np.nan),
        ([np.nan, 0.0], np.nan, np.nan),
        ([0.0, -20.0], 0, np.exp(-20.0)),
        ([0.0, -1e-9], 0, 1),
    ],
)
def test_edge_cases(row, peak, rest, route):
    s = log_sum(LAST, jnp.array([row]), None)
    np.testing.assert_array_equal(np.asarray(s.peak).ravel(), [peak])
    np.testing.assert_allclose(s.rest[0, 0], rest, rtol=1e-6)


def test_masked_classes(route):
    x, exists = jnp.array([[9.0, 1.0, 0.0], [1.0, 2.0, 3.0]]), jnp.array([[False, True, True]])
    s = log_sum(LAST, x, exists)
    np.testing.assert_allclose(s.peak + s.log_mass, jax.nn.logsumexp(x[:, 1:], -1, keepdims=True), rtol=1e-6)


def test_not_on_one_cpu_one_exponential_serves_both_sums(monkeypatch):
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: False)
    x = jax.ShapeDtypeStruct((4, 100), jnp.float32)
    equations = jaxprs.equations(jax.make_jaxpr(lambda x: log_sum(LAST, x, None))(x))
    assert [e.primitive.name for e in equations].count("exp") == 1


def test_values_at_the_peak_keep_their_digits():
    s = LogSum(jnp.float32(0), jnp.float32(1e-9))
    assert s.log_mass == jnp.float32(1e-9)
    assert s.one_minus_q(jnp.float32(1)) == jnp.float32(1e-9)
    np.testing.assert_allclose(s.one_minus_q(jnp.float32(0.25)), 0.75)
    assert s.is_dominant(jnp.float32(0))
    assert not LogSum(jnp.float32(0), jnp.float32(1)).is_dominant(jnp.float32(0))


@pytest.mark.parametrize("row", [[0.0, 1.0, 3.0], *slow([2.0, 2.0, 0.0], [40.0, 0.0, 1.0])])
def test_derivatives_in_every_mode(row):
    """Functions of the logits below the peak have the derivatives of the plain formula, also inside a scan."""
    x, v = jnp.array([row]), jnp.array([[0.3, -1.0, 2.0]])

    def with_log_sum(x):
        s = log_sum(LAST, x, None)
        e = jnp.exp(below_peak(LAST, x, s))
        row_values = s.peak + s.log_mass + mean_distance_to_peak(LAST, x, s, None) ** 2
        return jnp.sum(jnp.arange(1.0, 4.0)[None] * e / s.mass) + jnp.sum(row_values)

    def plain(x):
        e, log_sum = jnp.exp(x - row[0]), jnp.log(jnp.sum(jnp.exp(x - row[0]))) + row[0]
        mean_below = jnp.sum(e * (jnp.max(x) - x)) / jnp.sum(e)
        return jnp.sum(jnp.arange(1.0, 4.0)[None] * e) / jnp.sum(e) + log_sum + mean_below**2

    def scanned(f):
        return lambda x: jax.lax.scan(lambda total, x: (total + f(x), None), 0.0, jnp.stack([x, x]))[0] / 2

    modes = [
        jax.grad,
        lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (v,))[1],
        lambda f: jax.grad(lambda x: jax.jvp(f, (x,), (v,))[1]),
        lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) * v)),
    ]

    @jax.jit
    def every_mode(x):
        return [[mode(f)(x) for f in (plain, with_log_sum, scanned(with_log_sum))] for mode in modes]

    for expected, *found in every_mode(x):
        for derivative in found:
            np.testing.assert_allclose(derivative, expected, rtol=2e-5, atol=5e-6)  # of sums with terms up to 5


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.0, 0.0], 0),
        ([1e4, 1e4 - 1, 1e4], np.exp(-1) / (2 + np.exp(-1))),
        ([-INF, 3.0], 0),
        ([-3e38, 3e38], 0),
        ([0.0, -20.0], 20 * np.exp(-20) / (1 + np.exp(-20))),
        ([0.0, -80.0], 80 * np.exp(-80)),
        ([INF, 3.0], np.nan),
        ([-INF, -INF], np.nan),
    ],
)
def test_mean_distance_to_peak(row, expected, route):
    x = jnp.array([row, [np.nan] * len(row)])
    s, dropped = log_sum(LAST, x, None), jnp.array([[False], [True]])
    np.testing.assert_allclose(mean_distance_to_peak(LAST, x, s, dropped), [[expected], [0]], rtol=1e-6)
    np.testing.assert_allclose(mean_distance_to_peak(LAST, x, s, None), [[expected], [np.nan]], rtol=1e-6)


def test_mean_distance_to_peak_in_float64(x64, route):
    x = jnp.array([[0.0, -700.0, -INF]])
    np.testing.assert_allclose(
        mean_distance_to_peak(LAST, x, log_sum(LAST, x, None), None), 700 * np.exp(-700), rtol=1e-14
    )


def test_the_derivative_of_the_log_sum_contains_no_loop(route):
    x = jnp.zeros((512, 2048), jnp.bfloat16)

    def f(x):
        return log_sum(LAST, x, None).log_mass.sum()

    tangent = jax.make_jaxpr(lambda x: jax.jvp(f, (x,), (x,))[1])(x)
    assert not [e for e in jaxprs.equations(tangent) if any(v.aval.size >= x.size * 2 for v in e.outvars)]
    np.testing.assert_allclose(jax.jvp(f, (x,), (cases.logits(2048, samples=512).astype(x.dtype),))[1], 0, atol=40)


@pytest.mark.parametrize("classes", [1000, 50257, pytest.param(2**20 + 1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spread", [0.02, 1.0, 30.0])
def test_long_sums_lose_a_few_ulp(classes, spread, route):
    x = cases.logits(classes, spread, samples=3)
    s = log_sum(LAST, x, None)
    below64 = np.asarray(x - s.peak, np.float64)
    rest = np.exp(below64).sum(1) - 1
    np.testing.assert_allclose(s.rest[:, 0], rest, rtol=8 * 2.0**-23)
