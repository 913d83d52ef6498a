"""The metrics of a language model on held-out text, and a sample of its own text."""

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
from language_model.model import Transformer, hidden_and_kernel, labels_and_weights
from language_model.settings import Config
from softjax import metrics

BINS = 15  # of the confidences

METRICS = ("cross_entropy", "z_loss", "accuracy", "top_5_accuracy", "entropy")


def token_metrics(s: softjax.Statistics, z_loss: float) -> dict[str, Array]:
    """The `METRICS` of one token, the losses and the entropy in nats. The fused training loss logs their means."""
    return {
        "cross_entropy": s.cross_entropy,
        # With weight 0 the log-normaliser is not read, and so costs nothing.
        "z_loss": z_loss * s.log_normalizer**2 if z_loss else jnp.zeros_like(s.cross_entropy),
        "accuracy": metrics.accuracy(s),
        "top_5_accuracy": metrics.top_k_accuracy(s, 5),
        "entropy": s.entropy,
    }


class Evaluation(NamedTuple):
    """Sums over the held-out text, from which every mean follows."""

    sums: dict[str, np.ndarray]  # [positions]: of each metric, over the tokens at one position of a sequence
    tokens: np.ndarray  # [positions]: the number of these tokens
    bytes: int  # of text in all of them
    calibration: metrics.Calibration

    @property
    def nats(self) -> np.ndarray:
        return self.sums["cross_entropy"]

    @property
    def means(self) -> dict[str, float]:
        """Each metric per token."""
        return {name: float(values.sum() / self.tokens.sum()) for name, values in self.sums.items()}

    @property
    def nats_per_token(self) -> float:
        return self.means["cross_entropy"]

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum() / math.log(2) / self.bytes)

    @property
    def perplexity(self) -> float:
        # JSON has no infinity, and e^709 is close to the largest float.
        return math.exp(min(self.nats_per_token, 709))


def evaluate(model: Transformer, corpus: Corpus, config: Config) -> Evaluation:
    """Evaluates the model on the held-out files."""
    sums, calibration = sum_over_held_out(functools.partial(_sums, model, config=config), corpus, config)
    rows = pack(corpus.test, config.sequence_length, config.end)
    active = rows[:, :-1] != config.end
    lengths = corpus.token_bytes(config.vocabulary)[rows[:, 1:]]
    return Evaluation(sums, active.sum(axis=0), int(lengths[active].sum()), calibration)


def sum_over_held_out(sums: Callable[[np.ndarray], Any], corpus: Corpus, config: Config) -> Any:
    """Adds `sums(batch)` over all batches of the held-out files, in float64."""
    rows = pack(corpus.test, config.sequence_length, config.end)
    sequences = config.batch_size // config.microbatches
    padding = np.full((-len(rows) % sequences, rows.shape[1]), config.end, np.int32)
    batches = np.concatenate([rows, padding]).reshape(-1, sequences, rows.shape[1])
    parts = (jax.tree.map(np.float64, sums(batch)) for batch in batches)
    return functools.reduce(functools.partial(jax.tree.map, np.add), parts)


@functools.partial(jax.jit, static_argnames="config")
def _sums(
    model: Transformer, rows: Int[Array, "sequences tokens"], config: Config
) -> tuple[dict[str, Array], metrics.Calibration]:
    """The metrics by position, and the calibration."""
    hidden, kernel = hidden_and_kernel(model, rows[:, :-1], config)
    labels, weights = labels_and_weights(rows, config)

    def token_loss(s: softjax.Statistics) -> tuple[Array, Any]:
        return s.cross_entropy, (token_metrics(s, config.z_loss), metrics.calibration(s, BINS))

    options: dict[str, Any] = {"weights": weights, "has_aux": True, **config.axis_names}
    _, values = softjax.linear_loss(token_loss, hidden, kernel, labels, **options)

    def zero_ignored(value: Array) -> Array:
        return jnp.where(weights.reshape(-1, *(1,) * (value.ndim - 1)), value, 0)

    numbers, calibration = jax.tree.map(zero_ignored, values)
    by_position = {name: jnp.sum(value.reshape(len(rows), -1), axis=0) for name, value in numbers.items()}
    return by_position, jax.tree.map(lambda bins: jnp.sum(bins, axis=0), calibration)


def sample(model: Transformer, tokenizer: Tokenizer, config: Config) -> str:
    """The prompt, and the text that the model writes after it, up to the end of a file or the length of the sample."""
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
    # Each token recomputes the hidden states of all positions. A cache of keys and values would be faster and longer.
    key = jax.random.key(config.seed)

    def write(position: Array, tokens: Array) -> Array:
        hidden = model(tokens)[position - 1]
        logits = hidden @ model.kernel / config.temperature
        token = jax.random.categorical(jax.random.fold_in(key, position), logits)
        return tokens.at[position].set(token.astype(tokens.dtype))

    return jax.lax.fori_loop(start, stop, write, tokens)
