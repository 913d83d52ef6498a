"""The losses of logits run as one jitted program: an eager call compiles once and equals a jitted call."""

import cases
import jax
import numpy as np

import softjax
from softjax._api import evaluate


def test_eager_calls_compile_once():
    x, y = cases.logits(5), cases.class_ids(5)
    evaluate._logits_loss.clear_cache()
    for smoothing in (0.1, 0.2, 0.3):
        softjax.cross_entropy(x, y, label_smoothing=smoothing)
    assert evaluate._logits_loss._cache_size() == 1


def test_the_result_does_not_depend_on_jit():
    x, y = cases.logits(129), cases.class_ids(129)
    np.testing.assert_array_equal(jax.jit(softjax.cross_entropy)(x, y), softjax.cross_entropy(x, y))


def test_the_program_is_named_after_the_function():
    text = jax.jit(softjax.cross_entropy).lower(cases.logits(5), cases.class_ids(5)).as_text()
    assert "_cross_entropy" in text
