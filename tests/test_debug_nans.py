"""No finite result has a NaN among its intermediate values: `jax.debug_nans` and `checkify` find none."""

import jax
import jax.numpy as jnp
import pytest
from covering import slow
from jax.experimental import checkify

import softjax

X, H, K = jnp.array([[1.0, 2, 3], [0, 1, 0]]), jnp.ones((2, 4)), jnp.arange(12.0).reshape(4, 3) / 10
Y, WRONG, W = jnp.array([1, 0]), jnp.array([1, -5]), jnp.array([1.0, 0])
SECOND_ROW_MASKED, P = jnp.array([[True] * 3, [False] * 3]), jnp.array([[0.2, 0.3, 0.5], [0.1, 0.9, 0]])
T = jnp.float32(2)
NO_CLASS, TWO_CLASSES = jnp.zeros(3, bool), jnp.array([True, True, False])

CALLS = {
    "an ignored wrong label": lambda x, h: softjax.cross_entropy(x, WRONG, weights=W),
    "an ignored wrong label, none": lambda x, h: softjax.cross_entropy(x, WRONG, weights=W, reduction="none").sum(),
    "an ignored wrong label, smoothing and z-loss": lambda x, h: softjax.cross_entropy(
        x, WRONG, weights=W, label_smoothing=0.1, z_loss=0.1
    ),
    "no active row": lambda x, h: softjax.cross_entropy(x, WRONG, weights=0 * W),
    "a row without classes": lambda x, h: softjax.cross_entropy(x, Y, where=SECOND_ROW_MASKED),
    "a row without classes, distribution": lambda x, h: softjax.cross_entropy(x, P, where=SECOND_ROW_MASKED),
    "a row without classes, statistics": lambda x, h: softjax.statistics(
        x, Y, where=SECOND_ROW_MASKED
    ).cross_entropy.sum(),
    "a logit of -inf": lambda x, h: softjax.cross_entropy(x.at[0, 0].set(-jnp.inf), Y),
    "a logit of -inf, distribution": lambda x, h: softjax.cross_entropy(x.at[1, 2].set(-jnp.inf), P),
    "softmax of a row without classes": lambda x, h: softjax.softmax(x, where=SECOND_ROW_MASKED).sum(),
    "log-softmax of a row without classes": lambda x, h: jnp.where(
        SECOND_ROW_MASKED, softjax.log_softmax(x, where=SECOND_ROW_MASKED), 0
    ).sum(),
    "layer": lambda x, h: softjax.linear_cross_entropy(h, K, Y),
    "layer, an ignored wrong label": lambda x, h: softjax.linear_cross_entropy(h, K, WRONG, weights=W, block_size=1),
    "layer, an ignored wrong label, none": lambda x, h: softjax.linear_cross_entropy(
        h, K, WRONG, weights=W, reduction="none"
    ).sum(),
    "layer without classes": lambda x, h: softjax.linear_cross_entropy(h, K, Y, where=NO_CLASS),
    "layer, masked classes": lambda x, h: softjax.linear_cross_entropy(h, K, Y, where=TWO_CLASSES),
    "linear_statistics": lambda x, h: softjax.linear_statistics(h, K, Y).entropy.sum(),
    "linear_loss": lambda x, h: softjax.linear_loss(lambda s: s.cross_entropy + s.entropy, h, K, Y),
    "forward_kl": lambda x, h: softjax.divergence(100 * x, x.at[0].set(X[1])),
    "reverse_kl": lambda x, h: softjax.divergence(x.at[0, 0].set(-jnp.inf), X, kind="reverse_kl", temperature=T),
    "jensen_shannon": lambda x, h: softjax.divergence(
        x.at[0, 0].set(-jnp.inf), X.at[0, 1].set(-jnp.inf), kind="jensen_shannon", where=SECOND_ROW_MASKED
    ),
    "linear_divergence": lambda x, h: softjax.linear_divergence(h, K, jnp.sin(H), K, where=TWO_CLASSES, weights=W),
    "confident rows": lambda x, h: softjax.cross_entropy(100 * x, Y),
    "no samples": lambda x, h: softjax.cross_entropy(x[:0], Y[:0]),
}


# Each of the other calls is similar to one of these.
QUICK = [
    "an ignored wrong label, smoothing and z-loss",
    "a row without classes",
    "a logit of -inf",
    "linear_loss",
    "linear_divergence",
]


@pytest.mark.parametrize("name", [*QUICK, *slow(*(name for name in CALLS if name not in QUICK))])
def test_no_intermediate_value_is_nan(name):
    both = jax.value_and_grad(CALLS[name], (0, 1))
    with jax.debug_nans(True), jax.disable_jit():
        value, gradients = both(X, H)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)
    error, _ = checkify.checkify(jax.jit(both), errors=checkify.float_checks)(X, H)
    error.throw()


def test_a_nan_result_is_still_reported():
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        softjax.cross_entropy(X, WRONG)
    assert jnp.isnan(softjax.cross_entropy(X, WRONG))
