"""The temporary memory of `cross_entropy`. Its values are in test_law.py, its edge cases in test_edges.py."""

import jax
import jax.numpy as jnp

import softjax


def test_value_and_gradient_need_no_temporary_array_of_the_logits_size():
    x, y = jax.ShapeDtypeStruct((256, 4096), jnp.float32), jax.ShapeDtypeStruct((256,), jnp.int32)
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.1}):
        step = jax.jit(jax.value_and_grad(lambda x, y, o=options: softjax.cross_entropy(x, y, **o)))
        memory = step.lower(x, y).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.01 * x.size * 4
