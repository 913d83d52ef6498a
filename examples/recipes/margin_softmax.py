"""ArcFace: embeddings of faces, speakers or products, told apart by their angle with a margin.

Features and class vectors have length 1, so that logits are scale · cos θ; the label's becomes scale · cos(θ + margin),
and an embedding must be nearer to its own class by so much. `additive_margin` in its place is CosFace. Sources: Deng et
al. 2019, arXiv:1801.07698; Wang et al. 2018, arXiv:1801.09414.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

import softjax

CLASSES, INPUTS, FEATURES, SCALE = 100, 64, 16, 64


def unit(x, axis=-1):
    return x / jnp.linalg.norm(x, axis=axis, keepdims=True)


def embed(params, x):
    return unit(jax.nn.gelu(x @ params["in"]) @ params["out"])


def loss(params, x, labels, margin):
    arcface = partial(softjax.losses.angular_margin, margin=margin, scale=SCALE)
    kernel = unit(params["kernel"], axis=0)
    return softjax.linear_loss(arcface, SCALE * embed(params, x), kernel, labels, reduction="mean")


@jax.jit
def step(params, state, x, labels, margin):
    updates, state = optimiser.update(jax.grad(loss)(params, x, labels, margin), state)
    return optax.apply_updates(params, updates), state


def degrees(params, x, labels):
    """The mean angles of samples to their own class, and to the nearest other."""
    cosines = embed(params, x) @ unit(params["kernel"], axis=0)
    own = jax.nn.one_hot(labels, CLASSES, dtype=bool)
    nearest = [jnp.max(cosines, axis=1, where=mask, initial=-1) for mask in (own, ~own)]
    return [jnp.rad2deg(jnp.arccos(jnp.clip(c, -1, 1))).mean() for c in nearest]


shapes = {"in": (INPUTS, 128), "out": (128, FEATURES), "kernel": (FEATURES, CLASSES)}
centres = jax.random.normal(jax.random.key(9), (CLASSES, INPUTS))
labels = jnp.arange(2500) % CLASSES
x = centres[labels] + 0.4 * jax.random.normal(jax.random.key(10), (2500, INPUTS))
train, test = (x[500:], labels[500:]), (x[:500], labels[:500])
optimiser = optax.adam(3e-3)
for margin in 0.0, 0.5:
    params = {k: 0.1 * jax.random.normal(jax.random.key(i), shape) for i, (k, shape) in enumerate(shapes.items())}
    state = optimiser.init(params)
    for _ in range(100):
        params, state = step(params, state, *train, margin)
    own, other = degrees(params, *test)
    print(f"margin {margin}  own class at {own:.1f}°  nearest other at {other:.1f}°  apart {other - own:.1f}°")
