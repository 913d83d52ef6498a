"""DPO: a language model learns from pairs of answers, of which one is preferred, without a reward model.

The reward of an answer is β (ln π − ln π_ref), the loss of a pair −ln σ(chosen − rejected). ln π is the sum of −h over
its tokens, which `linear_statistics` gives without the logits. Source: Rafailov et al. 2023, arXiv:2305.18290.
"""

import math

import jax
import jax.numpy as jnp
import optax

import softjax

BETA, VOCABULARY, FEATURES, PROMPT, LENGTH = 0.1, 64, 32, 4, 16


def log_probability(params, tokens, mask):
    """ln π(answer), of tokens `[..., length]` whose answer is where the mask is."""
    x = params["embedding"][tokens[..., :-1]]
    hidden = x + jax.nn.gelu(x @ params["layer"])
    s = softjax.linear_statistics(hidden, params["head"], tokens[..., 1:])
    return -jnp.sum(s.cross_entropy, axis=-1, where=mask[..., 1:])


def loss(params, reference, tokens, mask):
    """Of pairs `[2, pairs, length]`, the chosen first; `reference` is ln π_ref of each, `[2, pairs]`."""
    rewards = BETA * (log_probability(params, tokens, mask) - reference)
    first = jnp.zeros(rewards.shape[1], int)  # −ln σ(a − b) is the cross-entropy of two classes of logits a and b
    return softjax.cross_entropy(rewards, first, axis=0, base=math.e), jnp.mean(rewards[0] > rewards[1])


@jax.jit
def step(params, state, *batch):
    updates, state = optimiser.update(jax.grad(loss, has_aux=True)(params, *batch)[0], state)
    return optax.apply_updates(params, updates), state


def pairs(key, number):
    """Prompts, each with an answer of even tokens, which is the chosen one, and one of odd tokens."""
    keys = jax.random.split(key, 3)
    prompts = jnp.tile(jax.random.randint(keys[0], (1, number, PROMPT), 0, VOCABULARY), (2, 1, 1))
    answers = 2 * jax.random.randint(keys[1], (2, number, LENGTH), 0, VOCABULARY // 2) + jnp.arange(2)[:, None, None]
    ends = PROMPT + jax.random.randint(keys[2], (2, number, 1), 4, LENGTH + 1)
    position = jnp.arange(PROMPT + LENGTH)[None, None]
    return jnp.concatenate([prompts, answers], axis=2), (position >= PROMPT) & (position < ends)


shapes = {"embedding": (VOCABULARY, FEATURES), "layer": (FEATURES, FEATURES), "head": (FEATURES, VOCABULARY)}
params = {k: 0.1 * jax.random.normal(jax.random.key(i), shape) for i, (k, shape) in enumerate(shapes.items())}
train, test = pairs(jax.random.key(3), 64), pairs(jax.random.key(4), 64)
references = log_probability(params, *train), log_probability(params, *test)
optimiser = optax.adam(1e-2)
state = optimiser.init(params)
for i in range(21):
    if i % 5 == 0:
        value, accuracy = loss(params, references[1], *test)
        print(f"step {i:2}  loss of held-out pairs {value:.3f}, the chosen preferred in {accuracy:.0%}")
    params, state = step(params, state, references[0], *train)
