"""How far two float32 computations of the same values may differ."""

import jax
import numpy as np

EPS = 2.0**-23


def near(actual, expected, terms):
    """Asserts that two trees are equal up to the rounding of sums of `terms` float32 values in another order.

    Two such sums differ by at most 2 · terms · eps/2 · Σ |terms|. Terms may cancel, so that the sum is near 0 while
    its error is not. So an error is measured relative to the largest entry of the array.
    """
    for found, wanted in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        wanted = np.asarray(wanted, np.float64)
        largest = np.abs(wanted).max(initial=0.0, where=np.isfinite(wanted))
        np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=0, atol=terms * EPS * largest)
