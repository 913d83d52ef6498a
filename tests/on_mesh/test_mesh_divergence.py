"""Divergences of logits and of two layers, with sharded samples and classes."""

from functools import partial

import cases
import jax
import jax.numpy as jnp
import pytest
import worlds
from covering import covering
from jax.sharding import PartitionSpec as P
from programs import vjp
from test_mesh_layer import close, run
from worlds import CLASSES, NAMES, SAMPLES

import softjax

ROWS2, COLUMNS2 = P("data", None), P(None, "classes")
KINDS = ["forward_kl", "reverse_kl", "jensen_shannon"]
WAYS = [("mean", True), ("none", True), ("mean", False), ("none", False)]


@pytest.mark.parametrize(("world", "kind", "reduction", "fused"), covering(worlds.WORLDS, KINDS, WAYS, quick=(0, 2, 4)))
def test_every_kind(world, kind, reduction, fused):
    """Values, and gradients by all of the student's arrays, by T and by β; a row of weight 0 holds NaN."""
    hidden, kernel, bias = cases.layer(CLASSES, samples=SAMPLES, spread=3.0)
    teacher = list(cases.layer(CLASSES, features=7, samples=SAMPLES, spread=3.0, seed=1))
    weights = cases.weights(SAMPLES)
    options = {"kind": kind, "reduction": reduction}
    scalars = [jnp.float32(1.7), jnp.float32(0.3)]

    def linear(h, w, b, temperature, beta, weights, th, tw, tb, **names):
        given = {"bias": b, "teacher_bias": tb, "temperature": temperature, "beta": beta, "weights": weights}
        return softjax.linear_divergence(h, w, th, tw, block_size=3, **given, **options, **names)

    def dense(x, temperature, beta, weights, y, **names):
        return softjax.divergence(x, y, temperature=temperature, beta=beta, weights=weights, **options, **names)

    layer = [ROWS2, COLUMNS2, P("classes")]
    scalar_specs = [P(), P(), worlds.ROWS]
    if fused:
        function, arrays = linear, [hidden.at[0].set(jnp.nan), kernel, bias, *scalars, weights, *teacher]
        specs, moving = [*layer, *scalar_specs, *layer], range(5)
    else:
        x, y = (h @ w + b[None] for h, w, b in ((hidden, kernel, bias), teacher))
        function, arrays = dense, [x.at[0].set(jnp.nan), *scalars, weights, y.at[0].set(jnp.inf)]
        specs, moving = [worlds.LOGITS, *scalar_specs, worlds.LOGITS], range(3)
    out = worlds.ROWS if reduction == "none" else P()
    g = cases.cotangent(SAMPLES) if reduction == "none" else jnp.asarray(1.0)
    value, gradients = run(world, (2, 4), partial(function, **NAMES), arrays, specs, out, moving, g)
    expected, theirs = vjp(lambda *a: function(*a, *arrays[len(moving) :]), arrays[: len(moving)], g)
    close(value, expected)
    close(list(gradients), list(theirs), 2e-5)


@pytest.mark.parametrize("world", ["shard_map"])
def test_a_teacher_of_which_each_device_has_all_classes_is_refused(world):
    hidden, kernel, _ = cases.layer(CLASSES, samples=SAMPLES)

    def own(h, w, th, tw):
        return softjax.linear_divergence(h, w, th, tw, **NAMES)

    f = worlds.split(world, (2, 4), own, [ROWS2, COLUMNS2, ROWS2, P()], P())
    with pytest.raises(ValueError, match="`teacher_kernel` "):
        f(hidden, kernel, hidden, kernel[:, : CLASSES // 4])


@pytest.mark.parametrize("spec", [P("data"), P()])
def test_a_teacher_that_lies_otherwise(spec):
    """Under Explicit axes a call on logits is sharded by their types, whatever the types of the teacher are."""
    x, y = (cases.logits(CLASSES, samples=SAMPLES, seed=seed) for seed in (0, 1))

    def loss(x, y, temperature):
        return softjax.divergence(x, y, temperature=temperature, beta=0.3, kind="jensen_shannon")

    with jax.set_mesh(worlds.mesh_of((2, 4), "Explicit")):
        arrays = jax.device_put(x, worlds.LOGITS), jax.device_put(y, spec), jnp.float32(2)
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 2)))(*arrays)
    expected, theirs = jax.jit(jax.value_and_grad(loss, (0, 2)))(x, y, jnp.float32(2))
    close(value, expected)
    close(gradients, theirs)
