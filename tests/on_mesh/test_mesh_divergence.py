"""Divergences of logits and of two last layers, with sharded samples and classes."""

from functools import partial

import cases
import jax
import jax.numpy as jnp
import mesh_setups
import pytest
from covering import covering
from jax.sharding import PartitionSpec as P
from mesh_setups import CLASSES, NAMES, SAMPLES
from programs import vjp
from test_mesh_layer import close, run

import softjax

ROWS2, COLUMNS2 = P("data", None), P(None, "classes")
KINDS = ["forward_kl", "reverse_kl", "jensen_shannon"]
REDUCTION_AND_FUSED = [("mean", True), ("none", True), ("mean", False), ("none", False)]


@pytest.mark.parametrize(
    ("setup", "kind", "reduction", "fused"), covering(mesh_setups.SETUPS, KINDS, REDUCTION_AND_FUSED, quick=(0, 2, 4))
)
def test_every_kind(setup, kind, reduction, fused):
    """Values, and gradients by the student's arrays, T and β. An ignored row holds NaN."""
    hidden, kernel, bias = cases.layer(CLASSES, samples=SAMPLES, spread=3.0)
    teacher = list(cases.layer(CLASSES, features=7, samples=SAMPLES, spread=3.0, seed=1))
    weights = cases.weights(SAMPLES)
    options = {"kind": kind, "reduction": reduction}
    scalars = [jnp.float32(1.7), jnp.float32(0.3)]

    def linear(h, w, b, temperature, beta, weights, th, tw, tb, **names):
        arguments = {"bias": b, "teacher_bias": tb, "temperature": temperature, "beta": beta, "weights": weights}
        return softjax.linear_divergence(h, w, th, tw, block_size=3, **arguments, **options, **names)

    def dense(x, temperature, beta, weights, y, **names):
        return softjax.divergence(x, y, temperature=temperature, beta=beta, weights=weights, **options, **names)

    layer = [ROWS2, COLUMNS2, P("classes")]
    scalar_specs = [P(), P(), mesh_setups.ROWS]
    if fused:
        function, arrays = linear, [hidden.at[0].set(jnp.nan), kernel, bias, *scalars, weights, *teacher]
        specs, differentiated = [*layer, *scalar_specs, *layer], range(5)
    else:
        x, y = (h @ w + b[None] for h, w, b in ((hidden, kernel, bias), teacher))
        function, arrays = dense, [x.at[0].set(jnp.nan), *scalars, weights, y.at[0].set(jnp.inf)]
        specs, differentiated = [mesh_setups.LOGITS, *scalar_specs, mesh_setups.LOGITS], range(3)
    out = mesh_setups.ROWS if reduction == "none" else P()
    g = cases.cotangent(SAMPLES) if reduction == "none" else jnp.asarray(1.0)
    value, gradients = run(setup, (2, 4), partial(function, **NAMES), arrays, specs, out, differentiated, g)
    expected, expected_gradients = vjp(
        lambda *a: function(*a, *arrays[len(differentiated) :]), arrays[: len(differentiated)], g
    )
    close(value, expected)
    close(list(gradients), list(expected_gradients), 2e-5)


@pytest.mark.parametrize("setup", ["shard_map"])
def test_a_teacher_with_unsharded_classes_is_refused(setup):
    hidden, kernel, _ = cases.layer(CLASSES, samples=SAMPLES)

    def loss(h, w, th, tw):
        return softjax.linear_divergence(h, w, th, tw, **NAMES)

    f = mesh_setups.shard_function(setup, (2, 4), loss, [ROWS2, COLUMNS2, ROWS2, P()], P())
    with pytest.raises(ValueError, match="`teacher_kernel` "):
        f(hidden, kernel, hidden, kernel[:, : CLASSES // 4])


@pytest.mark.parametrize("spec", [P("data"), P()])
def test_a_teacher_with_another_sharding(spec):
    """Under Explicit axes, the type of the student's logits decides the sharding of the call."""
    x, y = (cases.logits(CLASSES, samples=SAMPLES, seed=seed) for seed in (0, 1))

    def loss(x, y, temperature):
        return softjax.divergence(x, y, temperature=temperature, beta=0.3, kind="jensen_shannon")

    with jax.set_mesh(mesh_setups.mesh_of((2, 4), "Explicit")):
        arrays = jax.device_put(x, mesh_setups.LOGITS), jax.device_put(y, spec), jnp.float32(2)
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 2)))(*arrays)
    expected, expected_gradients = jax.jit(jax.value_and_grad(loss, (0, 2)))(x, y, jnp.float32(2))
    close(value, expected)
    close(gradients, expected_gradients)
