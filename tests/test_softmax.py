"""`softmax` and `log_softmax` and their VJPs against float64. The cotangents differ by entry."""

import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from covering import ON_ONE_CPU, ROUTES, covering
from programs import vjp

import softjax

pytestmark = pytest.mark.usefixtures("route")
EPS = 2.0**-23


def _cotangent(shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(5).normal(size=shape), jnp.float32).astype(dtype)


def _rows(x):
    return np.stack([oracle.log_softmax(row) for row in np.asarray(x)])


@pytest.mark.parametrize("spread", cases.SPREADS)
@pytest.mark.parametrize("classes", [1, 5, 129, 2049])
def test_softmax(classes, spread):
    x, g = cases.logits(classes, spread), _cotangent((cases.SAMPLES, classes))
    out, (dx,) = vjp(softjax.softmax, (x,), g)
    q, g64 = np.exp(_rows(x)), np.asarray(g, np.float64)
    # Bound of the relative error: 25 ulp for the sum, and half an ulp of x − max, which is the error of its rounding.
    distance = np.asarray(x, np.float64).max(1, keepdims=True) - np.asarray(x, np.float64)
    np.testing.assert_array_less(np.abs(np.asarray(out, np.float64) - q), q * EPS * (25 + distance / 2) + 1e-30)
    np.testing.assert_allclose(dx, q * (g64 - (q * g64).sum(1, keepdims=True)), atol=2e-6)


@pytest.mark.parametrize("base", [10.0, 2.0, math.e, 0.5])
@pytest.mark.parametrize("spread", cases.SPREADS)
def test_log_softmax(base, spread):
    x, g = cases.logits(7, spread), _cotangent((cases.SAMPLES, 7))
    out, (dx,) = vjp(lambda x: softjax.log_softmax(x, base=base), (x,), g)
    log_q, g64 = _rows(x), np.asarray(g, np.float64)
    np.testing.assert_allclose(out, log_q / math.log(base), rtol=3e-6, atol=1e-6)
    expected = (g64 - np.exp(log_q) * g64.sum(1, keepdims=True)) / math.log(base)
    np.testing.assert_allclose(dx, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("function", [softjax.softmax, softjax.log_softmax])
def test_low_precision_is_rounded_once(function, dtype):
    x = cases.logits(129, 3.0, dtype=dtype)
    out, (gradient,) = vjp(function, (x,), _cotangent(x.shape, dtype))
    assert out.dtype == dtype
    exact = np.exp(_rows(x)) if function is softjax.softmax else _rows(x) / math.log(10)
    # half an ulp of the output dtype for the rounding, plus the error of float32
    ulp = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, rtol=ulp / 2 + 3e-6, atol=1e-7)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("classes", [5, 1000, 131072])
@pytest.mark.parametrize("spread", cases.SPREADS)
def test_sums_to_1_within_4_ulp(classes, spread):
    total = np.asarray(softjax.softmax(cases.logits(classes, spread, 5)), np.float64).sum(-1)
    np.testing.assert_allclose(total, 1, rtol=0, atol=4 * 2.0**-23)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_axis(axis):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.float32)
    for function, baseline in ((softjax.softmax, jax.nn.softmax), (softjax.log_softmax, jax.nn.log_softmax)):
        options = {"base": math.e} if function is softjax.log_softmax else {}
        np.testing.assert_allclose(function(x, axis=axis, **options), baseline(x, axis), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("route", "shape"), covering(ROUTES, [((1, 5),), ((11, 1),), ((11, 5),), ((5,),)]), indirect=["route"]
)
def test_masked_classes_act_as_deleted(shape):
    where = np.random.default_rng(1).random(shape) < 0.6
    where[..., 0] = True
    x = jnp.where(where, cases.logits(5), jnp.nan)
    g, exists = _cotangent(x.shape), np.broadcast_to(where, x.shape)
    for function, masked in ((softjax.softmax, 0.0), (softjax.log_softmax, -np.inf)):
        out, (gradient,) = vjp(lambda x, f=function: f(x, where=jnp.asarray(where)), (x,), g)
        assert (np.asarray(out)[~exists] == masked).all()
        assert (np.asarray(gradient)[~exists] == 0).all()
        for count in set(exists.sum(1)):  # rows that keep equally many classes make one array
            rows = exists.sum(1) == count
            kept = np.flatnonzero((exists & rows[:, None]).ravel()).reshape(-1, count)
            kept_x, kept_g = (np.asarray(a).ravel()[kept] for a in (x, g))
            expected, (dx,) = vjp(function, (kept_x,), kept_g)
            np.testing.assert_allclose(np.asarray(out).ravel()[kept], expected, rtol=1e-6)
            np.testing.assert_allclose(np.asarray(gradient).ravel()[kept], dx, atol=1e-6)


@ON_ONE_CPU
def test_forward_and_reverse_mode_agree():
    x = cases.logits(7)
    for function in (softjax.softmax, softjax.log_softmax):

        @jax.jit
        def every_mode(x, f=function):
            first = jax.jacfwd(f)(x), jax.jacrev(f)(x)
            return first, [outer(jax.jacrev(lambda x: f(x)[0]))(x[:1]) for outer in (jax.jacfwd, jax.jacrev)]

        first, second = every_mode(x)
        np.testing.assert_allclose(*first, atol=1e-6)
        np.testing.assert_allclose(*second, atol=1e-5)


def test_edge_cases():
    inf, nan = jnp.inf, jnp.nan
    x = jnp.array([[0.0, -inf, 0.0], [nan, 0.0, 0.0], [-inf, -inf, -inf]])
    q = np.asarray(softjax.softmax(x))
    np.testing.assert_array_equal(q[0], [0.5, 0, 0.5])
    assert np.isnan(q[1:]).all()
    jacobian = jax.jacrev(softjax.softmax)(x[0])
    np.testing.assert_allclose(jacobian, [[0.25, 0, -0.25], [0, 0, 0], [-0.25, 0, 0.25]])
    np.testing.assert_allclose(softjax.log_softmax(x[0], base=2), [-1, -inf, -1], rtol=1e-6)


@pytest.mark.parametrize(
    ("axes", "masked"), covering([((1, 2),), ((0, -1),), ((-1, 0, 1),), ((2,),), [0, 1]], [True, False], quick=(0, 1))
)
def test_several_class_axes_equal_jax_nn(axes, masked):
    x, g = (jax.random.normal(key, (3, 4, 5)) for key in jax.random.split(jax.random.key(0)))
    where = jnp.arange(5) % 3 != 1 if masked else None
    mask = None if where is None else where[None, None, :]
    axis = tuple(axes)

    def baseline(x):
        return jax.nn.softmax(x, axis, where=mask)

    value, (dx,) = vjp(lambda x: softjax.softmax(x, axis=axes, where=where), (x,), g)
    expected, (expected_dx,) = vjp(baseline, (x,), g)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(dx, expected_dx, atol=1e-6)
    log_q = softjax.log_softmax(x, axis=axes, base=np.e, where=where)
    np.testing.assert_allclose(jnp.exp(log_q), expected, rtol=1e-5)


def test_wrong_axes_are_refused_by_name():
    x = jnp.ones((3, 4))
    with pytest.raises(ValueError, match="each axis of `logits` once"):
        softjax.softmax(x, axis=(0, -2))
    with pytest.raises(ValueError, match="and at least one"):
        softjax.softmax(x, axis=())
    with pytest.raises(ValueError, match="`axis` must name an axis"):
        softjax.log_softmax(x, axis=(0, 2))
    with pytest.raises(ValueError, match="`axis` must be one axis where `axis_name` splits it"):
        softjax.softmax(x, axis=(0, 1), axis_name="classes")


@pytest.mark.parametrize("function", [softjax.softmax, softjax.log_softmax])
def test_the_backward_pass_keeps_one_array_of_the_size_of_the_logits(function):
    """The result itself, or the logits if they are narrower; and a few numbers for each row."""
    x = cases.logits(40)
    for logits, kept in ((x, x.dtype), (x.astype(jnp.bfloat16), jnp.bfloat16)):
        saved = jax.tree.leaves(jax.vjp(function, logits)[1])
        large = [array for array in saved if array.size == x.size]
        assert [array.dtype for array in large] == [kept]
        assert sum(array.size for array in saved) <= x.size + 2 * len(x)
        if kept == jnp.float32:
            np.testing.assert_array_equal(
                large[0], function(x) if function is softjax.softmax else function(x, base=math.e)
            )
