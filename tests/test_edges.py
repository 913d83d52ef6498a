"""The edge cases of logits: one per test, on one CPU and on other platforms, for class ids and one-hot labels."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import ON_ONE_CPU, ROUTES, covering

import softjax

INF, NAN = jnp.inf, jnp.nan
pytestmark = pytest.mark.usefixtures("route")


def both(logits, labels, reduction="none", **options):
    """The losses and the gradient of their sum, or the mean loss and its gradient, by one program."""

    @jax.jit
    def with_gradient(x):
        loss, pull = jax.vjp(lambda x: softjax.cross_entropy(x, labels, reduction=reduction, **options), x)
        return loss, pull(jnp.ones_like(loss))[0]

    loss, gradient = with_gradient(logits)
    assert gradient.shape == logits.shape
    assert gradient.dtype == logits.dtype
    return np.asarray(loss), np.asarray(gradient)


def q(row):
    return np.exp(np.asarray(row) - np.logaddexp.reduce(row)) / np.log(10)


@pytest.mark.parametrize(
    ("route", "dtype", "options"),
    covering(
        ROUTES,
        [
            (jnp.float32, {}),
            (jnp.float16, {"label_smoothing": 0.1, "z_loss": 0.1}),
            (jnp.bfloat16, {"where": jnp.arange(5) < 4}),
        ],
    ),
    indirect=["route"],
)
def test_an_ignored_row_may_hold_anything(dtype, options):
    clean = cases.logits(5, samples=2)
    rows = [[NAN] * 5, [INF] * 5, [-INF] * 5, [0.0, NAN, INF, -INF, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0]]
    logits = jnp.concatenate([clean, jnp.array(rows)]).astype(dtype)
    labels = jnp.array([0, 3, 0, 1, 2, 3, -100])
    weights = jnp.array([2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])

    @jax.jit
    def every_reduction(logits, labels, weights):
        def loss(x, reduction):
            value = softjax.cross_entropy(x, labels, weights=weights, reduction=reduction, **options)
            return value.sum(), value

        return [jax.grad(loss, has_aux=True)(logits, reduction) for reduction in ("none", "sum", "mean")]

    actual = every_reduction(logits, labels, weights)
    # Zeros in the ignored rows give the same bits. Fewer rows may be summed in another order.
    zeroed = every_reduction(logits.at[2:].set(0), labels.at[2:].set(0), weights)
    active_alone = every_reduction(logits[:2], labels[:2], weights[:2])
    ulp = float(jnp.finfo(dtype).eps)
    for (gradient, loss), (dx, expected), (dx_alone, loss_alone) in zip(actual, zeroed, active_alone, strict=True):
        np.testing.assert_array_equal(loss, expected)
        np.testing.assert_array_equal(gradient, dx)
        assert not gradient[2:].any()
        np.testing.assert_allclose(loss[:2] if loss.ndim else loss, loss_alone, rtol=1e-6)
        np.testing.assert_allclose(*(np.asarray(a, np.float64) for a in (gradient[:2], dx_alone)), rtol=ulp, atol=1e-8)
    assert not actual[0][1][2:].any()


def test_an_ignored_distribution_of_nan():
    labels = jnp.array([[0.5, 0.5], [NAN, NAN]])
    logits = jnp.array([[0.0, 1.0], [NAN, 2.0]])
    loss, gradient = both(logits, labels, weights=jnp.array([True, False]))
    assert np.isfinite(loss).all()
    assert loss[1] == 0
    assert not gradient[1].any()
    dp = jax.grad(lambda p: softjax.cross_entropy(logits, p, weights=jnp.array([1.0, 0.0])))(labels)
    assert not dp[1].any()
    assert np.isfinite(dp).all()


@pytest.mark.parametrize(
    ("route", "options"), covering(ROUTES, [{}, {"label_smoothing": 0.1, "z_loss": 0.1}]), indirect=["route"]
)
def test_ignored_rows_in_every_mode_of_differentiation(options):
    labels = jnp.array([1, 0, 1, 2, -100])
    weights = jnp.array([2.0, 0.0, 0.0, 0.0, 0.0])
    bad = [[NAN, 1.0, 2.0], [-INF] * 3, [INF, 1.0, 2.0], [NAN] * 3]
    logits = jnp.array([[0.0, 1.0, 2.0], *bad])

    def loss(x, y=labels, w=weights):
        return softjax.cross_entropy(x, y, weights=w, **options)

    def nested(outer, inner):
        return lambda f: outer(inner(f))

    forward, reverse = jax.jacfwd, jax.jacrev
    modes = (reverse, forward, jax.hessian, *(nested(reverse, inner) for inner in (reverse, forward)))
    derivatives = jax.jit(lambda x: [mode(loss)(x) for mode in modes])(logits)
    first_alone = jax.jit(lambda x: [mode(lambda x: loss(x, labels[:1], weights[:1]))(x) for mode in modes])
    for derivative, alone in zip(derivatives, first_alone(logits[:1]), strict=True):
        kept = (slice(0, 1), slice(None)) * (derivative.ndim // 2)
        np.testing.assert_allclose(derivative[kept], alone, atol=1e-6)
        assert np.count_nonzero(derivative) == np.count_nonzero(alone)


def test_gradients_by_labels_and_smoothing_are_finite_with_ignored_rows():
    logits = jnp.array([[0.0, -INF], [NAN, 1.0], [1.0, 2.0]])
    labels = jnp.array([[1.0, 0.0], [NAN, 0.5], [0.5, 0.5]])
    weights = jnp.array([0.0, 0.0, 1.0])

    def loss(labels, smoothing):
        return softjax.cross_entropy(logits, labels, weights=weights, label_smoothing=smoothing)

    dp, smoothing = jax.grad(loss, argnums=(0, 1))(labels, 0.1)
    assert not dp[:2].any()
    assert np.isfinite(dp).all()
    assert np.isfinite(smoothing)


@pytest.mark.parametrize("weights", [jnp.zeros(3), jnp.zeros(3, bool), jnp.zeros(3, jnp.int32)])
def test_no_active_row(weights):
    loss, gradient = both(cases.logits(5, samples=3), cases.class_ids(5, 3), "mean", weights=weights)
    assert loss == 0
    assert not gradient.any()


@ON_ONE_CPU
@pytest.mark.parametrize(
    ("dtype", "options"), covering([jnp.int8, jnp.int32], [{}, {"label_smoothing": 0.1, "z_loss": 0.1}])
)
def test_labels_out_of_range(dtype, options):
    bad = [-1, 5, 127, -128, -100]
    logits, labels = cases.logits(5, samples=7), jnp.array([0, *bad, 4], dtype)
    loss, gradient = both(logits, labels, **options)
    expected, dx = both(logits[jnp.array([0, 6])], labels[jnp.array([0, 6])], **options)
    np.testing.assert_array_equal(loss, [expected[0], *[NAN] * 5, expected[1]])
    np.testing.assert_array_equal(gradient, [dx[0], *np.zeros((5, 5)), dx[1]])
    assert np.isnan(both(logits, labels, "mean", **options)[0])


def test_unsigned_and_narrow_labels_of_many_classes():
    logits = cases.logits(300, samples=2)
    wide, _ = both(logits, jnp.array([100, 255]))
    np.testing.assert_array_equal(both(logits, jnp.array([100, 255], jnp.uint8))[0], wide)
    np.testing.assert_array_equal(both(logits, jnp.array([100, 2**32 - 1], jnp.uint32))[0], [wide[0], NAN])


def test_wide_numpy_labels_do_not_wrap():
    loss, _ = both(cases.logits(5, samples=2), np.array([2**32 + 3, 3]))
    assert np.isnan(loss[0])
    assert np.isfinite(loss[1])
    with pytest.raises(ValueError, match="outside"):
        softjax.validate_labels(np.array([2**32 + 3]), 5)


def test_wide_labels_do_not_wrap(x64):
    loss, _ = both(cases.logits(5, samples=2), jnp.array([2**32 + 3, 3], jnp.int64))
    assert np.isnan(loss[0])
    assert np.isfinite(loss[1])


ONE_HOT = pytest.mark.parametrize("one_hot", [False, True])


def _labels(ids, classes, one_hot):
    ids = jnp.array(ids)
    return jax.nn.one_hot(ids, classes) if one_hot else ids


@ONE_HOT
def test_label_logit_minus_inf(one_hot):
    logits = jnp.array([[-INF, 1.0, 2.0]])
    loss, gradient = both(logits, _labels([0], 3, one_hot))
    assert loss == INF
    np.testing.assert_allclose(gradient, [q([-INF, 1.0, 2.0]) - np.array([1, 0, 0]) / np.log(10)], rtol=1e-5)


def test_label_on_a_masked_class():
    logits, where = jnp.array([[3.0, 1.0, 2.0]]), jnp.array([False, True, True])
    loss, gradient = both(logits, jnp.array([0]), where=where)
    assert loss == INF
    assert gradient[0, 0] == 0
    np.testing.assert_allclose(gradient[0, 1:], q([1.0, 2.0]), rtol=1e-5)


@ONE_HOT
def test_full_smoothing_ignores_the_label(one_hot):
    where = jnp.array([False, True, True])
    loss, _ = both(jnp.array([[3.0, 1.0, 2.0]]), _labels([0], 3, one_hot), where=where, label_smoothing=1.0)
    np.testing.assert_allclose(loss, np.mean(np.logaddexp(1, 2) - np.array([1, 2])) / np.log(10), rtol=1e-6)


@ONE_HOT
def test_another_logit_minus_inf(one_hot):
    loss, gradient = both(jnp.array([[-INF, 1.0, 2.0]]), _labels([2], 3, one_hot))
    np.testing.assert_allclose(loss, -np.log10(np.e**2 / (np.e + np.e**2)), rtol=1e-6)
    assert gradient[0, 0] == 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("options", "one_hot"),
    covering([{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"weights": jnp.array([1.0])}], [False, True]),
)
def test_no_class_exists(one_hot, options):
    for logits in (jnp.array([[3.0, 1.0]]), jnp.array([[NAN, INF]])):
        loss, gradient = both(logits, _labels([0], 2, one_hot), where=jnp.zeros((1, 2), bool), **options)
        assert loss == 0
        assert not gradient.any()


@ON_ONE_CPU
def test_no_class_exists_in_softmax_and_statistics():
    x, where = jnp.array([3.0, NAN]), jnp.zeros(2, bool)
    assert not softjax.softmax(x, where=where).any()
    assert not jax.jacobian(lambda x: softjax.softmax(x, where=where))(x).any()
    assert (softjax.log_softmax(x, where=where) == -INF).all()
    assert not jax.jacobian(lambda x: softjax.log_softmax(x, where=where))(x).any()
    stats = softjax.statistics(x, jnp.array(0), where=where)
    constants = {"log_normalizer": -INF, "max_logit": -INF, "prediction": -1, "label_rank": -1}
    for name, value in stats._asdict().items():
        assert value == constants.get(name, 0), name
    gradients = jax.jacobian(lambda x: cases.floating(softjax.statistics(x, jnp.array(0), where=where)))(x)
    for name, gradient in gradients.items():
        assert not gradient.any(), name


@ONE_HOT
@pytest.mark.parametrize("big", [0.0, 100.0])
def test_another_logit_plus_inf(one_hot, big):
    loss, gradient = both(jnp.array([[big, INF, 1.0]]), _labels([0], 3, one_hot))
    assert loss == INF
    np.testing.assert_allclose(gradient[0, [0, 2]], [-1 / np.log(10), 0], rtol=1e-6)


def test_another_logit_plus_inf_with_smoothing():
    assert both(jnp.array([[0.0, INF, 1.0]]), jnp.array([0]), label_smoothing=0.1)[0] == INF


@ONE_HOT
def test_rows_with_nan(one_hot):
    rows = [[-INF] * 3, [NAN, 0.0, 1.0], [0.0, NAN, 1.0], [NAN] * 3, [-INF, NAN, -INF], [0.0, 1.0, 2.0]]
    loss, gradient = both(jnp.array(rows), _labels([0] * 6, 3, one_hot))
    assert np.isnan(loss[:5]).all()
    assert np.isnan(gradient[:5]).all()
    assert np.isfinite(loss[5])
    assert np.isfinite(gradient[5]).all()


@ONE_HOT
def test_one_class(one_hot):
    loss, gradient = both(jnp.array([[3.0], [-7.0]]), _labels([0, 0], 1, one_hot))
    assert not loss.any()
    assert not gradient.any()


@pytest.mark.parametrize(("shape", "dtype"), covering([[0, 5], [3, 0, 5], [0, 0]], [jnp.float32, jnp.bfloat16]))
def test_no_samples(shape, dtype):
    shape = tuple(shape)
    logits, labels = jnp.zeros(shape, dtype), jnp.zeros(shape[:-1], jnp.int32)
    loss, gradient = both(logits, labels, "mean")
    assert loss == 0
    assert gradient.shape == shape
    assert both(logits, labels)[0].shape == shape[:-1]
    assert softjax.softmax(logits).shape == shape


def test_samples_without_classes_are_refused():
    for call in (
        lambda x: softjax.cross_entropy(x, jnp.zeros(3, jnp.int32)),
        softjax.softmax,
        softjax.log_softmax,
        lambda x: softjax.statistics(x, jnp.zeros(3, jnp.int32)),
    ):
        with pytest.raises(ValueError, match="at least one class"):
            call(jnp.zeros((3, 0)))


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 1e4), (jnp.float16, 6e4), (jnp.bfloat16, 1e4)])
def test_huge_logits(dtype, size):
    steps = jnp.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], dtype) * (64 if dtype != jnp.float32 else 1)
    signs = jnp.array([[1.0], [-1.0]], dtype)
    logits = (signs * jnp.asarray(size, dtype) + steps).astype(dtype)
    exact = np.asarray(logits, np.float64)
    expected = (np.logaddexp.reduce(exact, axis=1) - exact[:, 0]) / np.log(10)
    np.testing.assert_allclose(both(logits, jnp.array([0, 0]))[0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        both(logits, jax.nn.one_hot(jnp.array([0, 0]), 3), label_smoothing=0.0)[0], expected, rtol=1e-6
    )


def test_equal_float16_logits_of_a_large_vocabulary():
    logits = jnp.zeros((2, 131072), jnp.float16)
    np.testing.assert_allclose(both(logits, jnp.array([0, 1]))[0], np.log10(131072), rtol=1e-6)
    assert jnp.isinf(jax.nn.logsumexp(logits, -1)).all()  # float16 overflows here
