"""How far two float32 computations of the same numbers may differ."""

import jax
import numpy as np

EPS = 2.0**-23


def near(actual, expected, terms):
    """Each array of a tree is the other, to the rounding of sums of `terms` float32 numbers in another order.

    Two such sums lie at most 2 · terms · eps/2 · Σ |terms| apart. What cancels within a sum is lost to its result,
    which may be near 0. So an error is measured against the largest number of its array, and not against its own entry.
    """
    for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        theirs = np.asarray(theirs, np.float64)
        size = np.abs(theirs).max(initial=0.0, where=np.isfinite(theirs))
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=0, atol=terms * EPS * size)
