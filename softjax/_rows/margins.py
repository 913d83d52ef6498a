"""Margin losses: the label's logit lowered by a margin, computed from the cross-entropy alone."""

import math

import jax
import jax.numpy as jnp


@jax.custom_jvp
def lower_label(h, drop):
    """h' = ln(1 + (e^h − 1) e^drop): the cross-entropy h after the label's logit is lowered by `drop`."""
    return jax.nn.softplus(h + jax.nn.log1mexp(h) + drop)


@lower_label.defjvp
def _lower_label_jvp(primals, tangents):
    # ∂h'/∂h = e^(h + drop − h') = 1 / (1 − e^−h + e^−(h + drop)), in which nothing cancels    ∂h'/∂drop = 1 − e^−h'
    (h, drop), (dh, ddrop) = primals, tangents
    # h is NaN for an id out of range. Any finite value will do there, because ∂h/∂x is 0.
    x = jnp.where(jnp.isnan(h), 0, h)
    # At h = 0 the derivative e^drop is multiplied by ∂h/∂x = 0. A small number instead of 0 keeps it finite.
    one_minus_q = jnp.where(x > jnp.finfo(x.dtype).tiny, -jnp.expm1(-x), math.exp(-60))
    # A power of e, because its own derivative is multiplied by ∂h/∂x before it can overflow.
    by_h, by_drop = jnp.exp(-jnp.log(one_minus_q + jnp.exp(-(x + drop)))), -jnp.expm1(-lower_label(x, drop))
    return lower_label(h, drop), by_h * dh + by_drop * ddrop


def angular_drop(a, margin, scale):
    """a − scale · cos(min(θ + margin, π)) with cos θ = a / scale, clipped to [−1, 1]."""
    b = _clip(a, scale)
    # cos θ − cos(θ + margin) = 2 sin²(margin / 2) cos θ + sin(margin) sin θ keeps the digits of a small margin
    difference = 2 * jnp.sin(margin / 2) ** 2 * b + jnp.sin(margin) * _scaled_sine(b, scale)
    beyond_pi = (margin >= math.pi) | (b < -scale * jnp.cos(margin))
    return (a - b) + jnp.where(beyond_pi, b + scale, difference)


@jax.custom_jvp
def _clip(a, scale):
    """a, clipped to [−scale, scale]."""
    return jnp.where(jnp.abs(a) <= scale, a, jnp.sign(a) * scale)


@_clip.defjvp
def _clip_jvp(primals, tangents):
    # The derivative of a itself: rounding may lift a cosine above 1, where the slope of the loss should not drop to 0.
    return _clip(*primals), tangents[0]


@jax.custom_jvp
def _scaled_sine(b, scale):
    """scale · sin θ = √(scale² − b²)"""
    return jnp.sqrt(scale - b) * jnp.sqrt(scale + b)


@_scaled_sine.defjvp
def _scaled_sine_jvp(primals, tangents):
    # ∂√(s² − b²) = (s ds − b db) / √(s² − b²), which has no bound at θ = 0 and π
    (b, scale), (db, dscale) = primals, tangents
    sine = _scaled_sine(b, scale)
    return sine, (scale * dscale - b * db) / jnp.maximum(sine, 1e-3 * scale)
