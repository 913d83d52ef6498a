"""Each matmul has the precision of the call: the default where the function is called, or `precision`."""

import re

import jax
import jax.numpy as jnp
import pytest
from covering import covering
from jax import lax

import softjax

H, K, Y = jnp.ones((6, 4)), jnp.ones((4, 3)), jnp.zeros(6, int)


def mean_loss(h, k, **options):
    return softjax.linear_cross_entropy(h, k, Y, block_size=2, **options)


def losses_without_reduction(h, k, **options):
    return jnp.sum(softjax.linear_cross_entropy(h, k, Y, reduction="none", block_size=2, **options) ** 2)


def statistics(h, k, **options):
    return jnp.sum(softjax.linear_statistics(h, k, Y, block_size=2, **options).entropy ** 2)


def row_loss(h, k, **options):
    return softjax.linear_loss(lambda s: s.cross_entropy, h, k, Y, block_size=2, **options)


# functions and their number of matmuls with both gradients
FUNCTIONS = {
    "mean": (mean_loss, 3),
    "none": (losses_without_reduction, 4),
    "statistics": (statistics, 4),
    "linear_loss": (row_loss, 3),
}
EVERY_FUNCTION = pytest.mark.parametrize("name", FUNCTIONS)


def precisions(function, *args):
    """The precision of each matmul in the StableHLO program."""
    text = jax.jit(function).lower(*args).as_text()
    return re.findall(r"dot_general.*?precision = \[(\w+), (\w+)\]", text)


@EVERY_FUNCTION
def test_the_default_precision_of_the_call_holds_for_all_matmuls(name):
    function, matmuls = FUNCTIONS[name]

    def highest(h, k):
        with jax.default_matmul_precision("highest"):
            return function(h, k)

    assert precisions(jax.grad(highest, (0, 1)), H, K) == [("HIGHEST", "HIGHEST")] * matmuls
    # a default that is set only around the backward pass reaches no matmul
    with jax.default_matmul_precision("default"):
        _, pull = jax.vjp(function, H, K)
    with jax.default_matmul_precision("highest"):
        assert set(precisions(pull, jnp.ones(()))) <= {("DEFAULT", "DEFAULT")}


@pytest.mark.parametrize(
    ("name", "dtype"), covering(FUNCTIONS, [jnp.float32, jnp.bfloat16, jnp.float16], quick=(0, 1, 2, 3))
)
def test_a_given_precision_holds_for_all_matmuls(name, dtype):
    function, matmuls = FUNCTIONS[name]
    h, k = H.astype(dtype), K.astype(dtype)
    highest = ("highest", lax.Precision.HIGHEST, ("highest", "highest"))
    for precision in highest if dtype == jnp.float32 else highest[:1]:
        found = precisions(jax.grad(lambda h, k, p=precision: function(h, k, precision=p), (0, 1)), h, k)
        assert found == [("HIGHEST", "HIGHEST")] * matmuls
    assert set(precisions(jax.grad(function, (0, 1)), h, k)) == {("DEFAULT", "DEFAULT")}


@EVERY_FUNCTION
def test_forward_mode_and_second_derivatives_keep_the_precision(name):
    def function(h):
        return FUNCTIONS[name][0](h, K, precision="highest")

    def jvp_of_gradient(h):
        return jax.jvp(jax.grad(function), (h,), (h,))

    assert set(precisions(jvp_of_gradient, H)) == {("HIGHEST", "HIGHEST")}


@pytest.mark.parametrize("precision", ["exact", 3, ("highest",), True])
def test_another_precision_is_refused_by_name(precision):
    with pytest.raises(ValueError, match=r"`precision` must be None, a `jax.lax.Precision`"):
        mean_loss(H, K, precision=precision)
