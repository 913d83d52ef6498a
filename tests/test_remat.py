"""No policy of `jax.checkpoint` reaches into the scan over chunks: it saves neither logits nor their matmuls."""

import jax
import jax.numpy as jnp
import pytest
from covering import slow

import softjax

N, F, C, ROWS = 1024, 64, 2048, 128
CHUNK_BYTES = 4 * ROWS * C

_policies = jax.checkpoint_policies
POLICIES = {name: getattr(_policies, name) for name in dir(_policies) if name.endswith(("saveable", "dims"))}
OFFLOADING = POLICIES.pop("offload_dot_with_no_batch_dims")
POLICIES |= {
    "offload_dot_with_no_batch_dims": OFFLOADING("device", "pinned_host"),
    "save_only_these_names": _policies.save_only_these_names("x"),
    "save_anything_except_these_names": _policies.save_anything_except_these_names("x"),
    "save_any_names_but_these": _policies.save_any_names_but_these("x"),
    "save_from_both_policies": _policies.save_from_both_policies(
        _policies.dots_saveable, _policies.save_only_these_names("x")
    ),
    "save_and_offload_only_these_names": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=["x"], names_which_can_be_offloaded=[], offload_src="device", offload_dst="pinned_host"
    ),
}
COMMON = ["dots_saveable", "everything_saveable", "save_only_these_names"]
CASES = [pytest.param(name, marks=() if name in COMMON else pytest.mark.slow) for name in sorted(POLICIES)]


def total(h, k, y):
    """All functions of a last layer in one program."""
    fused = softjax.linear_cross_entropy(h, k, y, block_size=ROWS)
    rows = softjax.linear_cross_entropy(h, k, y, reduction="none", block_size=ROWS)
    loss = softjax.linear_loss(lambda s: s.cross_entropy**2, h, k, y, block_size=ROWS)
    statistics = softjax.linear_statistics(h, k, y, block_size=ROWS)
    divergence = softjax.linear_divergence(h, k, jnp.ones_like(h), k, block_size=ROWS)
    return fused + jnp.sum(rows**2) + loss + jnp.sum(statistics.entropy**2) + divergence


def memory(policy):
    """The temporary memory of the compiled gradient, in bytes."""
    inside = jax.checkpoint(lambda h, k, y: total(jnp.sin(h), k, y), policy=policy)
    h, k = jax.ShapeDtypeStruct((N, F), jnp.float32), jax.ShapeDtypeStruct((F, C), jnp.float32)
    program = jax.jit(jax.grad(inside, (0, 1))).lower(h, k, jax.ShapeDtypeStruct((N,), jnp.int32)).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_every_policy_is_tried():
    aliases = {"checkpoint_dots", "checkpoint_dots_with_no_batch_dims"}  # older names of two policies
    assert {name for name in dir(_policies) if not name.startswith("_")} - aliases <= set(POLICIES)


@pytest.fixture(scope="module")
def memory_without_saving():
    return memory(_policies.nothing_saveable)


@pytest.mark.parametrize("policy", CASES)
def test_a_policy_saves_no_chunk_of_logits(policy, memory_without_saving):
    # a policy may save the gradients of the two sums, [N, F] and [F, C] each
    assert memory(POLICIES[policy]) <= memory_without_saving + 2 * 4 * (N * F + F * C) + CHUNK_BYTES
    assert memory_without_saving < 8 * CHUNK_BYTES + 4 * F * C  # less than all logits


@pytest.mark.parametrize("policy", [_policies.everything_saveable, *slow(_policies.dots_saveable)])
def test_losses_of_logits_save_no_more_under_a_policy(policy):
    def loss(h, k, y):
        return softjax.cross_entropy(h @ k, y, z_loss=1e-3)

    def temporary_bytes(function):
        h, k = jax.ShapeDtypeStruct((N, F), jnp.float32), jax.ShapeDtypeStruct((F, C), jnp.float32)
        program = jax.jit(jax.grad(function, (0, 1))).lower(h, k, jax.ShapeDtypeStruct((N,), jnp.int32)).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(jax.checkpoint(loss, policy=policy)) < temporary_bytes(loss) + CHUNK_BYTES


@pytest.mark.parametrize("policy", [_policies.everything_saveable, *slow(_policies.dots_saveable)])
def test_a_policy_changes_no_gradient(policy):
    keys = jax.random.split(jax.random.key(0), 3)
    h, k = jax.random.normal(keys[0], (37, 5)), jax.random.normal(keys[1], (5, 9))
    y = jax.random.randint(keys[2], (37,), 0, 9)
    plain, inside = (jax.jit(jax.grad(f, (0, 1)))(h, k, y) for f in (total, jax.checkpoint(total, policy=policy)))
    for gradient, expected in zip(inside, plain, strict=True):
        assert jnp.allclose(gradient, expected, rtol=1e-5, atol=1e-5 * jnp.abs(expected).max())
