"""The statistics keep no logits between the passes, and what is not finite in a row of weight 0 stays out."""

import cases
import jax
import jax.numpy as jnp
import numpy as np

import softjax
from softjax._linear_rows import clean


def test_only_arguments_and_a_few_numbers_are_kept():
    hidden, kernel, bias = cases.layer(2049)
    labels = cases.class_ids(2049)

    def rows(h, k, b):
        return softjax.linear_cross_entropy(h, k, labels, bias=b, reduction="none", block_size=4)

    _, pull = jax.vjp(rows, hidden, kernel, bias)
    kept = [leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size")]
    arguments = sorted(a.size for a in (hidden, kernel, bias))[::-1]
    filled = hidden.size // cases.SAMPLES * 12  # the last of the blocks of 4 is filled up
    assert sum(kept) <= sum(arguments) + filled + 8 * 12


def test_nor_under_vmap():
    examples, (hidden, kernel, bias) = 3, cases.layer(2049)
    labels, many = cases.class_ids(2049), jnp.stack([hidden] * 3)

    def rows(h):
        return softjax.linear_cross_entropy(h, kernel, labels, bias=bias, reduction="none")

    _, pull = jax.vjp(jax.vmap(rows), many)
    kept = [leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size")]
    assert max(kept) < examples * cases.SAMPLES * 2049


def test_clean():
    hidden = jnp.array([[1.0, jnp.nan], [2.0, 3.0], [jnp.inf, 0.0]])
    weighted = jnp.array([[False], [False], [True]])
    np.testing.assert_array_equal(clean(hidden, weighted), [[0, 0], [2, 3], [jnp.inf, 0]])
    assert clean(hidden, None) is hidden
