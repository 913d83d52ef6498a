"""`SparseLabels` give the value and the gradient of the distribution they stand for, without materialising it."""

from functools import partial

import cases
import exact
import few
import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import oracle
import pytest
from closeness import EPS, near
from covering import ON_ONE_CPU, ROUTES, covering, slow
from programs import vjp

import softjax

KS = [3, 9, *slow(1, 8, 40)]


def derivative_by_probabilities(x, where=None):
    """∂h/∂p_j = z − x_j in float64 for classes that exist, and 0 for masked classes."""
    exists = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    x = np.where(exists, np.asarray(x, np.float64), -np.inf)
    return np.where(exists, -np.stack([oracle.log_softmax(row) for row in x]), 0)


@jax.jit
def _loss_and_vjp(x, labels, g):
    def loss(x, p):
        return softjax.cross_entropy(x, softjax.SparseLabels(labels.ids, p), base=np.e, reduction="none")

    value, pull = jax.vjp(loss, x, labels.probabilities)
    return value, pull(g)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("spread", [0.02, 1.0, 30.0, 1000.0])
def test_loss_and_gradients_of_logits(k, spread, route):
    x, labels, g = cases.logits(9, spread), few.sparse(9, k), cases.cotangent()
    loss, (actual, dp) = _loss_and_vjp(x, labels, g)
    expected, dx = oracle.cross_entropy(x, few.dense(labels, 9), base=np.e, cotangent=g)
    near(loss, expected, 64)
    near(actual, dx, 64)
    near(dp, few.entries_at(derivative_by_probabilities(x), labels.ids) * np.asarray(g, np.float64)[:, None], 64)


OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1, "z_loss": 0.01},
    "where": {"where": jnp.arange(9) % 4 != 1},
    "weights": {"weights": cases.weights(), "base": 2.0},
    "all": {
        "where": jnp.arange(9) % 4 != 1,
        "weights": cases.weights(),
        "base": 2.0,
        "label_smoothing": 0.2,
        "z_loss": 0.01,
    },
}


@pytest.mark.parametrize(
    ("route", "k", "option", "reduction"),
    covering(
        zip(ROUTES, [3, 9], strict=True), OPTIONS, ["none", "mean", "sum"], quick=(4, 5, 9)
    ),  # options "all" and "plain"
    indirect=["route"],
)
def test_every_option(option, reduction, k, route):
    """Dense and fused: gradients by the hidden states, the kernel, the bias and the probabilities."""
    options, (hidden, kernel, bias), labels = OPTIONS[option], cases.layer(9, spread=2.0), few.sparse(9, k)
    g = cases.cotangent() if reduction == "none" else jnp.asarray(1.0)
    dense_labels = jnp.asarray(few.dense(labels, 9), jnp.float32)

    def fused(h, w, b, p, y=labels.ids):
        target = p if y is None else softjax.SparseLabels(y, p)
        return softjax.linear_cross_entropy(h, w, target, bias=b, reduction=reduction, block_size=4, **options)

    def dense(h, w, b, p):
        logits = h @ w + b[None]
        return softjax.cross_entropy(logits, softjax.SparseLabels(labels.ids, p), reduction=reduction, **options)

    expected, (*gradients, by_p) = vjp(partial(fused, y=None), (hidden, kernel, bias, dense_labels), g)
    for f in (fused, dense):
        loss, (*actual, dp) = vjp(f, (hidden, kernel, bias, labels.probabilities), g)
        near(loss, expected, 64)
        for a, b in zip(actual, gradients, strict=True):
            near(a, b, 64)
        near(dp, few.entries_at(np.asarray(by_p), labels.ids), 64)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_any_class_axis(axis):
    x, labels = cases.logits(7, samples=6).reshape(2, 3, 7), few.sparse(7, 4, samples=6)
    labels = jax.tree.map(lambda a: a.reshape(2, 3, 4), labels)
    moved = softjax.cross_entropy(jnp.moveaxis(x, -1, axis), labels, axis=axis, reduction="none")
    near(moved, softjax.cross_entropy(x, labels, reduction="none"), 1)


def test_statistics(route):
    """The statistics are those of the distribution. Equal ids add up before the most probable class is ranked."""
    x, labels = cases.logits(9, 3.0), few.sparse(9, 5, mass=1.7)
    ids = labels.ids.at[0].set(jnp.array([4, 2, 4, 7, 7]))
    p = labels.probabilities.at[0].set(jnp.array([0.3, 0.4, 0.3, 0.1, 0.1]))  # 4 by its sum, not 2
    labels = softjax.SparseLabels(ids, p)
    dense_labels = jnp.asarray(few.dense(labels, 9), jnp.float32)
    for s, t in zip(softjax.statistics(x, labels), softjax.statistics(x, dense_labels), strict=True):
        near(s, t, 64)
    values, hidden, kernel = oracle.statistics(x, few.dense(labels, 9)), *_layer_of(x)
    s = softjax.linear_statistics(hidden, kernel, labels, block_size=4)
    for name, (value, _) in values.items():
        near(getattr(s, name), value, 64)
    assert s.label_rank[0] == int(np.sum(np.asarray(x[0]) > np.asarray(x[0, 4])))


def _layer_of(x):
    return jnp.eye(len(x)), x


def test_each_statistic_and_its_vjp_alone(route):
    x, labels, g = cases.logits(9, 3.0), few.sparse(9, 5, mass=1.7), cases.cotangent()
    expected = oracle.statistics(x, few.dense(labels, 9))

    @jax.jit
    def vjp_of_each(x):
        return {
            name: jax.vjp(lambda x, n=name: getattr(softjax.statistics(x, labels), n), x)[1](g) for name in expected
        }

    found = vjp_of_each(x)
    for name, (_, derivative) in expected.items():
        (dx,) = found[name]
        near(dx, derivative * np.asarray(g, np.float64)[:, None], 64)


@ON_ONE_CPU
def test_edge_cases(route):
    x = cases.logits(5, 2.0, samples=6)
    ids = jnp.array([[0, 5], [1, -1], [2, 7], [3, 9], [-1, -1], [0, 1]])
    p = jnp.array([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0], [1.0, jnp.nan], [0.0, 0.0], [0.0, 1.0]])
    # mass at an id out of range, ignored and active; padding; an ignored NaN; no mass; an ordinary row
    w = jnp.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    call = partial(softjax.cross_entropy, reduction="none", weights=w, label_smoothing=0.1, z_loss=0.1)
    loss, (dx, dp) = vjp(lambda x, p: call(x, softjax.SparseLabels(ids, p)), (x, p), jnp.ones(6))
    assert jnp.isnan(loss).tolist() == [False, True, False, False, False, False]
    assert not dx[jnp.array([0, 1, 3])].any()
    assert jnp.isfinite(dx).all()
    assert jnp.isfinite(dp).all()
    assert loss[0] == loss[3] == 0
    assert not softjax.statistics(x, softjax.SparseLabels(ids, p)).label_rank[jnp.array([1, 4])].tolist().count(0)


def test_mass_at_masked_classes_is_dropped(route):
    x, labels, exist = cases.logits(9), few.sparse(9, 4), jnp.arange(9) % 2 == 0
    clean = labels._replace(probabilities=jnp.where(labels.ids % 2 == 0, labels.probabilities, 0))

    @jax.jit
    def with_gradient(x, y):
        loss, pull = jax.vjp(lambda x: softjax.cross_entropy(x, y, where=exist, reduction="none"), x)
        return loss, pull(jnp.ones_like(loss))[0]

    loss, dx = with_gradient(x, labels)
    np.testing.assert_array_equal(loss, with_gradient(x, clean)[0])
    assert not dx[:, 1::2].any()


@pytest.mark.parametrize("gap", [17.0, 40.0, 80.0])
def test_confident_rows(gap):
    """The mass is at the peak, at other classes, or at both."""
    x = jnp.zeros((3, 7)).at[:, 2].set(gap).at[:, 4].set(1.0)
    labels = softjax.SparseLabels(
        jnp.array([[2, 2, 9], [4, 0, -1], [2, 4, 2]]), jnp.array([[0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [0.5, 1e-9, 0.5]])
    )
    loss, pull = jax.vjp(lambda x: softjax.cross_entropy(x, labels, base=np.e, reduction="none"), x)
    expected, dx, sizes = exact.cross_entropy(x, few.dense(labels, 7))
    np.testing.assert_allclose(loss, expected, rtol=(8 + gap) * EPS)
    error = np.abs(np.asarray(pull(jnp.ones(3))[0], np.float64) - dx)
    assert (error <= (8 + gap) * EPS * sizes).all()


@pytest.mark.parametrize("order", [2, *slow(3)])
def test_higher_derivatives(order):
    x, labels = cases.logits(5, samples=2), few.sparse(5, 3, samples=2)
    dense_labels = jnp.asarray(few.dense(labels, 5), jnp.float32)

    def derivative(f):
        for i in range(order):
            f = jax.jacfwd(f) if i % 2 else jax.jacrev(f)
        return jax.jit(f)(x)

    def loss_with(target):
        return lambda x: softjax.cross_entropy(x, target, reduction="sum", z_loss=0.1)

    np.testing.assert_allclose(derivative(loss_with(labels)), derivative(loss_with(dense_labels)), rtol=1e-4, atol=1e-5)


def test_transforms():
    x, labels = cases.logits(9), few.sparse(9, 4)
    loss = softjax.cross_entropy(x, labels, reduction="none")
    mapped = jax.vmap(lambda x, y: softjax.cross_entropy(x, y))(x, labels)
    np.testing.assert_allclose(mapped, loss, rtol=1e-6)
    t = cases.logits(9, seed=3)
    (dx,) = jax.vjp(lambda x: softjax.cross_entropy(x, labels), x)[1](jnp.asarray(1.0))
    _, tangent = jax.jvp(lambda x: softjax.cross_entropy(x, labels), (x,), (t,))
    np.testing.assert_allclose(tangent, (dx * t).sum(), rtol=1e-4)


@pytest.mark.parametrize(("k", "reduction"), covering([4, 12], ["mean", "none"]))
def test_no_array_of_all_samples_and_classes(reduction, k):
    samples, classes = 64, 128
    hidden, kernel, _ = cases.layer(classes, samples=samples)
    labels = few.sparse(classes, k, samples)

    def loss(h, w, p):
        target = softjax.SparseLabels(labels.ids, p)
        return softjax.linear_cross_entropy(h, w, target, reduction=reduction, block_size=8, label_smoothing=0.1).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(hidden, kernel, labels.probabilities)
    sizes = [v.aval.size for e in jaxprs.equations(jaxpr) for v in e.outvars]
    assert max(sizes) <= 8 * classes * max(1, 13 // 8 + 1)  # a chunk of logits, or the kernel
    count = 4 if reduction == "none" else 3
    assert len(jaxprs.matmuls(jax.grad(loss, (0, 1)), hidden, kernel, labels.probabilities)) == count


def test_row_losses():
    x, labels = cases.logits(9), few.sparse(9, 4)
    dense_labels = jnp.asarray(few.dense(labels, 9), jnp.float32)
    f = lambda y: softjax.linear_loss(softjax.losses.poly, jnp.eye(11), x, y, reduction="mean")  # noqa: E731
    np.testing.assert_allclose(f(labels), f(dense_labels), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, *slow(jnp.float32)])
def test_dtypes(dtype):
    x, labels = cases.logits(9, dtype=dtype), few.sparse(9, 4)
    labels = labels._replace(probabilities=labels.probabilities.astype(dtype), ids=labels.ids.astype(jnp.int16))
    loss, gradients = vjp(
        lambda x, p: softjax.cross_entropy(x, labels._replace(probabilities=p)), (x, labels.probabilities), jnp.ones(())
    )
    assert loss.dtype == jnp.float32
    assert [d.dtype for d in gradients] == [dtype, dtype]
    expected = oracle.cross_entropy(x, few.dense(labels, 9))[0].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
