"""Classes that do not exist, by `where` or a bias of −inf, are as if they had been deleted from the last layer."""

from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering
from linear_law import RTOL, check

import softjax


@pytest.mark.parametrize(("reduction", "softcap"), covering(["mean", "none"], [3.0, None]))
def test_where_leaves_classes_out(reduction, softcap):
    exist = jnp.arange(9) % 3 != 1
    options = {"where": exist, "weights": cases.weights(), "label_smoothing": 0.1, "z_loss": 1e-3}
    hidden, kernel, bias = cases.layer(9, spread=3.0)
    for labels in (cases.class_ids(3) * 3, cases.distribution(9)):
        check(reduction, hidden, kernel, bias, labels, 4, logit_softcap=softcap, **options)
        every = {"bias": bias, "reduction": reduction, "block_size": 4, "logit_softcap": softcap, **options}
        _, pull = jax.vjp(partial(softjax.linear_cross_entropy, hidden, labels=labels, **every), kernel)
        shape = (len(hidden),) if reduction == "none" else ()
        assert not np.any(np.asarray(pull(jnp.ones(shape))[0])[:, ~np.asarray(exist)])


def test_statistics_over_the_classes_that_exist():
    hidden, kernel, bias = cases.layer(9, spread=3.0)
    exist, labels = jnp.arange(9) % 3 != 1, cases.class_ids(9)
    fused = softjax.linear_statistics(hidden, kernel, labels, bias=bias, where=exist, block_size=4)
    dense = softjax.statistics(hidden @ kernel + bias[None, :], labels, where=exist)
    for name, number, expected in zip(fused._fields, fused, dense, strict=True):
        np.testing.assert_allclose(number, expected, rtol=RTOL, atol=RTOL, err_msg=name)


@pytest.mark.parametrize("where", [False, jnp.zeros(9, bool), np.zeros(1, bool)])
def test_where_no_class_exists_nothing_is_counted(where):
    hidden, kernel, _ = cases.layer(9)
    labels = cases.class_ids(9)
    for reduction in ("mean", "sum", "none"):
        options = {"where": where, "reduction": reduction, "block_size": 4}
        value, pull = jax.vjp(partial(softjax.linear_cross_entropy, labels=labels, **options), hidden, kernel)
        assert not np.any(value)
        assert not any(np.any(gradient) for gradient in pull(jnp.ones_like(value)))
    assert softjax.linear_loss(lambda s: s.entropy + 1, hidden, kernel, labels, where=where) == 0
    row = softjax.linear_statistics(hidden, kernel, labels, where=where)
    nowhere = softjax.statistics(hidden @ kernel, labels, where=False)
    for number, expected in zip(row, nowhere, strict=True):
        np.testing.assert_array_equal(number, expected)


@pytest.mark.parametrize(("reduction", "block_size"), covering(["mean", "none"], [None, 4]))
def test_a_bias_of_minus_infinity_leaves_a_class_out_under_a_softcap(reduction, block_size):
    """tanh(−inf) is −1: the class must not come back to life, forward or backward."""
    hidden, kernel, bias = cases.layer(9)
    labels = cases.class_ids(9) % 7

    def loss(h, k, b):
        rows = softjax.linear_cross_entropy(
            h, k, labels, bias=b, logit_softcap=5.0, reduction=reduction, block_size=block_size
        )
        return rows.sum()

    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(hidden, kernel, bias.at[7:].set(-jnp.inf))
    expected, right = jax.value_and_grad(loss, (0, 1, 2))(hidden, kernel[:, :7], bias[:7])
    np.testing.assert_allclose(value, expected, rtol=RTOL)
    for ours, theirs in zip(
        gradients, (right[0], jnp.pad(right[1], ((0, 0), (0, 2))), jnp.pad(right[2], (0, 2))), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=RTOL, atol=1e-6)
    tangent = jax.jvp(lambda k: loss(hidden, k, bias.at[7:].set(-jnp.inf)), (kernel,), (kernel,))[1]
    np.testing.assert_allclose(tangent, jnp.vdot(kernel[:, :7], right[1]), rtol=1e-4)
