"""Score tokens under the truncated distribution that sampled them: top-p or top-k sets that the sampler kept.

Use this in reinforcement learning if the rollouts are sampled with top-p or top-k. The sampler draws from the classes
of a set S only, so the importance ratio needs ln q(y | S) = ln q_y − ln Σ_{j ∈ S} q_j. The sampler stores the ids of S,
padded with −1; `softjax.linear_log_probabilities` scores them without the logits.

Source: nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751.
"""

import math

import jax
import jax.numpy as jnp

import softjax

SAMPLES, FEATURES, VOCABULARY = 64, 32, 500
LARGEST_SET = 24  # ids that the sampler can keep
TOP_P = 0.5
TEMPERATURE = 0.8


def sample(key, hidden, kernel):
    """Returns one token per sample, and the ids of the set that it came from, padded with −1."""
    top = softjax.linear_top_k(hidden, kernel, LARGEST_SET, base=math.e, temperature=TEMPERATURE)
    p = jnp.exp(top.log_probabilities)
    kept = jnp.cumsum(p, axis=-1) - p < TOP_P  # the smallest set with at least this mass
    place = jax.random.categorical(key, jnp.where(kept, top.log_probabilities, -jnp.inf))
    tokens = jnp.take_along_axis(top.ids, place[:, None], axis=-1)[:, 0]
    return tokens, jnp.where(kept, top.ids, -1)


def truncated_log_probabilities(hidden, kernel, tokens, ids) -> jax.Array:
    """Returns ln q(token | set) of each sample, in nats."""
    asked = jnp.concatenate([tokens[:, None], ids], axis=-1)
    log_q = softjax.linear_log_probabilities(hidden, kernel, asked, base=math.e, temperature=TEMPERATURE)
    # A padded id has log-probability NaN, with gradient 0.
    in_set = jnp.where(ids >= 0, log_q[:, 1:], -jnp.inf)
    return log_q[:, 0] - jax.nn.logsumexp(in_set, axis=-1)


hidden_key, kernel_key, sample_key = jax.random.split(jax.random.key(0), 3)
hidden = jax.random.normal(hidden_key, (SAMPLES, FEATURES))
kernel = jax.random.normal(kernel_key, (FEATURES, VOCABULARY)) / 3

tokens, ids = sample(sample_key, hidden, kernel)
truncated = truncated_log_probabilities(hidden, kernel, tokens, ids)
full = softjax.linear_log_probabilities(hidden, kernel, tokens[:, None], base=math.e, temperature=TEMPERATURE)[:, 0]

# One step of training changes the kernel. The ratio of the sampled tokens has mean 1 for the truncated distribution.
changed = kernel + 0.01 * jax.random.normal(jax.random.key(1), kernel.shape)
ratio = jnp.exp(truncated_log_probabilities(hidden, changed, tokens, ids) - truncated)
print(f"{jnp.sum(ids >= 0, axis=-1).mean():.1f} tokens in a set on average")
print(f"log-probability of a token: {truncated.mean():.3f} in its set, {full.mean():.3f} of all tokens (nats)")
print(f"importance ratio after a step: {ratio.min():.3f} to {ratio.max():.3f}")
