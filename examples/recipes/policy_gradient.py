"""Train a policy with GRPO and its relatives: DAPO, Dr. GRPO, CISPO, SAPO and GSPO, with a penalty to a reference.

Use this to fine-tune a language model on rewards of whole completions. A token's loss needs only its cross-entropy and
the policy's entropy. So `softjax.linear_loss` gives loss, gradients and metrics in three matmuls, without the logits.
Prompt and padding tokens have weight 0 and cost no matmul. GSPO needs the log-probabilities of a whole completion at
once, so it uses `softjax.linear_statistics`.

Sources: GRPO, arXiv:2402.03300; DAPO, arXiv:2503.14476; Dr. GRPO, arXiv:2503.20783; CISPO, arXiv:2506.13585; SAPO,
arXiv:2511.20347; GSPO, arXiv:2507.18071; the penalty, http://joschu.net/blog/kl-approx.html.
"""

import jax
import jax.numpy as jnp
import optax

import softjax

PROMPTS, COMPLETIONS, LENGTH = 8, 16, 6  # completions of each prompt, and their longest length
VOCABULARY, FEATURES, END_OF_SEQUENCE = 32, 64, 0
TEMPERATURE = 1.2  # of sampling, and so of the loss
LOW, HIGH = 0.2, 0.28  # the ratio is clipped to [1 − LOW, 1 + HIGH]
SEQUENCE_LOW, SEQUENCE_HIGH = 3e-2, 4e-2  # the same for GSPO, whose ratio is a geometric mean
SOFTNESS = 1.0, 1.05  # SAPO's τ for positive and for other advantages
PENALTY = 1e-3  # β

# A small policy: the hidden state depends on the prompt and on the position only.
prompt_ids = jnp.repeat(jnp.arange(PROMPTS), COMPLETIONS)
prompt_key, position_key, head_key = jax.random.split(jax.random.key(0), 3)
initial_params = {
    "prompt": 0.1 * jax.random.normal(prompt_key, (PROMPTS, FEATURES)),
    "position": 0.1 * jax.random.normal(position_key, (LENGTH, FEATURES)),
    "head": 0.1 * jax.random.normal(head_key, (FEATURES, VOCABULARY)),
}


def hidden_states(params) -> jax.Array:
    """Returns `[completions, positions, features]`."""
    return jax.nn.tanh(params["prompt"][prompt_ids][:, None, :] + params["position"][None, :, :])


def log_probabilities(params, tokens):
    s = softjax.linear_statistics(hidden_states(params), params["head"], tokens, temperature=TEMPERATURE)
    return -s.cross_entropy


@jax.jit
def rollout(params, key):
    """Samples completions. Returns their mean reward and the batch to train on."""
    tokens = jax.random.categorical(key, hidden_states(params) @ params["head"] / TEMPERATURE)
    is_end = (tokens == END_OF_SEQUENCE).astype(jnp.int32)
    mask = jnp.cumsum(is_end, axis=1) - is_end == 0  # up to the first end of sequence, and that token
    rewards = jnp.mean((tokens == prompt_ids[:, None] + 1) & mask, axis=1)  # the token that the prompt asks for
    centred = rewards - jnp.repeat(rewards.reshape(PROMPTS, COMPLETIONS).mean(1), COMPLETIONS)
    spread = jnp.repeat(rewards.reshape(PROMPTS, COMPLETIONS).std(1), COMPLETIONS)
    batch = {"tokens": tokens, "mask": mask, "centred": centred, "advantages": centred / (spread + 1e-8)}
    batch["old"] = log_probabilities(params, tokens)
    return jnp.mean(rewards), batch | {"reference": log_probabilities(initial_params, tokens)}


def token_loss(algorithm):
    """Returns the loss of one token, and its metrics, as a function for `linear_loss`."""

    def loss(s: softjax.Statistics, advantage, old, reference):
        log_p = -s.cross_entropy
        ratio, d = jnp.exp(log_p - old), reference - log_p
        high = HIGH if algorithm == "dapo" else LOW
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - LOW, 1 + high) * advantage)
        if algorithm == "cispo":  # the clipped ratio is a constant weight of the log-probability
            gain = jax.lax.stop_gradient(jnp.minimum(ratio, 1 + HIGH)) * advantage * log_p
        if algorithm == "sapo":  # a soft gate instead of the clip
            tau = jnp.where(advantage > 0, *SOFTNESS)
            gain = 4 / tau * jax.nn.sigmoid(tau * (ratio - 1)) * advantage
        metrics = {"entropy": s.entropy, "clipped": (ratio < 1 - LOW) | (ratio > 1 + high)}
        return -gain + PENALTY * (jnp.exp(d) - d - 1), metrics

    return loss


def loss_fn(params, batch, algorithm):
    """Returns the loss of a batch, and the mean of each metric over its tokens."""
    mask, active = batch["mask"], batch["mask"].astype(jnp.float32)
    lengths = jnp.sum(active, axis=1, keepdims=True)
    if algorithm == "gspo":  # one ratio for each completion
        change = jnp.sum(jnp.where(mask, log_probabilities(params, batch["tokens"]) - batch["old"], 0), axis=1)
        ratio, advantage = jnp.exp(change / lengths[:, 0]), batch["advantages"]
        clipped = jnp.clip(ratio, 1 - SEQUENCE_LOW, 1 + SEQUENCE_HIGH)
        return -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage)), {"clipped": jnp.mean(ratio != clipped)}
    token_weights = active / (len(mask) * lengths)  # GRPO and SAPO: the mean of each completion, then over completions
    if algorithm in ("dapo", "cispo"):
        token_weights = active / jnp.sum(active)  # the mean over all tokens
    if algorithm == "dr_grpo":
        token_weights = active / mask.size  # a constant, so that length has no effect
    advantages = batch["centred" if algorithm == "dr_grpo" else "advantages"][:, None]
    row_args = advantages, batch["old"], batch["reference"]
    loss, metrics = softjax.linear_loss(
        token_loss(algorithm), hidden_states(params), params["head"], batch["tokens"], *row_args,
        weights=token_weights, temperature=TEMPERATURE, has_aux=True,
    )  # fmt: skip
    return loss, {name: jnp.mean(values, where=mask) for name, values in metrics.items()}


def train(algorithm, steps):
    """Returns the mean reward before and after the training."""
    optimiser, params = optax.adam(learning_rate=3e-3), initial_params

    @jax.jit
    def train_step(params, opt_state, batch):
        gradients, _ = jax.grad(loss_fn, has_aux=True)(params, batch, algorithm)
        updates, opt_state = optimiser.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state, rewards = optimiser.init(params), []
    for step in range(steps):
        reward, batch = rollout(params, jax.random.key(step))
        rewards.append(reward)
        for _ in range(3):  # updates of each rollout
            params, opt_state = train_step(params, opt_state, batch)
    return rewards[0], rewards[-1]


for name in ("grpo", "dapo", "dr_grpo", "cispo", "sapo", "gspo"):
    first, last = train(name, steps=31)
    print(f"{name:7}: reward {first:.2f} at first, {last:.2f} after 30 rollouts")
