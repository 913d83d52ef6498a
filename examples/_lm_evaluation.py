"""What a trained language model is worth: its loss on held-out text, and a sample of its own."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _lm_config import Config
from _lm_data import Corpus, pack
from _lm_loss import token_losses
from _lm_model import Transformer
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer


class Evaluation(NamedTuple):
    """Sums over held-out text, so that every mean is exact."""

    nats: np.ndarray  # [positions]: of the tokens at each position of a sequence
    tokens: np.ndarray  # [positions]: how many these are
    bytes: int  # of text that all of them stand for

    @property
    def nats_per_token(self) -> float:
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum() / math.log(2) / self.bytes)

    @property
    def perplexity(self) -> float:
        # e^709 is about the largest number that a float, and so JSON, can hold.
        return math.exp(min(self.nats_per_token, 709))


def evaluate(model: Transformer, corpus: Corpus, config: Config) -> Evaluation:
    """The loss on the held-out files, without the z-loss."""
    rows = pack(corpus.test, config.sequence_length, config.end)
    sequences = config.batch_size // config.microbatches
    filled = np.full((-len(rows) % sequences, rows.shape[1]), config.end, np.int32)
    batches = np.concatenate([rows, filled]).reshape(-1, sequences, rows.shape[1])
    nats = sum(np.asarray(_nats_by_position(model, batch, config), np.float64) for batch in batches)
    counted = rows[:, :-1] != config.end
    lengths = corpus.token_bytes(config.vocabulary)[rows[:, 1:]]
    return Evaluation(np.asarray(nats), counted.sum(axis=0), int(lengths[counted].sum()))


@functools.partial(jax.jit, static_argnames="config")
def _nats_by_position(
    model: Transformer, rows: Int[Array, "sequences tokens"], config: Config
) -> Float[Array, " positions"]:
    return jnp.sum(token_losses(model, rows, config, z_loss=0.0, reduction="none"), axis=0)


def sample(model: Transformer, tokenizer: Tokenizer, config: Config) -> str:
    """The prompt, and what the model writes after it until a file ends or the sample is full."""
    prompt = tokenizer.encode(config.prompt).ids[-config.sequence_length :]
    tokens = np.full(config.sequence_length, config.end, np.int32)
    tokens[: len(prompt)] = prompt
    length = min(len(prompt) + config.sample_tokens, config.sequence_length)
    written = np.asarray(_continue(model, tokens, len(prompt), length, config))[len(prompt) : length]
    written = written[: np.argmax(written == config.end)] if (written == config.end).any() else written
    return config.prompt + tokenizer.decode(written.tolist())


@functools.partial(jax.jit, static_argnames="config")
def _continue(
    model: Transformer, tokens: Int[Array, " positions"], start: Array, stop: Array, config: Config
) -> Int[Array, " positions"]:
    # Each token runs the whole window through the model: a cache of keys and values would save this, at some length.
    key = jax.random.key(config.seed)

    def write(position: Array, tokens: Array) -> Array:
        hidden = model(tokens)[position - 1]
        logits = hidden @ model.kernel / config.temperature
        token = jax.random.categorical(jax.random.fold_in(key, position), logits)
        return tokens.at[position].set(token.astype(tokens.dtype))

    return jax.lax.fori_loop(start, stop, write, tokens)
