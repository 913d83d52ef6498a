"""Losses beyond the cross-entropy, each a function of the `Statistics` of its samples, in nats.

They are arithmetic on numbers that there is one of for each sample. So one line serves dense, fused and sharded logits:

>>> import jax.numpy as jnp, softjax
>>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
>>> print(jnp.mean(softjax.losses.focal(softjax.statistics(logits, labels))).round(4))
0.3518
>>> hidden, kernel = logits, jnp.eye(2)  # of logits that are never held
>>> print(softjax.linear_loss(softjax.losses.focal, hidden, kernel, labels, reduction="mean").round(4))
0.3518

All are exact for confident rows, where 1 − q_y is taken from h = −ln q_y and not from a rounded q_y. A sample whose
label is no class has loss NaN and gradient 0. Parameters may be traced scalars, for schedules and for derivatives by
them; the value of a traced one is not checked.
"""

import jax
import jax.numpy as jnp

from softjax._args import options
from softjax._args.types import Array, ArrayLike, Float
from softjax._rows import margins
from softjax._rows.statistics import StatisticsArgument, check_statistics

__all__ = ["additive_margin", "angular_margin", "focal", "generalized", "poly"]


def focal(s: StatisticsArgument, gamma: ArrayLike = 2.0) -> Float[Array, "*samples"]:
    """(1 − q_y)^γ h with h = −ln q_y: the cross-entropy, in which samples that are right already count less.

    For classes of very different frequency, as the background in object detection. γ = 0 is the cross-entropy itself.

    Args:
        s: `Statistics` of any shape.
        gamma: γ ≥ 0, a number or a traced scalar.

    Returns:
        One number for each sample, in nats, of the shape and dtype of `s`.

    Raises:
        TypeError: `s` is not `Statistics`, or `gamma` is not a real number.
        ValueError: `gamma` is negative, not finite or not a scalar.

    Source: Lin et al. 2017, arXiv:1708.02002.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0]))
    >>> print(softjax.losses.focal(s, 2.0).round(4))
    [0.0018 0.7019]
    """
    h = check_statistics(s).cross_entropy
    return _focal(h, options.nonnegative("gamma", gamma, h.dtype))


def poly(s: StatisticsArgument, epsilon: ArrayLike = 1.0) -> Float[Array, "*samples"]:
    """h + ε (1 − q_y) with h = −ln q_y: Poly-1, the cross-entropy with another weight 1 + ε of its leading term.

    h = Σ_k (1 − q_y)^k / k. A positive ε pulls harder on samples that are nearly right, a negative one less.

    Args:
        s: `Statistics` of any shape.
        epsilon: ε, a number or a traced scalar; from −1 on the loss is at least 0.

    Returns:
        One number for each sample, in nats, of the shape and dtype of `s`.

    Raises:
        TypeError: `s` is not `Statistics`, or `epsilon` is not a real number.
        ValueError: `epsilon` is not finite or not a scalar.

    Source: Leng et al. 2022, arXiv:2204.12511.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0]))
    >>> print(softjax.losses.poly(s, 1.0).round(4))
    [0.2461 2.0443]
    """
    h = check_statistics(s).cross_entropy
    epsilon = options.real("epsilon", epsilon, h.dtype)
    x = jnp.where(jnp.isnan(h), 0, h)
    # (1 + ε) m + (h − m) with m = 1 − q_y: two numbers that are at least 0 for ε ≥ −1, so that nothing cancels near −1
    return jnp.where(jnp.isnan(h), h, (1 + epsilon) * _one_minus_q(x) + _excess(x))


def generalized(s: StatisticsArgument, exponent: ArrayLike = 0.7) -> Float[Array, "*samples"]:
    """(1 − q_y^r) / r: between the cross-entropy (r → 0) and the absolute error 1 − q_y (r = 1).

    For noisy labels: it is bounded by 1/r, so that a wrong label cannot outweigh many right ones.

    Args:
        s: `Statistics` of any shape.
        exponent: r > 0, a number or a traced scalar.

    Returns:
        One number for each sample, in nats, of the shape and dtype of `s`.

    Raises:
        TypeError: `s` is not `Statistics`, or `exponent` is not a real number.
        ValueError: `exponent` is not positive, not finite or not a scalar.

    Source: Zhang & Sabuncu 2018, arXiv:1805.07836.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0]))
    >>> print(softjax.losses.generalized(s, 0.7).round(4))
    [0.1215 0.8589]
    """
    h = check_statistics(s).cross_entropy
    return _generalized(h, options.positive("exponent", exponent, h.dtype))


def additive_margin(s: StatisticsArgument, margin: ArrayLike, scale: ArrayLike) -> Float[Array, "*samples"]:
    """The cross-entropy of logits scale · cos θ whose label has scale · (cos θ − margin): CosFace.

    For embeddings that are to be told apart by their angle, as in the recognition of faces and speakers: features and
    class vectors have length 1, so that the logits are scale · cos θ already. The softmax is that of the shifted
    logits, h' = ln(1 + (1 − q_y)/q_y · exp(scale · margin)), without their being computed anew.

    Args:
        s: `Statistics` of any shape, of class ids.
        margin: ≥ 0, a number or a traced scalar; 0.35 in the paper.
        scale: > 0, a number or a traced scalar, of the logits; 64 in the paper. By derivatives with respect to it the
            logits stay as they are.

    Returns:
        One number for each sample, in nats, of the shape and dtype of `s`.

    Raises:
        TypeError: `s` is not `Statistics`, or a parameter is not a real number.
        ValueError: a parameter is out of range or not a scalar.

    Source: Wang et al. 2018, arXiv:1801.09414.

    >>> import jax.numpy as jnp, softjax
    >>> cosines, labels, scale = jnp.array([[0.9, 0.4], [0.3, 0.2]]), jnp.array([0, 0]), 8.0
    >>> s = softjax.statistics(scale * cosines, labels)
    >>> print(softjax.losses.additive_margin(s, 0.35, scale).round(4))
    [0.2633 2.1269]
    """
    h = check_statistics(s).cross_entropy
    margin, scale = _margin_and_scale(margin, scale, h.dtype)
    return margins.lower_label(h, scale * margin)


def angular_margin(s: StatisticsArgument, margin: ArrayLike, scale: ArrayLike) -> Float[Array, "*samples"]:
    """The cross-entropy of logits scale · cos θ whose label has scale · cos(min(θ + margin, π)): ArcFace.

    As `additive_margin`, with the margin in radians of the angle. cos θ is the label's logit / scale, clipped to
    [−1, 1]; its slope, in which 1 / sin θ stands, is that of max(sin θ, 1e-3).

    Args:
        s: `Statistics` of any shape, of class ids.
        margin: ≥ 0, in radians, a number or a traced scalar; 0.5 in the paper.
        scale: > 0, a number or a traced scalar, of the logits; 64 in the paper. By derivatives with respect to it the
            logits stay as they are.

    Returns:
        One number for each sample, in nats, of the shape and dtype of `s`.

    Raises:
        TypeError: `s` is not `Statistics`, or a parameter is not a real number.
        ValueError: a parameter is out of range or not a scalar.

    Source: Deng et al. 2019, arXiv:1801.07698.

    >>> import jax.numpy as jnp, softjax
    >>> cosines, labels, scale = jnp.array([[0.9, 0.4], [0.3, 0.2]]), jnp.array([0, 0]), 8.0
    >>> s = softjax.statistics(scale * cosines, labels)
    >>> print(softjax.losses.angular_margin(s, 0.5, scale).round(4))
    [0.2113 3.1944]
    """
    h, a = check_statistics(s).cross_entropy, s.label_logit
    margin, scale = _margin_and_scale(margin, scale, h.dtype)
    return margins.lower_label(h, margins.angular_drop(jnp.where(jnp.isfinite(a), a, 0), margin, scale))


def _one_minus_q(h):
    """1 − q = 1 − e^−h"""
    return -jnp.expm1(-h)


def _bounded(h):
    """h where e^−h is not 0, in place of NaN too: of a label that is no class any slope will do, for h's own is 0."""
    return jnp.where(h < 1e4, h, 1e4)


@jax.custom_jvp
def _focal(h, gamma):
    """(1 − e^−h)^γ h"""
    return _power_of_one_minus_q(h, gamma)[0] * h


@_focal.defjvp
def _focal_jvp(primals, tangents):
    # with m = 1 − e^−h: ∂/∂h m^γ h = m^γ (1 + γ h e^−h / m)    ∂/∂γ m^γ h = m^γ h ln m
    (h, gamma), (dh, dgamma) = primals, tangents
    x = _bounded(h)
    power, log_m = _power_of_one_minus_q(x, gamma)
    return _focal(h, gamma), power * (1 + gamma * (x * jnp.exp(-x - log_m))) * dh + power * (x * log_m) * dgamma


def _power_of_one_minus_q(h, gamma):
    """(1 − e^−h)^γ, in which 0^0 is 1, and ln(1 − e^−h), finite at h = 0 too, as are their derivatives."""
    least = jnp.finfo(h.dtype).tiny
    log_m = jax.nn.log1mexp(jnp.where(h > least, h, least))
    return jnp.where((h <= 0) & (gamma > 0), 0, jnp.exp(gamma * log_m)), log_m


@jax.custom_jvp
def _excess(h):
    """h − (1 − e^−h) = h²/2 − h³/6 + …"""
    series = jnp.ones_like(h)
    for k in range(16, 2, -1):
        series = 1 - h / k * series
    return jnp.where(h < 0.5, h * h / 2 * series, h + jnp.expm1(-h))


_excess.defjvps(lambda dh, _, h: _one_minus_q(h) * dh)


@jax.custom_jvp
def _generalized(h, r):
    """(1 − e^−rh) / r, which is h where r h is so small that it might underflow."""
    return jnp.where(r * h < 1e-20, h, _one_minus_q(r * h) / r)


@_generalized.defjvp
def _generalized_jvp(primals, tangents):
    # with u = r h: ∂/∂h = e^−u    ∂/∂r = (u e^−u − (1 − e^−u)) / r², at small u [(u − m) − u m] / r² with m = 1 − e^−u
    (h, r), (dh, dr) = primals, tangents
    u = _bounded(r * jnp.where(h < 1e30, h, 1e30))
    q, m = jnp.exp(-u), _one_minus_q(u)
    by_r = jnp.where(u < 1, _excess(u) - u * m, u * q - m) / r / r
    return _generalized(h, r), q * dh + by_r * dr


def _margin_and_scale(margin, scale, dtype):
    return options.nonnegative("margin", margin, dtype), options.positive("scale", scale, dtype)
