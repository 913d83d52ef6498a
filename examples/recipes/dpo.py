"""Fine-tune a language model on preference pairs with DPO, without a reward model.

Use this when people have preferred one of two answers to each prompt. The log-probability of an answer is the negative
sum of its tokens' cross-entropies. `softjax.linear_cross_entropy` with `reduction="none"` returns these without
materialising the logits. Value and gradients cost four matmuls, one more than a mean: the logits are computed twice.

Source: Rafailov et al. 2023, arXiv:2305.18290.
"""

import math

import jax
import jax.numpy as jnp
import optax

import softjax

VOCABULARY = 64
FEATURES = 32
PAIRS = 64
PROMPT_LENGTH = 4
ANSWER_LENGTH = 16
CHOSEN, REJECTED = 0, 1  # indices of the first axis of all arrays
BETA = 0.1


def make_pairs(key):
    """Returns tokens and the mask of the answers, `[2, pairs, positions]`.

    The chosen answer has even tokens, the rejected answer has odd tokens. Their lengths differ.
    """
    prompt_key, answer_key, length_key = jax.random.split(key, 3)
    prompts = jax.random.randint(prompt_key, (PAIRS, PROMPT_LENGTH), 0, VOCABULARY)
    even_tokens = 2 * jax.random.randint(answer_key, (2, PAIRS, ANSWER_LENGTH), 0, VOCABULARY // 2)
    answers = jnp.stack([even_tokens[CHOSEN], even_tokens[REJECTED] + 1])
    tokens = jnp.concatenate([jnp.stack([prompts, prompts]), answers], axis=-1)

    answer_end = PROMPT_LENGTH + jax.random.randint(length_key, (2, PAIRS, 1), 4, ANSWER_LENGTH + 1)
    position = jnp.arange(PROMPT_LENGTH + ANSWER_LENGTH).reshape(1, 1, -1)
    is_answer = (position >= PROMPT_LENGTH) & (position < answer_end)
    return tokens, is_answer


embedding_key, layer_key, head_key = jax.random.split(jax.random.key(0), 3)
params = {
    "embedding": 0.1 * jax.random.normal(embedding_key, (VOCABULARY, FEATURES)),
    "layer": 0.1 * jax.random.normal(layer_key, (FEATURES, FEATURES)),
    "head": 0.1 * jax.random.normal(head_key, (FEATURES, VOCABULARY)),
}


@jax.jit
def log_probability(params, tokens: jax.Array, is_answer: jax.Array) -> jax.Array:
    """Returns ln π(answer | prompt) of each answer, in nats, `[2, pairs]`."""
    embedded = params["embedding"][tokens[..., :-1]]
    hidden = embedded + jax.nn.gelu(embedded @ params["layer"])
    token_nats = softjax.linear_cross_entropy(
        hidden, params["head"], tokens[..., 1:], weights=is_answer[..., 1:], reduction="none", base=math.e
    )
    return -jnp.sum(token_nats, axis=-1)


def loss_fn(params, tokens: jax.Array, is_answer: jax.Array, reference: jax.Array):
    """Returns the mean of −ln σ(chosen reward − rejected reward), and how often the chosen reward is the larger one.

    The reward of an answer is β (ln π − ln π_ref). `reference` is ln π_ref, from the model before fine-tuning.
    """
    rewards = BETA * (log_probability(params, tokens, is_answer) - reference)
    margin = rewards[CHOSEN] - rewards[REJECTED]
    return -jnp.mean(jax.nn.log_sigmoid(margin)), jnp.mean(margin > 0)


train_tokens, train_is_answer = make_pairs(jax.random.key(1))
test_tokens, test_is_answer = make_pairs(jax.random.key(2))
train_reference = log_probability(params, train_tokens, train_is_answer)
test_reference = log_probability(params, test_tokens, test_is_answer)

optimiser = optax.adam(learning_rate=1e-2)
opt_state = optimiser.init(params)


@jax.jit
def train_step(params, opt_state, tokens, is_answer, reference):
    gradients, _ = jax.grad(loss_fn, has_aux=True)(params, tokens, is_answer, reference)
    updates, opt_state = optimiser.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state


evaluate = jax.jit(loss_fn)
for step in range(21):
    if step % 5 == 0:
        loss, accuracy = evaluate(params, test_tokens, test_is_answer, test_reference)
        print(f"step {step:2}: held-out loss {loss:.3f} nats per pair, chosen answer preferred in {accuracy:.0%}")
    params, opt_state = train_step(params, opt_state, train_tokens, train_is_answer, train_reference)
