"""A label's logit lowered by a margin, from the cross-entropy that is there already."""

import math

import jax
import jax.numpy as jnp


@jax.custom_jvp
def lower_label(h, drop):
    """h' = ln(1 + (e^h − 1) e^drop): the cross-entropy h once the label's logit is lower by this much."""
    return jax.nn.softplus(h + jax.nn.log1mexp(h) + drop)


@lower_label.defjvp
def _lower_label_jvp(primals, tangents):
    # ∂h'/∂h = e^(h + drop − h') = 1 / (1 − e^−h + e^−(h + drop)), in which nothing cancels    ∂h'/∂drop = 1 − e^−h'
    (h, drop), (dh, ddrop) = primals, tangents
    # A label that is no class has h = NaN and slope 0 by x, and any number will do here.
    x = jnp.where(jnp.isnan(h), 0, h)
    # At h = 0 the slope e^drop meets one by x that is 0; there a small number keeps it finite.
    m = jnp.where(x > jnp.finfo(x.dtype).tiny, -jnp.expm1(-x), math.exp(-60))
    # As a power of e, whose own derivative meets the slope by x before it overflows.
    by_h, by_drop = jnp.exp(-jnp.log(m + jnp.exp(-(x + drop)))), -jnp.expm1(-lower_label(x, drop))
    return lower_label(h, drop), by_h * dh + by_drop * ddrop


def angular_drop(a, margin, scale):
    """a − scale · cos(min(θ + margin, π)) with cos θ = a / scale."""
    b = jnp.where(jnp.abs(a) <= scale, a, jnp.sign(a) * scale)
    # cos θ − cos(θ + margin) = 2 sin²(margin / 2) cos θ + sin(margin) sin θ keeps the digits of a small margin
    transposed = 2 * jnp.sin(margin / 2) ** 2 * b + jnp.sin(margin) * _opposite(b, scale)
    beyond_pi = (margin >= math.pi) | (b < -scale * jnp.cos(margin))
    return (a - b) + jnp.where(beyond_pi, b + scale, transposed)


@jax.custom_jvp
def _opposite(b, scale):
    """scale · sin θ = √(scale² − b²)"""
    return jnp.sqrt(scale - b) * jnp.sqrt(scale + b)


@_opposite.defjvp
def _opposite_jvp(primals, tangents):
    # ∂√(s² − b²) = (s ds − b db) / √(s² − b²), which has no bound at θ = 0 and π
    (b, scale), (db, dscale) = primals, tangents
    side = _opposite(b, scale)
    return side, (scale * dscale - b * db) / jnp.maximum(side, 1e-3 * scale)
