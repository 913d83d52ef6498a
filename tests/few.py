"""Sparse labels with repeated ids and padding, and the dense distribution that they stand for."""

import jax.numpy as jnp
import numpy as np

import softjax


def sparse(classes, k, samples=11, padding=True, seed=0, mass=1.0):
    """`SparseLabels` with repeated ids. In some rows the last id is padding: mass 0 and no class."""
    rng = np.random.default_rng([seed, 7, classes, k])
    ids, p = rng.integers(0, classes, (samples, k)), rng.dirichlet(np.ones(max(k, 1)), samples)[:, :k] * mass
    if padding and k > 1:
        ids[::3, -1], p[::3, -1] = rng.choice([-1, -100, classes, classes + 7]), 0
        ids[1::3, 1] = ids[1::3, 0]
    return softjax.SparseLabels(jnp.asarray(ids, jnp.int32), jnp.asarray(p, jnp.float32))


def dense(labels, classes):
    """The same distribution as a float64 array over all classes."""
    ids, p = np.asarray(labels.ids), np.asarray(labels.probabilities, np.float64)
    distribution = np.zeros((*ids.shape[:-1], classes))
    for place, j in np.ndenumerate(ids):
        if 0 <= j < classes:
            distribution[*place[:-1], j] += p[place]
    return distribution


def entries_at(array, ids):
    """The entries at these ids of an array over all classes. An id that is no class gives 0."""
    ids = np.asarray(ids)
    inside = (ids >= 0) & (ids < array.shape[-1])
    return np.where(inside, np.take_along_axis(array, np.where(inside, ids, 0), -1), 0)
