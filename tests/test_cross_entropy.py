"""What the public function promises beyond values (test_law) and edges (test_edges): one compilation, small memory."""

import cases
import jax
import jax.numpy as jnp
import numpy as np

import softjax
from softjax._api.evaluate import logits_loss


def test_eager_calls_compile_once():
    x, y = cases.logits(5), cases.class_ids(5)
    logits_loss.clear_cache()
    for smoothing in (0.1, 0.2, 0.3):
        softjax.cross_entropy(x, y, label_smoothing=smoothing)
    assert logits_loss._cache_size() == 1


def test_the_result_does_not_depend_on_jit():
    x, y = cases.logits(129), cases.class_ids(129)
    np.testing.assert_array_equal(jax.jit(softjax.cross_entropy)(x, y), softjax.cross_entropy(x, y))


def test_a_gradient_step_needs_no_second_array_of_the_size_of_the_logits():
    x, y = jax.ShapeDtypeStruct((256, 4096), jnp.float32), jax.ShapeDtypeStruct((256,), jnp.int32)
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.1}):
        step = jax.jit(jax.value_and_grad(lambda x, y, o=options: softjax.cross_entropy(x, y, **o)))
        memory = step.lower(x, y).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.01 * x.size * 4


def test_the_name_shows_in_profiles():
    text = jax.jit(softjax.cross_entropy).lower(cases.logits(5), cases.class_ids(5)).as_text()
    assert "_cross_entropy" in text
