"""A temperature divides the logits of a layer after bias and softcap: one for all samples, or one for each."""

import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import slow
from jaxprs import matmuls

import softjax

CAP = 3.0
EACH = np.linspace(0.3, 3.0, cases.SAMPLES).astype(np.float32)
IDS = jnp.stack([cases.class_ids(9), cases.class_ids(9, seed=1)], -1)


def logits(hidden, kernel, bias, temperature):
    x = hidden @ kernel + bias[None]
    x = jnp.where(x == -jnp.inf, x, CAP * jnp.tanh(x / CAP))
    return x / jnp.broadcast_to(temperature, len(hidden))[:, None]


def row_loss(s):
    return s.cross_entropy * s.entropy + s.collision + 0.1 * s.mean_logit + 0.1 * s.max_logit


FUNCTIONS = {
    "linear_cross_entropy": (
        lambda *layer, **o: softjax.linear_cross_entropy(
            *layer, cases.class_ids(9), weights=cases.weights(), z_loss=0.1, label_smoothing=0.1, **o
        ),
        lambda x: softjax.cross_entropy(
            x, cases.class_ids(9), weights=cases.weights(), z_loss=0.1, label_smoothing=0.1
        ),
    ),
    "none": (
        lambda *layer, **o: softjax.linear_cross_entropy(*layer, cases.distribution(9), reduction="none", **o),
        lambda x: softjax.cross_entropy(x, cases.distribution(9), reduction="none"),
    ),
    "linear_loss": (
        lambda *layer, **o: softjax.linear_loss(row_loss, *layer, cases.class_ids(9), **o),
        lambda x: jnp.sum(row_loss(softjax.statistics(x, cases.class_ids(9)))),
    ),
    "linear_statistics": (
        lambda *layer, **o: row_loss(softjax.linear_statistics(*layer, cases.class_ids(9), **o)),
        lambda x: row_loss(softjax.statistics(x, cases.class_ids(9))),
    ),
    "linear_log_probabilities": (
        lambda *layer, **o: softjax.linear_log_probabilities(*layer, IDS, **o),
        lambda x: softjax.log_probabilities(x, IDS),
    ),
    "linear_top_k": (
        lambda *layer, **o: softjax.linear_top_k(*layer, 3, **o).log_probabilities,
        lambda x: softjax.log_probabilities(x, jax.lax.top_k(x, 3)[1]),
    ),
}


QUICK = ("none", "linear_loss", "linear_top_k")


@pytest.mark.parametrize("name", [*QUICK, *slow(*(name for name in FUNCTIONS if name not in QUICK))])
def test_every_function_divides_the_logits(name):
    """Value and gradients, also by the temperature, for a number, a traced scalar and one per sample."""
    fused, dense = FUNCTIONS[name]
    hidden, kernel, bias = cases.layer(9, spread=2.0)

    def of_layer(t, hidden, kernel, bias):
        return fused(hidden, kernel, bias=bias, logit_softcap=CAP, temperature=t, block_size=4)

    @jax.jit
    def both(t, *layer):
        results = []
        for function in (of_layer, lambda t, *layer: dense(logits(*layer, t))):
            value, pull = jax.vjp(function, t, *layer)
            results.append((value, pull(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))))
        return results

    for t in (jnp.float32(1.7), jnp.asarray(EACH)):
        found, expected = map(jax.tree.leaves, both(t, hidden, kernel, bias))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(jnp.abs(b).max()))
    number = of_layer(1.7, hidden, kernel, bias)
    np.testing.assert_allclose(number, both(jnp.float32(1.7), hidden, kernel, bias)[1][0], rtol=2e-5)


def test_higher_derivatives_by_the_temperature():
    hidden, kernel, bias = cases.layer(9)
    t = jnp.asarray(EACH)

    def hessians(loss):
        return jax.jit(lambda t: (jax.jvp(jax.grad(loss), (t,), (jnp.sin(t),))[1], jax.jvp(loss, (t,), (t,))[1]))(t)

    found = hessians(lambda t: FUNCTIONS["linear_cross_entropy"][0](hidden, kernel, bias=bias, temperature=t))
    expected = hessians(lambda t: FUNCTIONS["linear_cross_entropy"][1]((hidden @ kernel + bias[None]) / t[:, None]))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_class_without_logit_has_no_derivative_by_the_temperature():
    hidden, kernel, bias = cases.layer(9)
    bias = bias.at[4].set(-jnp.inf)
    labels = jnp.zeros(cases.SAMPLES, jnp.int32)

    def loss(t, bias, kernel):
        return softjax.linear_cross_entropy(hidden, kernel, labels, bias=bias, temperature=t, base=math.e)

    found = jax.value_and_grad(loss)(jnp.float32(2.0), bias, kernel)
    kept = np.delete(np.arange(9), 4)
    expected = jax.value_and_grad(loss)(jnp.float32(2.0), bias[kept], kernel[:, kept])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_value_and_gradient_take_three_matmuls():
    hidden, kernel, _ = cases.layer(9, samples=12)

    def loss(hidden, kernel, t):
        return softjax.linear_cross_entropy(hidden, kernel, cases.class_ids(9, samples=12), temperature=t, block_size=4)

    assert len(matmuls(jax.value_and_grad(loss, (0, 1, 2)), hidden, kernel, jnp.ones(12))) == 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(dtype):
    hidden, kernel, bias = cases.layer(9, dtype=dtype)
    t = jnp.asarray(EACH)

    def loss(t, hidden):
        return softjax.linear_cross_entropy(hidden, kernel, cases.class_ids(9), bias=bias, temperature=t)

    value, (dt, dh) = jax.value_and_grad(loss, (0, 1))(t, hidden)
    x = hidden.astype(jnp.float32) @ kernel.astype(jnp.float32) + bias.astype(jnp.float32)[None]
    expected, exact = jax.value_and_grad(lambda t: softjax.cross_entropy(x / t[:, None], cases.class_ids(9)))(t)
    assert (value.dtype, dt.dtype, dh.dtype) == (jnp.float32, jnp.float32, dtype)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(dt, exact, rtol=1e-4, atol=1e-6)


def test_refused_temperatures():
    hidden, kernel, _ = cases.layer(9)
    for t, error, message in [
        (0.0, ValueError, "`temperature` must be finite and greater than 0, got 0.0"),
        (-1, ValueError, "`temperature` must be finite and greater than 0, got -1"),
        (math.inf, ValueError, "`temperature` must be finite"),
        ("1", TypeError, "`temperature` must be a number"),
        (None, TypeError, "`temperature` must be a number"),
        (jnp.ones(4), ValueError, r"`temperature` must broadcast to the shape of the samples, \(11,\); got \(4,\)"),
        (jnp.ones((11, 1)), ValueError, r"`temperature` must broadcast to the shape of the samples, \(11,\)"),
        (jnp.ones(11, int), TypeError, "`temperature` must be a real floating array"),
    ]:
        with pytest.raises(error, match=message):
            softjax.linear_cross_entropy(hidden, kernel, cases.class_ids(9), temperature=t)
    # one per sample broadcasts: here one for each row of a batch of two axes
    rows = softjax.linear_statistics(
        hidden.reshape(11, 1, -1), kernel, cases.class_ids(9)[:, None], temperature=EACH[:, None]
    )
    flat = softjax.linear_statistics(hidden, kernel, cases.class_ids(9), temperature=EACH)
    np.testing.assert_array_equal(rows.entropy[:, 0], flat.entropy)
