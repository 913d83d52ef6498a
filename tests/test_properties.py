"""Properties of all inputs, tested by hypothesis."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import softjax

SAMPLES, CLASSES = 4, 6  # one shape, compiled once
ELEMENTS = st.floats(-50, 50, width=32)
LOGITS = hnp.arrays(np.float32, (SAMPLES, CLASSES), elements=ELEMENTS).map(jnp.asarray)
LABELS = hnp.arrays(np.int32, SAMPLES, elements=st.integers(0, CLASSES - 1)).map(jnp.asarray)
WEIGHTS = hnp.arrays(np.float32, SAMPLES, elements=st.floats(0, 4, width=16)).map(jnp.asarray)
MASKS = hnp.arrays(np.bool_, CLASSES).map(lambda m: m | (np.arange(CLASSES) == 0))
examples = settings(max_examples=60, deadline=None)


def losses(logits, labels, **options):
    return softjax.cross_entropy(logits, labels, reduction="none", **options)


def close(actual, expected, scale=1.0):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5 * scale)


@examples
@given(LOGITS, LABELS, st.integers(-4096, 4096))
def test_shift_invariance(x, y, shift):
    x = jnp.round(x * 64) / 64  # so that adding the shift is exact
    np.testing.assert_array_equal(losses(x + shift, y), losses(x, y))
    np.testing.assert_array_equal(softjax.softmax(x + shift), softjax.softmax(x))


@examples
@given(LOGITS, LABELS, st.permutations(range(CLASSES)))
def test_permutation_of_the_classes(x, y, order):
    order = jnp.array(order)
    close(losses(x[:, order], jnp.argsort(order)[y]), losses(x, y))


@examples
@given(LOGITS, LABELS)
def test_rows_sum_to_1_and_gradient_rows_to_0(x, y):
    np.testing.assert_allclose(np.asarray(softjax.softmax(x), np.float64).sum(1), 1, atol=4 * 2.0**-23)
    gradient = jax.grad(lambda x: losses(x, y, label_smoothing=0.1).sum())(x)
    np.testing.assert_allclose(np.asarray(gradient, np.float64).sum(1), 0, atol=1e-6)


@examples
@given(LOGITS, LABELS)
def test_the_base_only_scales(x, y):
    nats = losses(x, y, base=math.e, label_smoothing=0.1)
    for base in (2.0, 10.0):
        close(losses(x, y, base=base, label_smoothing=0.1) * math.log(base), nats)


@examples
@given(LOGITS, MASKS)
def test_masked_classes_act_as_deleted(x, mask):
    y = jnp.zeros(SAMPLES, jnp.int32)
    options = {"label_smoothing": 0.1, "z_loss": 0.01}
    close(losses(x, y, where=jnp.asarray(mask), **options), losses(x[:, mask], y, **options), scale=10)
    gradient = jax.grad(lambda x: losses(x, y, where=jnp.asarray(mask), **options).sum())(x)
    assert not gradient[:, ~mask].any()


@examples
@given(LOGITS, LABELS, WEIGHTS)
def test_the_reductions_agree(x, y, w):
    total = losses(x, y, weights=w).sum()
    close(softjax.cross_entropy(x, y, weights=w, reduction="sum"), total)
    mean = softjax.cross_entropy(x, y, weights=w)
    close(mean, total / w.sum() if w.sum() > 0 else 0.0)


@examples
@given(LOGITS, LABELS)
def test_the_loss_from_the_statistics(x, y):
    s = softjax.statistics(x, y)
    close(s.log_normalizer - s.label_logit, losses(x, y, base=math.e))
    q = softjax.softmax(x)
    close(s.entropy, softjax.distribution_cross_entropy(q, q, base=math.e))
