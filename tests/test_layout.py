"""A kernel that the program makes by a transpose is recognised."""

import jax
import jax.numpy as jnp

from softjax._xla import layout


def test_is_transpose_sees_through_derivatives_and_casts():
    answers = []

    def ask(matrix):
        answers.append(layout.is_transpose(matrix))
        return matrix.sum()

    embedding = jnp.ones((3, 2))
    jax.jit(lambda e: ask(e.T))(embedding)
    jax.jit(jax.grad(lambda e: ask(e.T.astype(jnp.bfloat16).astype(jnp.float32))))(embedding)
    jax.jit(jax.grad(lambda e: ask(jnp.swapaxes(e, 0, 1))))(embedding)
    assert all(answers)
    jax.jit(lambda e: ask(e))(embedding)
    jax.jit(lambda e: ask(e + 1))(embedding)
    ask(embedding.T)
    assert answers[3:] == [False, False, False]
