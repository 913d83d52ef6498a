"""The precision of every matmul is fixed where the function is called. `precision` sets it."""

import re

import jax
import jax.numpy as jnp
import pytest
from covering import covering
from jax import lax

import softjax

H, K, Y = jnp.ones((6, 4)), jnp.ones((4, 3)), jnp.zeros(6, int)


def mean(h, k, **options):
    return softjax.linear_cross_entropy(h, k, Y, block_size=2, **options)


def none(h, k, **options):
    return jnp.sum(softjax.linear_cross_entropy(h, k, Y, reduction="none", block_size=2, **options) ** 2)


def statistics(h, k, **options):
    return jnp.sum(softjax.linear_statistics(h, k, Y, block_size=2, **options).entropy ** 2)


def loss(h, k, **options):
    return softjax.linear_loss(lambda s: s.cross_entropy, h, k, Y, block_size=2, **options)


ROUTES = {"mean": (mean, 3), "none": (none, 4), "statistics": (statistics, 4), "linear_loss": (loss, 3)}
EVERY = pytest.mark.parametrize("route", ROUTES)


def precisions(function, *args):
    """The precision of each matmul in the StableHLO program."""
    text = jax.jit(function).lower(*args).as_text()
    return re.findall(r"dot_general.*?precision = \[(\w+), (\w+)\]", text)


@EVERY
def test_the_default_where_it_is_called_holds_for_all_products(route):
    function, products = ROUTES[route]

    def highest(h, k):
        with jax.default_matmul_precision("highest"):
            return function(h, k)

    assert precisions(jax.grad(highest, (0, 1)), H, K) == [("HIGHEST", "HIGHEST")] * products
    # a default that is set only around the backward pass reaches no matmul
    with jax.default_matmul_precision("default"):
        _, pull = jax.vjp(function, H, K)
    with jax.default_matmul_precision("highest"):
        assert set(precisions(pull, jnp.ones(()))) <= {("DEFAULT", "DEFAULT")}


@pytest.mark.parametrize(
    ("route", "dtype"), covering(ROUTES, [jnp.float32, jnp.bfloat16, jnp.float16], quick=(0, 1, 2, 3))
)
def test_a_given_precision_holds_for_all_products(route, dtype):
    function, products = ROUTES[route]
    h, k = H.astype(dtype), K.astype(dtype)
    given = ("highest", lax.Precision.HIGHEST, ("highest", "highest"))
    for precision in given if dtype == jnp.float32 else given[:1]:
        found = precisions(jax.grad(lambda h, k, p=precision: function(h, k, precision=p), (0, 1)), h, k)
        assert found == [("HIGHEST", "HIGHEST")] * products
    assert set(precisions(jax.grad(function, (0, 1)), h, k)) == {("DEFAULT", "DEFAULT")}


@EVERY
def test_forward_mode_and_second_derivatives_keep_it(route):
    def function(h):
        return ROUTES[route][0](h, K, precision="highest")

    def along(h):
        return jax.jvp(jax.grad(function), (h,), (h,))

    assert set(precisions(along, H)) == {("HIGHEST", "HIGHEST")}


@pytest.mark.parametrize("precision", ["exact", 3, ("highest",), True])
def test_another_is_refused_by_name(precision):
    with pytest.raises(ValueError, match=r"`precision` must be None, a `jax.lax.Precision`"):
        mean(H, K, precision=precision)
