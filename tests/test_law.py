"""The law of the cross-entropy: computed in any way, values and gradients equal the float64 oracle."""

import math

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from covering import ROUTES, covering, slow

import softjax

RTOL = 3e-6  # float32: some 25 ulp, for rows of 2049 classes


def _one_hot(logits, labels, **options):
    return softjax.cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]), reduction="none", **options)


def _ids(logits, labels, **options):
    return softjax.cross_entropy(logits, labels, reduction="none", **options)


def _leading_axis(logits, labels, **options):
    if "where" in options:
        options["where"] = jnp.moveaxis(jnp.broadcast_to(options["where"], logits.shape), -1, 0)
    return softjax.cross_entropy(logits.T, labels, reduction="none", axis=0, **options)


def _vmapped(logits, labels, **options):
    weights = options.pop("weights", jnp.ones(logits.shape[0]))
    where = options.pop("where", [None])[0]

    def sample_loss(x, y, w):
        return softjax.cross_entropy(x, y, weights=w, where=where, reduction="none", **options)

    return jax.vmap(sample_loss)(logits, labels, weights)


def _middle_axis(logits, labels, **options):
    if "where" in options:
        options["where"] = jnp.broadcast_to(options["where"], logits.shape)[:, :, None]
    if "weights" in options:
        options["weights"] = options["weights"][:, None]
    return softjax.cross_entropy(logits[:, :, None], labels[:, None], reduction="none", axis=1, **options)[:, 0]


def _as_kernel(block_size):
    def way(logits, labels, **options):
        """The logits are the kernel, with one feature per sample."""
        return softjax.linear_cross_entropy(
            jnp.eye(len(logits)), logits, labels, reduction="none", block_size=block_size, **options
        )

    return pytest.param(way, id=f"kernel, chunks of {block_size}")


def _as_hidden(block_size):
    def way(logits, labels, **options):
        """The logits are the hidden states, with one feature per class."""
        eye = jnp.eye(logits.shape[1])
        return softjax.linear_cross_entropy(logits, eye, labels, reduction="none", block_size=block_size, **options)

    return pytest.param(way, id=f"hidden, chunks of {block_size}")


LINEAR = [_as_kernel(None), _as_kernel(1), _as_kernel(3), _as_hidden(5), _as_hidden(cases.SAMPLES), _as_hidden(1000)]
# Each way with ids of 129 classes and with distributions over 7. Every second case is slow.
LINEAR_OPTIONS = [
    pytest.param(*way.values, classes, id=f"{way.id}, {classes}", marks=pytest.mark.slow if (i + j) % 2 else ())
    for i, way in enumerate(LINEAR)
    for j, classes in enumerate((129, 7))
]
WAYS = [_ids, _one_hot, _leading_axis, _middle_axis, _vmapped]


def _program(way, **options):
    """The losses and their VJP by the logits, as one program."""

    @jax.jit
    def with_gradient(logits, labels, g):
        loss, pull = jax.vjp(lambda x: way(x, labels, **options), logits)
        return loss, pull(g)[0]

    return with_gradient


def check(way, logits, labels, program=None, **options):
    g = cases.cotangent(logits.shape[0])
    loss, dx = (program or _program(way, **options))(logits, labels, g)
    expected, gradient = oracle.cross_entropy(logits, labels, cotangent=g, **options)
    scale = np.abs(np.asarray(g)).max() * max(1.0, np.abs(gradient).max())
    np.testing.assert_allclose(loss, expected, rtol=RTOL, atol=RTOL)
    np.testing.assert_allclose(dx, gradient, rtol=RTOL, atol=RTOL * scale)
    assert loss.dtype == jnp.float32


@pytest.mark.parametrize("way", [*WAYS, *LINEAR])
@pytest.mark.parametrize("classes", [5, *slow(129)])
def test_without_options(way, classes):
    program = _program(way)
    for spread in cases.SPREADS:
        check(way, cases.logits(classes, spread), cases.class_ids(classes), program)


@pytest.mark.parametrize(("classes", "route"), covering(cases.CLASSES, ROUTES), indirect=["route"])
def test_every_class_count(classes, route):
    check(_ids, cases.logits(classes), cases.class_ids(classes))


@pytest.mark.parametrize(("way", "base"), covering(WAYS, [10.0, 2.0, math.e, 0.5]))
def test_every_option(way, base):
    classes = 129
    where = np.random.default_rng(0).random((1, classes)) < 0.7
    labels = np.nonzero(where[0])[0][np.asarray(cases.class_ids(int(where.sum())))]
    check(
        way,
        cases.logits(classes),
        jnp.asarray(labels, jnp.int32),
        base=base,
        where=jnp.asarray(where),
        weights=cases.weights(),
        label_smoothing=0.1,
        z_loss=1e-3,
    )


@pytest.mark.parametrize(("way", "classes"), LINEAR_OPTIONS)
def test_every_option_of_the_linear_layer(way, classes):
    options = {"weights": cases.weights(), "label_smoothing": 0.1, "z_loss": 1e-3, "base": 2.0}
    labels = cases.class_ids(129) if classes == 129 else cases.distribution(classes)
    check(way, cases.logits(classes), labels, **options)


@pytest.mark.parametrize("option", [{"label_smoothing": 0.3}, {"label_smoothing": 1.0}, {"z_loss": 0.01}])
@pytest.mark.parametrize("spread", cases.SPREADS)
def test_each_option_alone(option, spread, route):
    check(_ids, cases.logits(9, spread), cases.class_ids(9), **option)


@pytest.mark.parametrize("spread", cases.SPREADS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_distribution(spread, smoothing, route):
    check(_ids, cases.logits(7, spread), cases.distribution(7), label_smoothing=smoothing)


@pytest.mark.parametrize("mass", [0.5, 3.0])
def test_distribution_of_any_mass(mass):
    check(_ids, cases.logits(7) + 100, mass * cases.distribution(7))


def test_rows_masked_by_where():
    exists = (jnp.arange(cases.SAMPLES) % 3 > 0)[:, None]
    check(_ids, cases.logits(5), cases.class_ids(5), where=exists, label_smoothing=0.2, z_loss=0.01)


def test_mass_at_masked_classes_is_dropped():
    where = jnp.array([True, True, False, True, False])
    logits, labels = cases.logits(5), cases.distribution(5)
    check(_ids, logits, labels, where=where)
    deleted = softjax.cross_entropy(logits[:, where], labels[:, where])
    np.testing.assert_allclose(softjax.cross_entropy(logits, labels, where=where), deleted, rtol=RTOL)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [None, cases.weights(), cases.weights() > 0, jnp.arange(cases.SAMPLES)])
def test_reductions(reduction, weighted):
    logits, labels = cases.logits(5), cases.class_ids(5)
    value, gradient = jax.value_and_grad(softjax.cross_entropy)(logits, labels, weights=weighted, reduction=reduction)
    total = cases.SAMPLES if weighted is None else float(np.asarray(weighted, np.float64).sum())
    scale = 1 / total if reduction == "mean" else 1.0
    expected, dx = oracle.cross_entropy(logits, labels, weights=weighted)
    np.testing.assert_allclose(value, expected.sum() * scale, rtol=RTOL)
    np.testing.assert_allclose(gradient, dx * scale, atol=RTOL)


def test_against_autodiff_of_the_unstable_formula():
    logits, labels = cases.logits(5), cases.class_ids(5)

    def unstable(x):
        return -jnp.log10(jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True))[jnp.arange(len(x)), labels].mean()

    chex.assert_trees_all_close(
        jax.value_and_grad(softjax.cross_entropy)(logits, labels), jax.value_and_grad(unstable)(logits), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("dtype", "classes", "route"),
    covering([jnp.float32, jnp.float16, jnp.bfloat16], [2048, 40001], ROUTES, quick=(0, 2)),
    indirect=["route"],
)
def test_many_rows(dtype, classes, route):
    # One CPU processes so many rows a few at a time. The steps do not divide the number of rows.
    samples = 4 * 256 * 1024 // classes + 133
    x, labels = cases.logits(classes, 3.0, samples, dtype), cases.class_ids(classes, samples)
    expected, _ = oracle.cross_entropy(x, labels)
    np.testing.assert_allclose(_ids(x, labels), expected, rtol=RTOL, atol=RTOL)
    g = cases.cotangent(samples)
    under_grad, dx = _program(_ids)(x, labels, g)
    np.testing.assert_allclose(under_grad, expected, rtol=RTOL, atol=RTOL)
    _, gradient = oracle.cross_entropy(x, labels, cotangent=g)
    ulp = float(jnp.finfo(dtype).eps)
    # relative to each entry, and absolutely for what underflows in float16
    np.testing.assert_allclose(np.asarray(dx, np.float64), gradient, rtol=ulp + 1e-5, atol=1e-7)


def test_the_gradient_by_soft_labels_is_minus_log_q():
    logits, p = cases.logits(7), cases.distribution(7)
    gradient = jax.grad(lambda p: softjax.cross_entropy(logits, p, reduction="sum", base=math.e))(p)
    expected = -np.stack([oracle.log_softmax(x) for x in np.asarray(logits)])
    np.testing.assert_allclose(gradient, expected, rtol=RTOL, atol=RTOL)


def test_the_gradient_by_the_weights():
    logits, labels, w = cases.logits(7), cases.class_ids(7), cases.weights()
    gradient = jax.grad(lambda w: softjax.cross_entropy(logits, labels, weights=w))(w)
    loss, _ = oracle.cross_entropy(logits, labels)
    weight = np.asarray(w, np.float64)
    mean = (weight * loss).sum() / weight.sum()
    np.testing.assert_allclose(gradient, (loss - mean) / weight.sum(), rtol=1e-5, atol=RTOL)


def test_the_gradient_has_a_derivative_by_a_weight_of_0():
    # ∂²(Σ w_i l_i)/∂w_i∂x = ∂l_i/∂x at w = 0. Learning to reweight examples needs it (Ren et al. 2018).
    logits, labels = cases.logits(5), cases.class_ids(5)

    def total(w, x):
        return softjax.cross_entropy(x, labels, weights=w, reduction="sum")

    zeros = jnp.zeros(cases.SAMPLES)
    mixed = jax.jacrev(jax.grad(total, argnums=1), argnums=0)(zeros, logits)
    _, dx = oracle.cross_entropy(logits, labels)
    np.testing.assert_allclose(jnp.einsum("ncn->nc", mixed), dx, atol=RTOL)
    assert not jax.grad(total, argnums=1)(zeros, logits).any()
