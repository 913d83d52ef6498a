"""Losses and divergences beyond the cross-entropy of logits."""

from functools import partial

import jax
import jax.numpy as jnp

from softjax import _checks as checks
from softjax import _options as options
from softjax._cpu import wide
from softjax._every_mode import in_every_mode
from softjax._reduce import from_nats
from softjax._types import Array, ArrayLike, Axis, Number


def distribution_cross_entropy(p: ArrayLike, q: ArrayLike, *, base: Number = 10.0, axis: Axis = -1) -> Array:
    """H(p, q) = −Σ_i p_i log_b q_i of two probability distributions, with 0 · log 0 = 0.

    For logits use `cross_entropy`, which never takes the logarithm of a rounded probability.

    Args:
        p: the "correct" distribution, real floating, `[*samples, classes]`.
        q: the "wrong" distribution, real floating, of the shape of `p`.
        base: of the logarithm, > 0 and ≠ 1: 10 gives hartleys, 2 bits, `math.e` nats.
        axis: the class axis of both.

    Returns:
        One number for each sample, `[*samples]`, float32, or float64 if either is float64; +inf where p_i > 0 and
        q_i = 0. Its gradient is −p_i / (q_i ln b) with respect to q_i, 0 where p_i is 0, and −log_b q_i with respect
        to p_i.

    Raises:
        TypeError: `p` or `q` is not real floating, or `base` is not a number.
        ValueError: the shapes differ, `axis` is not an axis, or `base` is out of range.

    Source: H(p, q) and its derivative in the DeepLibs softmax document.

    >>> import jax.numpy as jnp, softjax
    >>> p, q = jnp.array([0.0, 0.0, 0.0, 0.0, 1.0]), jnp.array([0.0, 0.0, 0.0059, 0.1185, 0.8756])
    >>> print(softjax.distribution_cross_entropy(p, q).round(4))
    0.0577
    """
    p, q = checks.floating("p", p), checks.floating("q", q)
    if p.shape != q.shape:
        raise ValueError(f"`p` and `q` must have one shape, got {p.shape} and {q.shape}.")
    return _distribution_cross_entropy((checks.class_axis("p", p, axis), options.base(base)), p, q)


@partial(jax.jit, static_argnums=0)
def _distribution_cross_entropy(static, p, q):
    axis, base = static
    return from_nats(_nats(axis, p, q), base)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(axis, p, q):
    return _forward(axis, p, q)[0]


def _forward(axis, p, q):
    ps, qs = (a.astype(wide(p, q)) for a in (p, q))
    massive = ps != 0
    return -jnp.sum(ps * jnp.log(jnp.where(massive, qs, 1)), axis), (p, q)


def _backward(axis, residuals, g):
    p, q = residuals
    ps, qs, g = p.astype(g.dtype), q.astype(g.dtype), jnp.expand_dims(g, axis)
    massive = ps != 0
    # ∂H/∂p_i = −ln q_i    ∂H/∂q_i = −p_i / q_i, and 0 where p_i is 0
    dp = -jnp.log(qs) * g
    dq = -jnp.where(massive, ps / jnp.where(massive, qs, 1), 0) * g
    return dp.astype(p.dtype), dq.astype(q.dtype)


_cross_entropy.defvjp(_forward, _backward)
_nats = in_every_mode(_cross_entropy)
