"""Train a small language model on text. The loss is `softjax.linear_loss`, which never materialises the logits.

    python examples/train_lm.py                                # the settings of configs/lm.toml
    python examples/train_lm.py --text notes --pattern '*.md'  # any of them changed
    python examples/train_lm.py --mesh data=4,classes=2        # on 8 devices
    python examples/train_lm.py --resume                       # go on after an interrupt or a kill
    python examples/train_lm.py --overwrite                    # start anew in a folder that holds a run

The batch of a step depends on the seed and the step alone. So a checkpoint needs no data order and no random state, and
a resumed run still gives the same bits as an uninterrupted one.
"""

import functools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import softjax
from common import runs, settings
from common.settings import WrongInput
from language_model import baselines, data, plots
from language_model.data import Batches, Corpus
from language_model.evaluation import METRICS, evaluate, sample, token_metrics
from language_model.model import Transformer, hidden_and_kernel, labels_and_weights
from language_model.settings import DEFAULT_CONFIG, Config, Options

RESULTS = ("sample.txt", *plots.NAMES, "metrics.json")  # in the order of writing: metrics.json means that all are there
REPORT_EVERY = 5  # steps

Batch = dict[str, Any]  # `tokens`, [microbatches, sequences, tokens], and what else a loss needs of the same sequences
Loss = Callable[[Transformer, Batch, Config], tuple[Array, dict[str, Array]]]  # sums over the tokens of a microbatch


# The loss.


def fused_loss(model: Transformer, batch: Batch, config: Config) -> tuple[Array, dict[str, Array]]:
    """The sum of the losses of all tokens, in nats, and the sums of the metrics to log."""
    hidden, kernel = hidden_and_kernel(model, batch["tokens"][:, :-1], config)
    labels, weights = labels_and_weights(batch["tokens"], config, batch.get("active"))

    def token_loss(s: softjax.Statistics) -> tuple[Array, dict[str, Array]]:
        numbers = token_metrics(s, config.z_loss)
        return s.cross_entropy + numbers["z_loss"], numbers

    options: dict[str, Any] = {"weights": weights, "has_aux": True, **config.axis_names}
    total, numbers = softjax.linear_loss(token_loss, hidden, kernel, labels, **options)
    return total, {name: jnp.sum(jnp.where(weights, values, 0)) for name, values in numbers.items()}


def text_loss(model: Transformer, batch: Batch, config: Config) -> tuple[Array, dict[str, Array]]:
    """The fused loss, or the baseline that the setting `loss` names."""
    if config.loss == "fused":
        return fused_loss(model, batch, config)
    hidden, kernel = hidden_and_kernel(model, batch["tokens"][:, :-1], config)
    labels, weights = labels_and_weights(batch["tokens"], config, batch.get("active"))
    baseline = baselines.LOSSES[config.loss]
    return baseline(hidden, kernel, labels, weights, z_loss=config.z_loss, **config.axis_names), {}


TEXT: Loss = jax.tree_util.Partial(text_loss)  # a pytree, like any loss: others hold the parameters of a teacher


def mean_loss_and_gradient(
    model: Transformer, batch: Batch, config: Config, loss: Loss = TEXT
) -> tuple[tuple[Float[Array, ""], dict[str, Array]], Any]:
    """The mean loss and metrics over the tokens of the batch, and the gradient of this mean.

    Each microbatch adds its sum divided by the tokens of the whole batch. A mean of the means would give more weight to
    the tokens of a microbatch that has few.
    """
    active = batch["tokens"][..., :-1] != config.end
    active = active & batch["active"] if "active" in batch else active
    tokens = jnp.maximum(jnp.sum(active, dtype=jnp.float32), 1)

    def part_of_mean(model: Transformer, microbatch: Batch) -> tuple[Array, dict[str, Array]]:
        return jax.tree.map(lambda total: total / tokens, loss(model, microbatch, config))

    gradient_of_part = jax.value_and_grad(part_of_mean, has_aux=True)

    def add(total: Any, microbatch: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient_of_part(model, microbatch)), None

    first = jax.tree.map(lambda leaf: leaf[0], batch)
    if len(batch["tokens"]) == 1:
        return gradient_of_part(model, first)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient_of_part, model, first))
    return jax.lax.scan(add, zero, batch)[0]


# A step of training.


class State(NamedTuple):
    """What a run carries from one step to the next, and what a checkpoint holds."""

    model: Transformer
    optimiser: optax.OptState
    step: jax.Array
    curves: dict[str, jax.Array]  # one value per step or evaluation, NaN for those to come and metrics not logged


def make_optimiser(config: Config) -> optax.GradientTransformation:
    warmup = min(config.warmup_steps, config.steps - 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.steps)

    def is_matrix(model: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim >= 2, model)

    adamw = optax.adamw(rate, b2=0.95, weight_decay=config.weight_decay, mask=is_matrix)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


@functools.partial(jax.jit, static_argnames="config")
def initial_state(config: Config) -> State:
    key = jax.random.key(config.seed)
    size = (config.vocabulary, config.features, config.heads, config.layers)
    model: Any = Transformer(*size, tied=config.tied, key=key)
    curves = {name: jnp.full(config.steps, jnp.nan) for name in ("loss", "gradient_norm", *METRICS)}
    curves["test_loss"] = jnp.full(len(evaluation_steps(config)), jnp.nan)
    return shard_state(State(model, make_optimiser(config).init(model), jnp.int32(0), curves))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(state: State, batch: Batch, config: Config, loss: Loss = TEXT) -> State:
    batch = jax.tree.map(lambda leaf: settings.shard(leaf, None, "data"), batch)
    model: Any = state.model
    (mean, numbers), gradient = mean_loss_and_gradient(model, batch, config, loss)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        updates, optimiser = make_optimiser(config).update(gradient, state.optimiser, model)
    model = optax.apply_updates(model, updates)
    numbers = {"loss": mean, "gradient_norm": optax.tree.norm(gradient), **numbers}
    curves = state.curves | {name: state.curves[name].at[state.step].set(value) for name, value in numbers.items()}
    return shard_state(State(model, optimiser, state.step + 1, curves))


def shard_state(state: State) -> State:
    """On a mesh, shards every array that has a vocabulary axis along that axis, and copies the others."""
    axes = {"embedding": ("classes",), "head": (None, "classes")}

    def shard_leaf(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return settings.shard(leaf, *axes.get(name, ()))

    return jax.tree_util.tree_map_with_path(shard_leaf, state)


# The loop.


def train(state: State, batches: Batches, corpus: Corpus, config: Config, run: runs.Run, loss: Loss = TEXT) -> State:
    evaluations = evaluation_steps(config)
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(10), TextColumn("{task.description}"))
    with run.finish_steps(), Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("", total=config.steps, completed=int(state.step))
        reported, clock = int(state.step), time.perf_counter()
        for step in range(int(state.step) + 1, config.steps + 1):
            state = train_step(state, batches[step - 1], config, loss)
            is_due = run.is_due(step)
            if not (is_due or step in evaluations or step % REPORT_EVERY == 0):
                continue  # without waiting for the device
            refuse_divergence(state, run)
            speed = (step - reported) / (time.perf_counter() - clock)
            progress.update(bar, completed=step, description=report(state, speed, corpus, config))
            if step in evaluations:
                nats = evaluate(state.model, corpus, config).nats_per_token
                curve = state.curves["test_loss"].at[evaluations.index(step)].set(nats)
                state = state._replace(curves=state.curves | {"test_loss": curve})
            if is_due:
                run.save(step, state)
            reported, clock = step, time.perf_counter()
    return state


def evaluation_steps(config: Config) -> list[int]:
    return sorted({*range(config.evaluate_every, config.steps + 1, config.evaluate_every), config.steps})


def refuse_divergence(state: State, run: runs.Run) -> None:
    """Called before each save: a gradient that is not finite has already spoilt the parameters."""
    for name in ("loss", "gradient_norm"):
        curve = np.asarray(state.curves[name])[: int(state.step)]
        wrong = np.flatnonzero(~np.isfinite(curve))
        if wrong.size:
            value = f"the {name.replace('_', ' ')} is {curve[wrong[0]]} at step {wrong[0] + 1}"
            raise WrongInput(f"{value}: lower `learning_rate`; {run.last_good()}.")


def recent_means(state: State) -> dict[str, float]:
    """The loss and the logged metrics, means over the last `REPORT_EVERY` steps."""
    step = int(state.step)
    recent = slice(max(step - REPORT_EVERY, 0), step)
    means = {name: float(np.mean(np.asarray(state.curves[name])[recent])) for name in ("loss", *METRICS)}
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def report(state: State, steps_per_second: float, corpus: Corpus, config: Config) -> str:
    """The text of the progress bar."""
    means = recent_means(state)
    parts = [f"loss {means['loss']:.3f} nats/token"]
    if "cross_entropy" in means:
        bits = means["cross_entropy"] / math.log(2) / corpus.bytes_per_token(config.vocabulary)
        parts += [f"{bits:.3f} bits/byte", f"accuracy {means['accuracy']:.1%}"]
    tokens_per_second = steps_per_second * config.batch_size * config.sequence_length
    return ", ".join([*parts, f"{tokens_per_second:,.0f} tokens/s"])


# The program.


@runs.exit_status
def main(argv: Sequence[str] | None = None) -> None:
    options = settings.parse(Options, argv, DEFAULT_CONFIG)
    config = options.settings
    with config.on_mesh():
        corpus = data.load(config)
        decisive = settings.decisive(config) | {"text": corpus.fingerprint}
        times = {"every": config.checkpoint_every, "last": config.steps}
        with runs.open_run(config.output, options, decisive, RESULTS, **times) as run:
            state = run.restore(initial_state(config))
            if state.step:
                print(f"Resumed after step {int(state.step)}.")
            state = train(state, Batches(corpus, config), corpus, config, run)
            publish(state, corpus, config, run)


def publish(state: State, corpus: Corpus, config: Config, run: runs.Run) -> None:
    test = evaluate(state.model, corpus, config)
    text = sample(state.model, corpus.tokenizer, config)
    results = {
        "settings": settings.decisive(config),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.model)),
        "train": {
            "tokens": len(corpus.train),
            "bytes": int(corpus.token_bytes(config.vocabulary)[corpus.train].sum()),
            "last_steps": recent_means(state),
        },
        "test": {
            "tokens": int(test.tokens.sum()),
            "bytes": test.bytes,
            "nats_per_token": test.nats_per_token,
            "bits_per_byte": test.bits_per_byte,
            "perplexity": test.perplexity,
            **test.means,
            "calibration_error": float(test.calibration.expected_error()),
        },
    }
    curves = {name: np.asarray(curve) for name, curve in state.curves.items()}
    drawn = plots.draw(curves, evaluation_steps(config), test, config.batch_size * config.sequence_length)
    run.publish({"sample.txt": text.encode(), "metrics.json": (json.dumps(results, indent=2) + "\n").encode(), **drawn})
    print(f"A sample:\n\n{text}\n")
    print(
        "Held-out files: {nats_per_token:.3f} nats per token, {bits_per_byte:.3f} bits per byte, perplexity "
        "{perplexity:.1f} ({bytes:,} bytes, {tokens:,} tokens).\nAccuracy {accuracy:.1%}, top-5 accuracy "
        "{top_5_accuracy:.1%}, entropy {entropy:.3f} nats, z-loss {z_loss:.3f}, expected calibration error "
        "{calibration_error:.3f}.".format(**results["test"])
    )
    print(f"Results: {config.output}")


if __name__ == "__main__":
    sys.exit(main())
