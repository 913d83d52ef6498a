"""A few classes per sample, with repeated ids and padding, and the distribution that they stand for."""

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
    every = np.zeros((*ids.shape[:-1], classes))
    for place, j in np.ndenumerate(ids):
        if 0 <= j < classes:
            every[*place[:-1], j] += p[place]
    return every


def at(every, ids):
    """The entries of an array over all classes at these ids, 0 for an id that is no class."""
    ids = np.asarray(ids)
    inside = (ids >= 0) & (ids < every.shape[-1])
    return np.where(inside, np.take_along_axis(every, np.where(inside, ids, 0), -1), 0)
