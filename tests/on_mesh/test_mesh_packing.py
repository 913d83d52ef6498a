"""Each device packs its own samples: devices with very unequal numbers of active samples meet in every collective."""

import cases
import jax
import jax.numpy as jnp
import mesh_setups
import numpy as np
import pytest
from covering import covering, slow
from jax.sharding import PartitionSpec as P
from mesh_setups import NAMES, ROWS, SAMPLES
from test_mesh_layer import SPECS, close, example, run

import softjax

SHAPES = [(2, 4), (2, 2), (1, 2), (4, 2), (8, 1), (1, 8)]
# The last samples are active, and two of the first: on two devices one has all chunks to compute, the other one chunk.
ACTIVE = np.isin(np.arange(SAMPLES), [1, 4, *range(9, SAMPLES)])


@pytest.mark.parametrize(
    ("setup", "sample_shards", "class_shards", "reduction"),
    covering(mesh_setups.SETUPS, SHAPES, ["mean", "none"], quick=(0, 4)),
)
def test_unequal_shards(setup, sample_shards, class_shards, reduction):
    """Value and gradients by hidden states, kernel, bias, row argument and temperature."""
    h, k, b, y, _ = example()
    t, advantages, w = jnp.linspace(0.5, 2.0, SAMPLES), cases.cotangent(SAMPLES), jnp.asarray(ACTIVE, jnp.float32)

    def loss(h, k, b, y, w, a, t, **names):
        options = {"bias": b, "weights": w, "temperature": t, "block_size": 2, "reduction": reduction}
        return softjax.linear_loss(lambda s, a: a * s.cross_entropy + s.entropy, h, k, y, a, **options, **names)

    def named(*arrays):
        return loss(*arrays, **NAMES)

    g = cases.cotangent(SAMPLES, seed=1) if reduction == "none" else jnp.asarray(1.0)
    differentiated = (0, 1, 2, 5, 6)
    expected, pull = jax.vjp(lambda h, k, b, a, t: loss(h, k, b, y, w, a, t), h, k, b, advantages, t)
    arrays = [a.at[~ACTIVE].set(jnp.nan) for a in (h, advantages, t)]
    arrays = (arrays[0], k, b, y.at[~ACTIVE].set(-1), w, *arrays[1:])
    out = ROWS if reduction == "none" else P()
    actual = run(setup, (sample_shards, class_shards), named, arrays, [*SPECS, ROWS, ROWS], out, differentiated, g)
    close(actual, (expected, list(pull(g))), 2e-5)


@pytest.mark.parametrize("setup", [mesh_setups.SETUPS[0], *slow(*mesh_setups.SETUPS[1:])])
def test_a_divergence(setup):
    h, k, _, _, _ = example()
    teacher, t, w = jnp.cos(h), jnp.linspace(0.5, 2.0, SAMPLES), jnp.asarray(ACTIVE, jnp.float32)

    def loss(h, k, teacher, t, w, **names):
        options = {"kind": "reverse_kl", "weights": w, "temperature": t, "block_size": 2}
        return softjax.linear_divergence(h, k, teacher, jax.lax.stop_gradient(k) * 1.5, **options, **names)

    def named(*arrays):
        return loss(*arrays, **NAMES)

    expected = jax.jit(jax.value_and_grad(loss, (0, 1, 3)))(h, k, teacher, t, w)
    arrays = [a.at[~ACTIVE].set(jnp.nan) for a in (h, teacher, t)]
    specs = [*SPECS[:2], SPECS[0], ROWS, ROWS]
    value, gradients = run(setup, (2, 4), named, (arrays[0], k, *arrays[1:], w), specs, differentiated=(0, 1, 3))
    close((value, gradients), (expected[0], list(expected[1])), 2e-5)


def test_devices_that_share_collectives_compute_the_chunks_of_the_fullest():
    """Chunks computed on 2 × 2 devices of 8 samples each, 4 chunks of 2: the fullest shard has 7 active samples."""
    calls = []

    def count(h):
        calls.append(h.shape)
        return np.zeros_like(h)

    def row_loss(s):
        h = jax.lax.stop_gradient(s.cross_entropy)
        zero = jax.pure_callback(count, jax.ShapeDtypeStruct((), h.dtype), h, vmap_method="expand_dims")
        return s.cross_entropy * (1 + zero)

    def loss(h, k, y, w):
        return softjax.linear_loss(row_loss, h, k, y, weights=w, block_size=2, **NAMES)

    h, k, _, y, _ = example()
    specs = [*SPECS[:2], ROWS, ROWS]
    mesh = mesh_setups.mesh_of((2, 2))
    # Without check_vma: JAX types the result of a callback as invariant.
    f = jax.shard_map(loss, mesh=mesh, in_specs=tuple(specs), out_specs=P(), check_vma=False)
    for active, expected in ((ACTIVE, 4 * 4), (np.arange(SAMPLES) % 8 == 3, 4 * 1), (np.zeros(SAMPLES, bool), 0)):
        calls.clear()
        jax.block_until_ready(jax.jit(jax.grad(f))(h, k, y, jnp.asarray(active, jnp.float32)))
        assert len(calls) == expected
