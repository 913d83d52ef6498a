"""Classes masked by `where` or by a bias of −inf act as if deleted from the last layer."""

import contextlib
from functools import partial

import cases
import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest
from covering import covering, slow
from jax.sharding import AxisType
from linear_law import RTOL, check
from programs import vjp

import softjax
from softjax._linear import chunks


@pytest.mark.parametrize(("reduction", "softcap"), covering(["mean", "none"], [3.0, None]))
def test_where_masks_classes(reduction, softcap):
    exist = jnp.arange(9) % 3 != 1
    options = {"where": exist, "weights": cases.weights(), "label_smoothing": 0.1, "z_loss": 1e-3}
    hidden, kernel, bias = cases.layer(9, spread=3.0)
    for labels in (cases.class_ids(3) * 3, cases.distribution(9)):
        check(reduction, hidden, kernel, bias, labels, 4, logit_softcap=softcap, **options)
        arguments = {"bias": bias, "reduction": reduction, "block_size": 4, "logit_softcap": softcap, **options}
        shape = (len(hidden),) if reduction == "none" else ()
        _, (dk,) = vjp(
            partial(softjax.linear_cross_entropy, hidden, labels=labels, **arguments), (kernel,), jnp.ones(shape)
        )
        assert not np.any(np.asarray(dk)[:, ~np.asarray(exist)])


def test_statistics_with_masked_classes():
    hidden, kernel, bias = cases.layer(9, spread=3.0)
    exist, labels = jnp.arange(9) % 3 != 1, cases.class_ids(9)
    fused = softjax.linear_statistics(hidden, kernel, labels, bias=bias, where=exist, block_size=4)
    dense = softjax.statistics(hidden @ kernel + bias[None, :], labels, where=exist)
    for name, values, expected in zip(fused._fields, fused, dense, strict=True):
        np.testing.assert_allclose(values, expected, rtol=RTOL, atol=RTOL, err_msg=name)


@pytest.mark.parametrize("where", [False, *slow(jnp.zeros(9, bool), np.zeros(1, bool))])
def test_rows_without_classes_are_ignored(where):
    hidden, kernel, _ = cases.layer(9)
    labels = cases.class_ids(9)
    for reduction in ("mean", "sum", "none"):
        options = {"where": where, "reduction": reduction, "block_size": 4}
        shape = (len(hidden),) if reduction == "none" else ()
        fused = partial(softjax.linear_cross_entropy, labels=labels, **options)
        value, gradients = vjp(fused, (hidden, kernel), jnp.ones(shape))
        assert not np.any(value)
        assert not any(map(np.any, gradients))
    assert softjax.linear_loss(lambda s: s.entropy + 1, hidden, kernel, labels, where=where) == 0
    fused = softjax.linear_statistics(hidden, kernel, labels, where=where)
    dense = softjax.statistics(hidden @ kernel, labels, where=False)
    for values, expected in zip(fused, dense, strict=True):
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(("reduction", "block_size"), covering(["mean", "none"], [None, 4]))
def test_a_bias_of_minus_infinity_masks_a_class_under_a_softcap(reduction, block_size):
    """tanh(−inf) is −1, but the softcap does not bring the class back, forward or backward."""
    hidden, kernel, bias = cases.layer(9)
    labels = cases.class_ids(9) % 7

    def loss(h, k, b):
        rows = softjax.linear_cross_entropy(
            h, k, labels, bias=b, logit_softcap=5.0, reduction=reduction, block_size=block_size
        )
        return rows.sum()

    with_gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    value, gradients = with_gradients(hidden, kernel, bias.at[7:].set(-jnp.inf))
    expected, (dh, dk, db) = with_gradients(hidden, kernel[:, :7], bias[:7])
    np.testing.assert_allclose(value, expected, rtol=RTOL)
    for gradient, wanted in zip(gradients, (dh, jnp.pad(dk, ((0, 0), (0, 2))), jnp.pad(db, (0, 2))), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=RTOL, atol=1e-6)
    tangent = jax.jvp(lambda k: loss(hidden, k, bias.at[7:].set(-jnp.inf)), (kernel,), (kernel,))[1]
    np.testing.assert_allclose(tangent, jnp.vdot(kernel[:, :7], dk), rtol=1e-4)


# Padded classes: on a GPU, the classes of a chunk are padded for the tensor cores


@pytest.fixture
def set_padding(monkeypatch):
    """Sets the number of padded classes."""

    def set_to(count):
        monkeypatch.setattr(chunks, "padding_for_tensor_cores", lambda classes, platform: count)

    set_to(3)
    return set_to


def widths(function, *arrays):
    """The lengths of the last axes of all arrays in the program."""
    arrays = jax.tree.leaves([e.outvars for e in jaxprs.equations(jax.make_jaxpr(function)(*arrays))])
    return {array.aval.shape[-1] for array in arrays if array.aval.shape}


@pytest.mark.parametrize(
    ("labels", "reduction", "softcap"),
    covering([cases.class_ids(9), cases.distribution(9)], ["mean", "none"], [None, 3.0]),
)
def test_padded_classes_change_no_loss_and_no_gradient(set_padding, labels, reduction, softcap):
    layer = cases.layer(9, spread=3.0)
    check(reduction, *layer, labels, 4, logit_softcap=softcap)
    options = {"weights": cases.weights(), "label_smoothing": 0.1, "z_loss": 1e-3}
    check(reduction, *layer, labels, 4, logit_softcap=softcap, **options)
    if labels.ndim == 1:
        check(reduction, *layer, labels % 4, 4, logit_softcap=softcap, where=jnp.arange(9) != 4, **options)


def statistics(h, k, b):
    return jax.tree.map(lambda n: n.astype(jnp.float32), softjax.linear_statistics(h, k, cases.class_ids(9), bias=b))


def log_probabilities(h, k, b):
    return softjax.linear_log_probabilities(
        h, k, cases.class_ids(9)[:, None] + jnp.arange(3)[None], bias=b, block_size=4
    )


def top_k(h, k, b):
    top = softjax.linear_top_k(h, k, 9, bias=b.at[2:7].set(-jnp.inf))  # the last ids are masked classes
    return top.ids.astype(jnp.float32), jnp.maximum(top.log_probabilities, -99)


def sparse(h, k, b):
    ids = cases.class_ids(9)[:, None] + jnp.arange(2)[None]
    labels = softjax.SparseLabels(ids % 9, jnp.full(ids.shape, 0.5))
    return softjax.linear_cross_entropy(h, k.T.T, labels, bias=b, reduction="none", block_size=4)


def loss(h, k, b):
    return softjax.linear_loss(lambda s: s.entropy + s.mean_logit + s.collision, h, k, cases.class_ids(9), bias=b)


def divergence(h, k, b):
    teacher = {"kind": "jensen_shannon", "teacher_bias": -b, "temperature": 2.0}
    return softjax.linear_divergence(h, k, h + 1, 2 * k, bias=b, block_size=4, **teacher)


def divergence_without_reduction(h, k, b):
    return softjax.linear_divergence(h, k, -h, k, bias=b, reduction="none", where=jnp.arange(9) != 4)


@pytest.mark.parametrize(
    "function", [statistics, log_probabilities, top_k, divergence, *slow(sparse, loss, divergence_without_reduction)]
)
def test_padded_classes_change_no_row_value(set_padding, function):
    layer = cases.layer(9, spread=3.0)

    def with_gradients(count):
        set_padding(count)

        @jax.jit
        def both(*layer):
            value, pull = jax.vjp(function, *layer)
            return value, pull(jax.tree.map(lambda n: cases.cotangent(n.size).reshape(n.shape), value))

        return both(*layer)

    for found, expected in zip(*map(jax.tree.leaves, map(with_gradients, (3, 0))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=RTOL, atol=RTOL * np.nanmax(np.abs(expected)))


@pytest.mark.parametrize(
    ("kind", "axis_names", "padded"),
    [(AxisType.Explicit, {}, True), (AxisType.Auto, {}, True), (AxisType.Auto, {"batch_axis_name": "data"}, True),
     (AxisType.Explicit, {"axis_name": "data"}, False), (None, {}, True)],
)  # fmt: skip
def test_classes_are_padded_only_where_they_cannot_be_sharded(set_padding, kind, axis_names, padded):
    """On one device. XLA might shard classes over an Auto axis of two devices."""

    def function(h, k):
        return softjax.linear_cross_entropy(h, k, cases.class_ids(9), **axis_names)

    mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,)) if kind else None
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        assert (9 + 3 in widths(jax.grad(function, (0, 1)), *cases.layer(9)[:2])) == padded
    if kind == AxisType.Auto and not axis_names:
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("data",), axis_types=(kind,))):
            assert 9 + 3 not in widths(jax.grad(function, (0, 1)), *cases.layer(9)[:2])


def test_the_number_of_padded_classes():
    padded = {c: chunks.padding_for_tensor_cores(c, "gpu") for c in (1, 5, 1000, 1023, 1025, 50257, 50264, 128256)}
    assert padded == {1: 0, 5: 0, 1000: 0, 1023: 0, 1025: 63, 50257: 47, 50264: 0, 128256: 0}
    assert chunks.padding_for_tensor_cores(50257, "cpu") == chunks.padding_for_tensor_cores(50257, "tpu") == 0
