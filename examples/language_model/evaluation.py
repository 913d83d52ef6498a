"""What a trained language model is worth: its numbers on held-out text, and a sample of its own."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from tokenizers import Tokenizer

import softjax
from language_model.data import Corpus, pack
from language_model.loss import last_layer, measure
from language_model.model import Transformer
from language_model.settings import Config
from softjax import metrics

BINS = 15  # of the confidences


class Evaluation(NamedTuple):
    """Sums over held-out text, so that every mean is exact."""

    sums: dict[str, np.ndarray]  # [positions]: of what is measured of the tokens at each position of a sequence
    tokens: np.ndarray  # [positions]: how many these are
    bytes: int  # of text that all of them stand for
    calibration: metrics.Calibration

    @property
    def nats(self) -> np.ndarray:
        return self.sums["cross_entropy"]

    @property
    def means(self) -> dict[str, float]:
        """Of each number that is measured, over the tokens."""
        return {name: float(of.sum() / self.tokens.sum()) for name, of in self.sums.items()}

    @property
    def nats_per_token(self) -> float:
        return self.means["cross_entropy"]

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum() / math.log(2) / self.bytes)

    @property
    def perplexity(self) -> float:
        # e^709 is about the largest number that a float, and so JSON, can hold.
        return math.exp(min(self.nats_per_token, 709))


def evaluate(model: Transformer, corpus: Corpus, config: Config) -> Evaluation:
    """Of the held-out files, whatever route the loss of the training takes."""
    sums, calibration = over_held_out(functools.partial(_sums, model, config=config), corpus, config)
    rows = pack(corpus.test, config.sequence_length, config.end)
    counted = rows[:, :-1] != config.end
    lengths = corpus.token_bytes(config.vocabulary)[rows[:, 1:]]
    return Evaluation(sums, counted.sum(axis=0), int(lengths[counted].sum()), calibration)


def over_held_out(sums: Callable[[np.ndarray], Any], corpus: Corpus, config: Config) -> Any:
    """Adds up, in float64, what `sums` gives of each batch of the held-out files' sequences."""
    rows = pack(corpus.test, config.sequence_length, config.end)
    sequences = config.batch_size // config.microbatches
    filled = np.full((-len(rows) % sequences, rows.shape[1]), config.end, np.int32)
    batches = np.concatenate([rows, filled]).reshape(-1, sequences, rows.shape[1])
    parts = (jax.tree.map(np.float64, sums(batch)) for batch in batches)
    return functools.reduce(functools.partial(jax.tree.map, np.add), parts)


@functools.partial(jax.jit, static_argnames="config")
def _sums(
    model: Transformer, rows: Int[Array, "sequences tokens"], config: Config
) -> tuple[dict[str, Array], metrics.Calibration]:
    """By position those of what is measured, and how rightly the model is sure."""
    *arrays, weights = last_layer(model, rows, config)

    def of_token(s: softjax.Statistics) -> tuple[Array, Any]:
        return s.cross_entropy, (measure(s, config.z_loss), metrics.calibration(s, BINS))

    options: dict[str, Any] = {"weights": weights, "has_aux": True, **config.axis_names}
    _, of_tokens = softjax.linear_loss(of_token, *arrays, **options)

    def counted(number: Array) -> Array:
        return jnp.where(weights.reshape(-1, *(1,) * (number.ndim - 1)), number, 0)

    numbers, calibration = jax.tree.map(counted, of_tokens)
    by_position = {name: jnp.sum(number.reshape(len(rows), -1), axis=0) for name, number in numbers.items()}
    return by_position, jax.tree.map(lambda bins: jnp.sum(bins, axis=0), calibration)


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
