"""The numbers of rows keep no logits between the passes; what is not read costs nothing."""

import cases
import jax
import jax.numpy as jnp
import numpy as np

import softjax


def test_only_arguments_and_a_few_numbers_are_kept():
    hidden, kernel, bias = cases.layer(2049)
    labels = cases.class_ids(2049)

    def rows(h, k, b):
        return softjax.linear_cross_entropy(h, k, labels, bias=b, reduction="none", block_size=4)

    _, pull = jax.vjp(rows, hidden, kernel, bias)
    kept = [leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size")]
    arguments = sorted(a.size for a in (hidden, kernel, bias))[::-1]
    filled = hidden.size // cases.SAMPLES * 12  # the last of the blocks of 4 is filled up
    assert sum(kept) <= sum(arguments) + filled + 14 * 12


def test_nor_under_vmap():
    examples, (hidden, kernel, bias) = 3, cases.layer(2049)
    labels, many = cases.class_ids(2049), jnp.stack([hidden] * 3)

    def rows(h):
        return softjax.linear_cross_entropy(h, kernel, labels, bias=bias, reduction="none")

    _, pull = jax.vjp(jax.vmap(rows), many)
    kept = [leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size")]
    assert max(kept) < examples * cases.SAMPLES * 2049


def test_blocks_that_weigh_nothing_may_hold_anything():
    """Beside one that does, in one stretch of rows, and at logits whose exponentials overflow."""
    hidden, kernel, _ = cases.layer(9, samples=12)
    labels, w = cases.class_ids(9, 12), jnp.ones(12).at[:4].set(0)

    def total(h, k):
        return softjax.linear_cross_entropy(h, k, labels, weights=w, reduction="none", block_size=2).sum()

    expected = jax.grad(total, (0, 1))(hidden, kernel)
    for value in (jnp.nan, jnp.inf, 1e6, 1e38):
        for ours, right in zip(jax.grad(total, (0, 1))(hidden.at[:4].set(value), kernel), expected, strict=True):
            np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-6)
