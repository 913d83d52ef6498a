"""Train a policy with GRPO: the clipped loss of PPO, with rewards standardised within the completions of one prompt.

Use this to fine-tune a language model on rewards of whole completions. A token's loss needs only its cross-entropy and
the policy's entropy. So `softjax.linear_loss` gives loss, gradients and metrics in three matmuls, without the logits.

Sources: PPO, arXiv:1707.06347; GRPO, arXiv:2402.03300; the mean over all tokens, arXiv:2503.14476.
"""

import jax
import jax.numpy as jnp
import optax

import softjax

PROMPTS = 8
COMPLETIONS = 16  # per prompt
LENGTH = 6
VOCABULARY = 32
FEATURES = 64
END_OF_SEQUENCE = 0
CLIP = 0.2  # ε
ENTROPY_BONUS = 0.01  # c

# A small policy: the hidden state depends on the prompt and on the position only.
prompt_ids = jnp.repeat(jnp.arange(PROMPTS), COMPLETIONS)
prompt_key, position_key, head_key = jax.random.split(jax.random.key(0), 3)
params = {
    "prompt": 0.1 * jax.random.normal(prompt_key, (PROMPTS, FEATURES)),
    "position": 0.1 * jax.random.normal(position_key, (LENGTH, FEATURES)),
    "head": 0.1 * jax.random.normal(head_key, (FEATURES, VOCABULARY)),
}


def hidden_states(params) -> jax.Array:
    """Returns `[completions, positions, features]`."""
    return jax.nn.tanh(params["prompt"][prompt_ids][:, None, :] + params["position"][None, :, :])


@jax.jit
def rollout(params, key):
    """Samples completions. Returns their mean reward and the batch to train on."""
    hidden = hidden_states(params)
    tokens = jax.random.categorical(key, hidden @ params["head"])

    # The mask keeps each completion up to its first end-of-sequence token, and that token.
    is_end = (tokens == END_OF_SEQUENCE).astype(jnp.int32)
    ends_before = jnp.cumsum(is_end, axis=1) - is_end
    mask = ends_before == 0

    # The reward is the fraction of positions with the token that the prompt asks for, its id + 1.
    rewards = jnp.mean((tokens == prompt_ids[:, None] + 1) & mask, axis=1)
    advantages = jax.nn.standardize(rewards.reshape(PROMPTS, COMPLETIONS), axis=1, epsilon=1e-8)
    batch = {
        "tokens": tokens,
        "mask": mask,
        "advantages": jnp.broadcast_to(advantages.reshape(-1, 1), tokens.shape),
        "old_log_probabilities": -softjax.linear_statistics(hidden, params["head"], tokens).cross_entropy,
    }
    return jnp.mean(rewards), batch


def token_loss(statistics: softjax.Statistics, advantage: jax.Array, old_log_probability: jax.Array):
    """Returns −min(r A, clip(r, 1 − ε, 1 + ε) A) − c H with the ratio r = exp(ln q_new − ln q_old), and two metrics."""
    ratio = jnp.exp(-statistics.cross_entropy - old_log_probability)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    metrics = {"entropy": statistics.entropy, "clipped": jnp.abs(ratio - 1) > CLIP}
    return -surrogate - ENTROPY_BONUS * statistics.entropy, metrics


def loss_fn(params, batch):
    """Returns the mean loss over all tokens, and the mean of each metric."""
    hidden, mask = hidden_states(params), batch["mask"]
    # The tokens are the labels. `linear_loss` passes the other two arrays on to `token_loss`.
    token_arrays = batch["tokens"], batch["advantages"], batch["old_log_probabilities"]
    loss, token_metrics = softjax.linear_loss(
        token_loss, hidden, params["head"], *token_arrays, weights=mask, reduction="mean", has_aux=True
    )
    return loss, {name: jnp.mean(values, where=mask) for name, values in token_metrics.items()}


optimiser = optax.adam(learning_rate=3e-3)
opt_state = optimiser.init(params)


@jax.jit
def train_step(params, opt_state, batch):
    gradients, _ = jax.grad(loss_fn, has_aux=True)(params, batch)
    updates, opt_state = optimiser.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state


evaluate = jax.jit(loss_fn)
for step in range(41):
    reward, batch = rollout(params, jax.random.key(step))
    for _ in range(3):  # three updates per rollout
        params, opt_state = train_step(params, opt_state, batch)
    if step % 10 == 0:
        loss, metrics = evaluate(params, batch)
        entropy, clipped = metrics["entropy"], metrics["clipped"]
        print(f"step {step:2}: reward {reward:.2f}, entropy {entropy:.2f} nats per token, clipped {clipped:.0%}")
