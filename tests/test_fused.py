"""The fused pass: `linear_loss` of any row loss against the unfused baseline, ignored samples, residuals."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import ROUTES, covering
from programs import vjp

import softjax

HIDDEN, KERNEL, BIAS = cases.layer(9, spread=2.0)
LABELS, W = cases.class_ids(9), cases.weights()
ADVANTAGE = cases.cotangent(seed=1)


def policy_gradient(stats, advantage, old, *, clip=0.2, bonus=0.01):
    """PPO's clipped objective with an entropy bonus (Schulman et al. 2017, arXiv:1707.06347)."""
    ratio = jnp.exp(-stats.cross_entropy - old)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return -jnp.minimum(ratio * advantage, clipped * advantage) - bonus * stats.entropy


def unfused_sum(row_loss, hidden, kernel, *row_args, weights=None):
    """Σ weight · row loss of the materialised logits, with JAX's own derivatives."""
    x = hidden @ kernel + BIAS[None]
    log_q, z, a = jax.nn.log_softmax(x), jax.nn.logsumexp(x, -1), x[jnp.arange(len(x)), LABELS]
    stats = softjax.statistics(x, LABELS)._replace(
        log_normalizer=z,
        label_logit=a,
        mean_logit=x.mean(-1),
        entropy=-(jnp.exp(log_q) * log_q).sum(-1),
        cross_entropy=z - a,
        collision=(jnp.exp(log_q) ** 2).sum(-1),
        max_logit=x.max(-1),
        peak_entropy=-log_q.max(-1),
        prediction=x.argmax(-1),
        label_rank=(x > a[:, None]).sum(-1),
    )
    losses = jax.vmap(row_loss)(stats, *row_args)
    return jnp.sum(losses if weights is None else weights * losses)


@pytest.mark.parametrize("weights", [None, W])
def test_every_statistic_of_a_row_loss(weights):
    def row_loss(s, scale):
        floating = s.entropy * s.cross_entropy + s.collision - s.max_logit * s.peak_entropy + s.mean_logit
        integers = (s.prediction == 3).astype(jnp.float32) + 0.5 * s.label_rank.astype(jnp.float32)
        return scale * (floating + s.label_logit * s.log_normalizer) * (1 + integers)

    def fused(h, k, a):
        return softjax.linear_loss(row_loss, h, k, LABELS, a, bias=BIAS, weights=weights, block_size=4)

    def unfused(h, k, a):
        return unfused_sum(row_loss, h, k, a, weights=weights)

    def both_modes(f):
        @jax.jit
        def run(*arrays):
            forward = jax.jvp(f, arrays, (HIDDEN, -KERNEL, ADVANTAGE))
            return jax.value_and_grad(f, (0, 1, 2))(*arrays), forward

        return jax.tree.leaves(run(HIDDEN, KERNEL, ADVANTAGE))

    for a, b in zip(both_modes(fused), both_modes(unfused), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-6 * np.abs(b).max() + 1e-4 * (np.ndim(b) == 0))


@pytest.mark.parametrize(("block_size", "weights"), covering([None, 1, 3, 100], [None, W]))
def test_a_policy_gradient_with_an_entropy_bonus(block_size, weights):
    old = -(cases.cotangent(seed=2) ** 2)

    def fused(h, k, a, o):
        return softjax.linear_loss(
            policy_gradient, h, k, LABELS, a, o, bias=BIAS, weights=weights, block_size=block_size
        )

    def unfused(h, k, a, o):
        return unfused_sum(policy_gradient, h, k, a, o, weights=weights)

    actual = jax.jit(jax.value_and_grad(fused, (0, 1, 2, 3)))(HIDDEN, KERNEL, ADVANTAGE, old)
    expected = jax.jit(jax.value_and_grad(unfused, (0, 1, 2, 3)))(HIDDEN, KERNEL, ADVANTAGE, old)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_derivatives_by_closed_over_arrays():
    @jax.jit
    def fused(t, k):
        return softjax.linear_loss(lambda s: t * s.log_normalizer**2, HIDDEN, k, LABELS, block_size=4, bias=BIAS)

    def unfused(t, k):
        return unfused_sum(lambda s: t * s.log_normalizer**2, HIDDEN, k)

    t = jnp.float32(0.3)
    for f in (jax.grad, jax.jacfwd):
        derivatives = (jax.jit(f(loss, (0, 1)))(t, KERNEL) for loss in (fused, unfused))
        for a, b in zip(*derivatives, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jax.vmap(fused, (0, None))(jnp.arange(3.0), KERNEL), jnp.arange(3.0) * fused(jnp.float32(1), KERNEL), rtol=1e-5
    )


def test_ignored_samples_add_nothing_to_the_derivative_of_a_closed_over_array():
    ignored = W == 0

    def derivative(labels, advantage, **options):
        def total(t):
            def row_loss(s, a):
                return t * (s.log_normalizer - s.label_logit) * a

            return softjax.linear_loss(row_loss, HIDDEN, KERNEL, labels, advantage, **options)

        return jax.grad(total)(jnp.float32(1))

    ones = jnp.ones(cases.SAMPLES)
    bad = derivative(jnp.where(ignored, -100, LABELS), jnp.where(ignored, jnp.nan, 1), weights=W, block_size=3)
    np.testing.assert_allclose(bad, derivative(LABELS, ones, weights=W), rtol=1e-5)


def test_the_padding_of_the_last_chunk_adds_nothing():
    """The loss divides by a row argument, which is not 0 in the padding."""

    def derivative(block_size):
        def total(t):
            return softjax.linear_loss(
                lambda s, a: t * s.entropy / a, HIDDEN, KERNEL, LABELS, jnp.ones(cases.SAMPLES), block_size=block_size
            )

        return jax.grad(total)(jnp.float32(1))

    np.testing.assert_allclose(derivative(4), derivative(None), rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_ignored_chunks_are_skipped(reduction):
    def loss(h, w):
        return softjax.linear_cross_entropy(h, KERNEL, LABELS, weights=w, reduction=reduction, block_size=4).sum()

    program = jax.make_jaxpr(jax.grad(loss))(HIDDEN, W)
    assert "cond[" in str(program)
    gradient = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(gradient(HIDDEN, -W), -gradient(HIDDEN, W), rtol=1e-5, atol=1e-7)


def test_random_keys_as_row_arguments():
    keys = jax.random.split(jax.random.key(0), cases.SAMPLES)
    value = softjax.linear_loss(lambda s, k: jax.random.uniform(k), HIDDEN, KERNEL, LABELS, keys, block_size=4)
    np.testing.assert_allclose(value, jax.vmap(jax.random.uniform)(keys).sum(), rtol=1e-5)


def test_row_arguments_of_any_kind():
    # a tree of arrays: one has several values per row, one holds integers
    tree = {"a": ADVANTAGE, "b": (jnp.ones((cases.SAMPLES, 2, 3)), jnp.arange(cases.SAMPLES))}

    def row_loss(s, tree):
        return tree["a"] * s.log_normalizer * tree["b"][0].sum() + tree["b"][1].astype(jnp.float32) * s.mean_logit

    def fused(h, a):
        return softjax.linear_loss(row_loss, h, KERNEL, LABELS, tree | {"a": a}, bias=BIAS, block_size=3)

    def unfused(h, a):
        return unfused_sum(row_loss, h, KERNEL, tree | {"a": a})

    for a, b in zip(
        jax.grad(fused, (0, 1))(HIDDEN, ADVANTAGE), jax.grad(unfused, (0, 1))(HIDDEN, ADVANTAGE), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    shaped = jax.tree.map(lambda x: x[:10].reshape(5, 2, *x.shape[1:]), (HIDDEN, LABELS, tree))
    value = softjax.linear_loss(row_loss, shaped[0], KERNEL, shaped[1], shaped[2])
    flat = softjax.linear_loss(row_loss, HIDDEN[:10], KERNEL, LABELS[:10], jax.tree.map(lambda x: x[:10], tree))
    np.testing.assert_allclose(value, flat, rtol=1e-5)


def test_an_ignored_row_may_hold_anything():
    ignored = W == 0
    advantage = jnp.where(ignored, jnp.nan, ADVANTAGE)
    hidden = jnp.where(ignored[:, None], jnp.inf, HIDDEN)

    @jax.jit
    def gradients(h, a, y):
        def loss(h, k, a):
            old = jnp.zeros_like(a)
            return softjax.linear_loss(policy_gradient, h, k, y, a, old, weights=W, block_size=3)

        return jax.value_and_grad(loss, (0, 1, 2))(h, KERNEL, a)

    actual = gradients(hidden, advantage, jnp.where(ignored, -1, LABELS))
    expected = gradients(HIDDEN, ADVANTAGE, LABELS)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_unread_statistic_is_not_computed():
    def count_sums(row_loss):
        program = jax.jit(jax.grad(lambda h: softjax.linear_loss(row_loss, h, KERNEL, LABELS)))
        return program.lower(HIDDEN).compile().as_text().count(" reduce(")

    assert 0 < count_sums(lambda s: s.log_normalizer) < count_sums(lambda s: s.log_normalizer + s.entropy)
    jitted = jax.jit(lambda s: s.log_normalizer * 1.0)  # also inside the caller's own `jit`
    assert count_sums(jitted) < count_sums(jax.jit(lambda s: s.log_normalizer + s.entropy))


def test_wrong_row_losses_are_refused_by_name():
    def call(row_loss, *row_args):
        return softjax.linear_loss(row_loss, HIDDEN, KERNEL, LABELS, *row_args)

    with pytest.raises(TypeError, match="`row_loss` must be a function, got int"):
        call(3)
    with pytest.raises(ValueError, match=r"`row_loss` must give a scalar for one sample, got shape \(2,\)"):
        call(lambda s: jnp.ones(2))
    with pytest.raises(TypeError, match="real floating array, got int32"):
        call(lambda s: jnp.int32(1))
    with pytest.raises(ValueError, match=r"`row_args` must have one entry for each sample, \(11,\); got shape \(3,\)"):
        call(lambda s, a: a, jnp.ones(3))
    np.testing.assert_allclose(call(lambda s: 2.0), 2 * cases.SAMPLES)


@pytest.mark.parametrize("weights", [None, jnp.full(2**16 + 3, 0.3)])
def test_many_chunks_are_as_exact_as_one(weights):
    """The rows are equal, so that a plain sum over chunks would round in the same direction each time."""
    samples = 2**16 + 3
    hidden, labels = jnp.full((samples, 1), 0.7), jnp.zeros(samples, jnp.int32)
    kernel, bias = jnp.array([[0.3, -0.5]]), jnp.array([0.1, -0.2])

    def mean(kernel, bias):
        return softjax.linear_cross_entropy(hidden, kernel, labels, bias=bias, weights=weights, block_size=2, base=np.e)

    value, dbias = jax.jit(jax.value_and_grad(mean, 1))(kernel, bias)
    x = np.float64(hidden[0]) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
    z = np.logaddexp(*x)
    for found, expected in (
        (value, z - x[0]),
        (jax.jit(mean)(kernel, bias), z - x[0]),
        (dbias, np.exp(x - z) - [1, 0]),
    ):
        np.testing.assert_allclose(found, expected, rtol=5e-7)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_non_finite_loss_stays_so_in_a_sum_over_chunks(value):
    def total(a):
        return softjax.linear_loss(lambda s, a: a * s.cross_entropy**0, HIDDEN, KERNEL, LABELS, a, block_size=3)

    both = jax.jit(lambda a: (total(a), jax.value_and_grad(total)(a)[0]))
    for sample in (0, cases.SAMPLES - 1):
        np.testing.assert_array_equal(both(jnp.ones(cases.SAMPLES).at[sample].set(value)), value)


# Residuals of `reduction="none"`, which keeps no logits between the passes


def test_residuals_are_the_arguments_and_a_few_values_per_row():
    hidden, kernel, bias = cases.layer(2049)
    labels = cases.class_ids(2049)

    def rows(h, k, b):
        return softjax.linear_cross_entropy(h, k, labels, bias=b, reduction="none", block_size=4)

    _, pull = jax.vjp(rows, hidden, kernel, bias)
    kept = [leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size")]
    arguments = sorted(a.size for a in (hidden, kernel, bias))[::-1]
    padded = hidden.size // cases.SAMPLES * 12  # the last chunk of 4 is padded
    assert sum(kept) <= sum(arguments) + padded + 14 * 12


def test_residuals_under_vmap_hold_no_logits():
    examples, (hidden, kernel, bias) = 3, cases.layer(2049)
    labels, many = cases.class_ids(2049), jnp.stack([hidden] * 3)

    def rows(h):
        return softjax.linear_cross_entropy(h, kernel, labels, bias=bias, reduction="none")

    _, pull = jax.vjp(jax.vmap(rows), many)
    kept = [leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size")]
    assert max(kept) < examples * cases.SAMPLES * 2049


def test_ignored_chunks_may_hold_anything():
    """Also values whose exponentials overflow."""
    hidden, kernel, _ = cases.layer(9, samples=12)
    labels, w = cases.class_ids(9, 12), jnp.ones(12).at[:4].set(0)

    def total(h, k):
        return softjax.linear_cross_entropy(h, k, labels, weights=w, reduction="none", block_size=2).sum()

    gradients = jax.jit(jax.grad(total, (0, 1)))
    expected = gradients(hidden, kernel)
    for value in (jnp.nan, jnp.inf, 1e6, 1e38):
        for found, wanted in zip(gradients(hidden.at[:4].set(value), kernel), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("reduction", "block_size", "route"), covering(["mean", "sum", "none"], [None, 4], ROUTES), indirect=["route"]
)
def test_a_label_out_of_range_adds_no_gradient(reduction, block_size, route):
    """The loss is NaN, its row has gradient 0, and the kernel has the gradient of the other rows."""
    hidden, kernel, _ = cases.layer(5)
    labels = cases.class_ids(5).at[jnp.array([3, 7])].set(jnp.array([-1, 5]))
    options = {"reduction": reduction, "block_size": block_size}
    g = jnp.ones(len(labels) if reduction == "none" else ())
    value, (dh, dk) = vjp(lambda h, k: softjax.linear_cross_entropy(h, k, labels, **options), (hidden, kernel), g)
    assert jnp.isnan(value).any()
    assert not dh[jnp.array([3, 7])].any()
    good = (labels >= 0) & (labels < 5)

    def clean(h, k):
        losses = softjax.cross_entropy(h @ k, jnp.where(good, labels, 0), reduction="none", weights=good)
        return losses.sum() / (len(h) if reduction == "mean" else 1)

    for actual, expected in zip((dh, dk), jax.jit(jax.grad(clean, (0, 1)))(hidden, kernel), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
