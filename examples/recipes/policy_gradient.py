"""GRPO: the clipped policy gradient of PPO, with the rewards of a prompt's completions standardised as advantages.

With the ratio r = exp(ln q_new − ln q_old) of a token's probabilities, the loss of a token is
−min(r A, clip(r, 1 − ε, 1 + ε) A) − c H: a function of two numbers of its row, h = −ln q and the entropy H, so
`linear_loss` takes it without the logits. Sources: arXiv:1707.06347, 2402.03300; the mean over all tokens: 2503.14476.
"""

import jax
import jax.numpy as jnp
import optax

import softjax

PROMPTS, GROUP, LENGTH, VOCABULARY, FEATURES, EOS = 8, 16, 6, 32, 64, 0
prompts = jnp.repeat(jnp.arange(PROMPTS), GROUP)


def hidden(params):
    return jax.nn.tanh(params["prompt"][prompts][:, None] + params["position"][None])


def ppo(s, advantage, old_log_prob, clip=0.2, bonus=0.01):
    ratio = jnp.exp(-s.cross_entropy - old_log_prob)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    return -surrogate - bonus * s.entropy, (s.entropy, jnp.abs(ratio - 1) > clip)


def loss(params, tokens, advantages, old_log_probs, mask):
    arrays = hidden(params), params["head"], tokens, advantages, old_log_probs
    value, aux = softjax.linear_loss(ppo, *arrays, weights=mask, reduction="mean", has_aux=True)
    return value, [jnp.mean(seen, where=mask) for seen in aux]


@jax.jit
def rollout(params, key):
    tokens = jax.random.categorical(key, hidden(params) @ params["head"])
    mask = jnp.cumsum(tokens == EOS, axis=1) <= jnp.int32(tokens == EOS)  # all up to the first EOS, and that
    rewards = jnp.mean((tokens == prompts[:, None] + 1) & mask, axis=1)  # each prompt wants a token of its own
    advantages = jax.nn.standardize(rewards.reshape(PROMPTS, GROUP), epsilon=1e-8).reshape(-1, 1)
    s = softjax.linear_statistics(hidden(params), params["head"], tokens)
    return rewards.mean(), (tokens, jnp.broadcast_to(advantages, tokens.shape), -s.cross_entropy, mask)


@jax.jit
def step(params, state, batch):
    updates, state = optimiser.update(jax.grad(loss, has_aux=True)(params, *batch)[0], state)
    return optax.apply_updates(params, updates), state


shapes = {"prompt": (PROMPTS, FEATURES), "position": (LENGTH, FEATURES), "head": (FEATURES, VOCABULARY)}
params = {k: 0.1 * jax.random.normal(jax.random.key(i), shape) for i, (k, shape) in enumerate(shapes.items())}
optimiser = optax.adam(3e-3)
state = optimiser.init(params)
for i in range(41):
    reward, batch = rollout(params, jax.random.key(i))
    for _ in range(3):
        params, state = step(params, state, batch)
    if i % 10 == 0:
        entropy, clipped = loss(params, *batch)[1]
        print(f"step {i:2}  reward {reward:.2f}  entropy {entropy:.2f} nats  clipped {clipped:.0%}")
