"""Losses beyond the cross-entropy: functions of `Statistics`, one value per sample, in nats.

Each loss works on dense, fused and sharded logits alike, because it reads only the row statistics.

>>> import jax.numpy as jnp, softjax
>>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
>>> print(jnp.mean(softjax.losses.focal(softjax.statistics(logits, labels))).round(4))
0.3518

`linear_loss` fuses the same loss with the last linear layer. The logits are never materialised.

>>> hidden, kernel = logits, jnp.eye(2)
>>> print(softjax.linear_loss(softjax.losses.focal, hidden, kernel, labels, reduction="mean").round(4))
0.3518

All losses are exact for confident rows: they compute 1 − q_y from h = −ln q_y, not from a rounded q_y. A class id out
of range has loss NaN and zero gradient. Parameters may be traced scalars, for schedules and for derivatives with
respect to them. The value of a traced parameter is not checked.
"""

import jax
import jax.numpy as jnp

from softjax._args import options
from softjax._args.types import Array, ArrayLike, Float
from softjax._rows import margins
from softjax._rows.statistics import StatisticsArgument, check_statistics

__all__ = ["additive_margin", "angular_margin", "focal", "generalized", "poly"]


def focal(s: StatisticsArgument, gamma: ArrayLike = 2.0) -> Float[Array, "*samples"]:
    """The focal loss, (1 − q_y)^γ h with h = −ln q_y.

    It gives less weight to samples that are already classified well. Use it for classes of very different frequency,
    such as the background in object detection. γ = 0 is the cross-entropy. For a distribution, q_y stands for e^−h, the
    geometric mean of q with weights p.

    Args:
        s: `Statistics` of any shape, from `statistics` or `linear_statistics`, or of one sample in `linear_loss`.
        gamma: γ ≥ 0, a number or a traced scalar.

    Returns:
        One loss per sample, in nats, of the shape of `s` and the dtype of `s.cross_entropy`.

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
    """The Poly-1 loss, h + ε (1 − q_y) with h = −ln q_y. Of a distribution it is h + ε Σ_j p_j (1 − q_j).

    The cross-entropy is the series h = Σ_k (1 − q_y)^k / k. Poly-1 changes the weight of its first term to 1 + ε. A
    positive ε strengthens the gradient of samples that are nearly right. A negative ε weakens it.

    If |1 + ε| < 1/4, a one-hot distribution with h < 1/16 counts as a class id, and the derivative by p is inexact.

    Args:
        s: as in `focal`.
        epsilon: ε, a number or a traced scalar. For ε ≥ −1 the loss is at least 0.

    Returns:
        One loss per sample, in nats, of the shape of `s` and the dtype of `s.cross_entropy`.

    Raises:
        TypeError: `s` is not `Statistics`, or `epsilon` is not a real number.
        ValueError: `epsilon` is not finite or not a scalar.

    Source: Leng et al. 2022, arXiv:2204.12511.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0]))
    >>> print(softjax.losses.poly(s, 1.0).round(4))
    [0.2461 2.0443]
    """
    h, miss = check_statistics(s).cross_entropy, s.label_miss
    return _poly(h, miss, options.real("epsilon", epsilon, h.dtype))


def generalized(s: StatisticsArgument, exponent: ArrayLike = 0.7) -> Float[Array, "*samples"]:
    """The generalized cross-entropy, (1 − q_y^r) / r.

    It lies between the cross-entropy (r → 0) and the absolute error 1 − q_y (r = 1). Use it for noisy labels: it is at
    most 1/r, so one wrong label cannot outweigh many right ones. For a distribution, q_y is as in `focal`.

    Args:
        s: as in `focal`.
        exponent: r > 0, a number or a traced scalar.

    Returns:
        One loss per sample, in nats, of the shape of `s` and the dtype of `s.cross_entropy`.

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
    """The CosFace loss: the cross-entropy after the label's cosine is lowered from cos θ to cos θ − margin.

        h' = ln(1 + (1 − q_y) / q_y · exp(scale · margin))

    Use it for embeddings that are compared by angle, as in face and speaker recognition. Embeddings and class vectors
    must have length 1, and the logits must be scale · cos θ. The loss follows from q_y; the softmax is not recomputed.
    It is defined for class ids. For a distribution, q_y is as in `focal`.

    Args:
        s: as in `focal`, of class ids.
        margin: at least 0, a number or a traced scalar; 0.35 in the paper.
        scale: the factor of the logits, > 0, a number or a traced scalar; 64 in the paper. A derivative with respect to
            it treats the logits as constant.

    Returns:
        One loss per sample, in nats, of the shape of `s` and the dtype of `s.cross_entropy`.

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
    margin, scale = _check_margin_and_scale(margin, scale, h.dtype)
    return margins.lower_label(h, scale * margin)


def angular_margin(s: StatisticsArgument, margin: ArrayLike, scale: ArrayLike) -> Float[Array, "*samples"]:
    """The ArcFace loss: the cross-entropy after the label's cosine is lowered from cos θ to cos(min(θ + margin, π)).

    Use it as `additive_margin`, with the margin as an angle. cos θ is the label's logit / scale, clipped to [−1, 1].
    The derivative contains 1 / sin θ. It is computed as 1 / max(sin θ, 1e-3), so it stays finite. Where cos θ is
    clipped, the derivative is that at ±1, so a cosine that rounding lifts above 1 keeps its slope. For a distribution,
    q_y is as in `focal`, and the label's logit is Σ_j p_j x_j.

    Args:
        s: as in `focal`, of class ids.
        margin: at least 0, in radians, a number or a traced scalar; 0.5 in the paper.
        scale: as in `additive_margin`; 64 in the paper.

    Returns:
        One loss per sample, in nats, of the shape of `s` and the dtype of `s.cross_entropy`.

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
    margin, scale = _check_margin_and_scale(margin, scale, h.dtype)
    return margins.lower_label(h, margins.angular_drop(jnp.where(jnp.isfinite(a), a, 0), margin, scale))


def _one_minus_q(h):
    """1 − q_y = 1 − e^−h"""
    return -jnp.expm1(-h)


def _clip_large(h):
    """min(h, 1e4), which keeps derivatives finite: e^−1e4 is 0.

    NaN, from a class id out of range, becomes 1e4, too. Any finite value will do there, because ∂h/∂x is 0.
    """
    return jnp.where(h < 1e4, h, 1e4)


@jax.custom_jvp
def _focal(h, gamma):
    """(1 − e^−h)^γ h"""
    return _power_of_one_minus_q(h, gamma)[0] * h


@_focal.defjvp
def _focal_jvp(primals, tangents):
    # with m = 1 − e^−h: ∂/∂h m^γ h = m^γ (1 + γ h e^−h / m)    ∂/∂γ m^γ h = m^γ h ln m
    (h, gamma), (dh, dgamma) = primals, tangents
    x = _clip_large(h)
    power, log_m = _power_of_one_minus_q(x, gamma)
    return _focal(h, gamma), power * (1 + gamma * (x * jnp.exp(-x - log_m))) * dh + power * (x * log_m) * dgamma


def _power_of_one_minus_q(h, gamma):
    """(1 − e^−h)^γ, with 0^0 = 1, and ln(1 − e^−h). Both are finite at h = 0, and so are their derivatives."""
    tiny = jnp.finfo(h.dtype).tiny
    log_m = jax.nn.log1mexp(jnp.where(h > tiny, h, tiny))
    return jnp.where((h <= 0) & (gamma > 0), 0, jnp.exp(gamma * log_m)), log_m


@jax.custom_jvp
def _poly(h, miss, epsilon):
    """h + ε miss"""
    # (1 + ε) m + (h − m) + ε (miss − m) with m = 1 − e^−h. For a class id, miss = m, and the last term is rounding
    # error. Then both other terms are at least 0 for ε ≥ −1, so nothing cancels near ε = −1.
    x, is_class_id = _is_class_id(h, miss)
    m = _one_minus_q(x)
    difference = jnp.where(is_class_id, 0, miss - m)
    return jnp.where(jnp.isnan(h), h, (1 + epsilon) * m + _higher_order_terms(x) + epsilon * difference)


@_poly.defjvp
def _poly_jvp(primals, tangents):
    # dh + ε dmiss. Near ε = −1 these cancel for confident class ids, where dmiss = e^−h dh.
    (h, miss, epsilon), (dh, dmiss, depsilon) = primals, tangents
    x, is_class_id = _is_class_id(h, miss)
    # Only there: one-hot labels have miss = 1 − e^−h, too, but another derivative by the labels.
    cancels = is_class_id & (x < 1 / 16) & (jnp.abs(1 + epsilon) < 0.25)
    by_h = jnp.where(cancels, (1 + epsilon) * jnp.exp(-x) + _one_minus_q(x), 1)
    by_miss, by_epsilon = jnp.where(cancels, 0, epsilon), jnp.where(jnp.isnan(h), 0, miss)
    return _poly(h, miss, epsilon), by_h * dh + by_miss * dmiss + by_epsilon * depsilon


def _is_class_id(h, miss):
    """h, 0 for NaN, and whether miss = 1 − e^−h up to rounding."""
    x = jnp.where(jnp.isnan(h), 0, h)
    m = _one_minus_q(x)
    return x, jnp.abs(miss - m) <= 8 * jnp.finfo(h.dtype).eps * m


@jax.custom_jvp
def _higher_order_terms(h):
    """h − (1 − e^−h) = h²/2 − h³/6 + …: the terms of h = Σ_k (1 − q_y)^k / k after the first."""
    series = jnp.ones_like(h)
    for k in range(16, 2, -1):
        series = 1 - h / k * series
    return jnp.where(h < 0.5, h * h / 2 * series, h + jnp.expm1(-h))


_higher_order_terms.defjvps(lambda dh, _, h: _one_minus_q(h) * dh)


@jax.custom_jvp
def _generalized(h, r):
    """(1 − e^−rh) / r, or h where r h is so small that it may underflow."""
    return jnp.where(r * h < 1e-20, h, _one_minus_q(r * h) / r)


@_generalized.defjvp
def _generalized_jvp(primals, tangents):
    # with u = r h: ∂/∂h = e^−u    ∂/∂r = (u e^−u − (1 − e^−u)) / r², at small u [(u − m) − u m] / r² with m = 1 − e^−u
    (h, r), (dh, dr) = primals, tangents
    u = _clip_large(r * jnp.where(h < 1e30, h, 1e30))
    q, m = jnp.exp(-u), _one_minus_q(u)
    d_exponent = jnp.where(u < 1, _higher_order_terms(u) - u * m, u * q - m) / r / r
    return _generalized(h, r), q * dh + d_exponent * dr


def _check_margin_and_scale(margin, scale, dtype):
    return options.nonnegative("margin", margin, dtype), options.positive("scale", scale, dtype)
