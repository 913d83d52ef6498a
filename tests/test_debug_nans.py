"""A finite result needs no NaN on the way: `jax.debug_nans` and `checkify.float_checks` find none."""

import jax
import jax.numpy as jnp
import pytest
from covering import slow
from jax.experimental import checkify

import softjax

X, H, K = jnp.array([[1.0, 2, 3], [0, 1, 0]]), jnp.ones((2, 4)), jnp.arange(12.0).reshape(4, 3) / 10
Y, WRONG, W = jnp.array([1, 0]), jnp.array([1, -5]), jnp.array([1.0, 0])
EMPTY, P = jnp.array([[True] * 3, [False] * 3]), jnp.array([[0.2, 0.3, 0.5], [0.1, 0.9, 0]])
T = jnp.float32(2)
NOWHERE, SOME = jnp.zeros(3, bool), jnp.array([True, True, False])

CALLS = {
    "a wrong label of weight 0": lambda x, h: softjax.cross_entropy(x, WRONG, weights=W),
    "its row": lambda x, h: softjax.cross_entropy(x, WRONG, weights=W, reduction="none").sum(),
    "with penalties": lambda x, h: softjax.cross_entropy(x, WRONG, weights=W, label_smoothing=0.1, z_loss=0.1),
    "every weight 0": lambda x, h: softjax.cross_entropy(x, WRONG, weights=0 * W),
    "an empty row": lambda x, h: softjax.cross_entropy(x, Y, where=EMPTY),
    "of a distribution": lambda x, h: softjax.cross_entropy(x, P, where=EMPTY),
    "its statistics": lambda x, h: softjax.statistics(x, Y, where=EMPTY).cross_entropy.sum(),
    "a logit of -inf": lambda x, h: softjax.cross_entropy(x.at[0, 0].set(-jnp.inf), Y),
    "beside a distribution": lambda x, h: softjax.cross_entropy(x.at[1, 2].set(-jnp.inf), P),
    "an empty softmax": lambda x, h: softjax.softmax(x, where=EMPTY).sum(),
    "an empty log-softmax": lambda x, h: jnp.where(EMPTY, softjax.log_softmax(x, where=EMPTY), 0).sum(),
    "a layer": lambda x, h: softjax.linear_cross_entropy(h, K, Y),
    "its wrong label of weight 0": lambda x, h: softjax.linear_cross_entropy(h, K, WRONG, weights=W, block_size=1),
    "its rows": lambda x, h: softjax.linear_cross_entropy(h, K, WRONG, weights=W, reduction="none").sum(),
    "its empty rows": lambda x, h: softjax.linear_cross_entropy(h, K, Y, where=NOWHERE),
    "a part of its classes": lambda x, h: softjax.linear_cross_entropy(h, K, Y, where=SOME),
    "the statistics of a layer": lambda x, h: softjax.linear_statistics(h, K, Y).entropy.sum(),
    "any loss": lambda x, h: softjax.linear_loss(lambda s: s.cross_entropy + s.entropy, h, K, Y),
    "a divergence": lambda x, h: softjax.divergence(100 * x, x.at[0].set(X[1])),
    "the other way": lambda x, h: softjax.divergence(x.at[0, 0].set(-jnp.inf), X, kind="reverse_kl", temperature=T),
    "of a mixture": lambda x, h: softjax.divergence(
        x.at[0, 0].set(-jnp.inf), X.at[0, 1].set(-jnp.inf), kind="jensen_shannon", where=EMPTY
    ),
    "of two layers": lambda x, h: softjax.linear_divergence(h, K, jnp.sin(H), K, where=SOME, weights=W),
    "confident rows": lambda x, h: softjax.cross_entropy(100 * x, Y),
    "no samples": lambda x, h: softjax.cross_entropy(x[:0], Y[:0]),
}


# Each of the others is near to one of these.
QUICK = [
    "with penalties",
    "an empty row",
    "a logit of -inf",
    "its wrong label of weight 0",
    "any loss",
    "of two layers",
]


@pytest.mark.parametrize("name", [*QUICK, *slow(*(name for name in CALLS if name not in QUICK))])
def test_nothing_is_no_number(name):
    both = jax.value_and_grad(CALLS[name], (0, 1))
    with jax.debug_nans(True), jax.disable_jit():
        value, gradients = both(X, H)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)
    error, _ = checkify.checkify(jax.jit(both), errors=checkify.float_checks)(X, H)
    error.throw()


def test_what_is_no_number_stays_so():
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        softjax.cross_entropy(X, WRONG)
    assert jnp.isnan(softjax.cross_entropy(X, WRONG))
