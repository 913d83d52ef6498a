"""`is_transpose` recognises a kernel that the program makes by a transpose, such as a tied embedding."""

import jax
import jax.numpy as jnp

from softjax._xla import layout


def test_is_transpose_sees_through_derivatives_and_casts():
    answers = []

    def record(matrix):
        answers.append(layout.is_transpose(matrix))
        return matrix.sum()

    embedding = jnp.ones((3, 2))
    jax.jit(lambda e: record(e.T))(embedding)
    jax.jit(jax.grad(lambda e: record(e.T.astype(jnp.bfloat16).astype(jnp.float32))))(embedding)
    jax.jit(jax.grad(lambda e: record(jnp.swapaxes(e, 0, 1))))(embedding)
    assert all(answers)
    jax.jit(lambda e: record(e))(embedding)
    jax.jit(lambda e: record(e + 1))(embedding)
    record(embedding.T)
    assert answers[3:] == [False, False, False]
