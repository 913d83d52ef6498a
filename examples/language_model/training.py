"""A step of the language model's training, and the whole of it."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common import program
from common.checkpoint import Checkpoints
from common.program import WrongInput
from language_model.data import Batches, Corpus
from language_model.evaluation import evaluate
from language_model.loss import TEXT, Loss, OfText, mean_loss_and_gradient
from language_model.model import Transformer
from language_model.settings import Config

REPORT_EVERY = 5  # steps


class State(NamedTuple):
    """All that a run carries from one step to the next, and so all that a checkpoint holds."""

    model: Transformer
    optimiser: optax.OptState
    step: jax.Array
    curves: dict[str, jax.Array]  # one number a step, or an evaluation; NaN for those to come


def make_optimiser(config: Config) -> optax.GradientTransformation:
    warmup = min(config.warmup_steps, config.steps - 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.steps)

    def is_matrix(model: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim >= 2, model)

    adamw = optax.adamw(rate, b2=0.95, weight_decay=config.weight_decay, mask=is_matrix)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


@functools.partial(jax.jit, static_argnames="config")
def initial_state(config: Config, loss: Loss = TEXT) -> State:
    model: Any = Transformer(
        config.vocabulary,
        config.features,
        config.heads,
        config.layers,
        tied=config.tied,
        key=jax.random.key(config.seed),
    )
    lengths = dict.fromkeys(("loss", "gradient_norm", *loss.measured(config)), config.steps)
    lengths |= {"test_loss": len(evaluation_steps(config))}
    curves = {name: jnp.full(length, jnp.nan) for name, length in lengths.items()}
    return on_mesh(State(model, make_optimiser(config).init(model), jnp.int32(0), curves), config)


def on_mesh(state: State, config: Config) -> State:
    """On a mesh, what has the vocabulary for an axis is split along it; every device holds the rest."""
    if not config.mesh:
        return state
    split = {"embedding": P("classes"), "head": P(None, "classes")}

    def lay(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return jax.lax.with_sharding_constraint(leaf, split.get(name, P()))

    return jax.tree_util.tree_map_with_path(lay, state)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(
    state: State,
    batch: Int[Array, "microbatches sequences tokens"],
    config: Config,
    loss: Loss = TEXT,
    beside: Any = (),
) -> State:
    if config.mesh:
        batch, beside = jax.lax.with_sharding_constraint((batch, beside), P(None, "data"))
    model: Any = state.model
    (mean, measured), gradient = mean_loss_and_gradient(model, batch, config, loss, beside)
    # optax mixes its int32 count of steps with floats, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        updates, optimiser = make_optimiser(config).update(gradient, state.optimiser, model)
    numbers = {"loss": mean, "gradient_norm": optax.tree.norm(gradient), **measured}
    curves = state.curves | {name: state.curves[name].at[state.step].set(value) for name, value in numbers.items()}
    model = optax.apply_updates(model, updates)
    return on_mesh(State(model, optimiser, state.step + 1, curves), config)


def evaluation_steps(config: Config) -> list[int]:
    return sorted({*range(config.evaluate_every, config.steps + 1, config.evaluate_every), config.steps})


def train(
    state: State,
    corpus: Corpus,
    config: Config,
    checkpoints: Checkpoints,
    loss: Loss = TEXT,
    beside: Callable[[int], Any] = lambda step: (),
) -> State:
    """Learns by `loss` from the text, and from what lies `beside` each step's sequences, in the order of a batch."""
    batches, evaluations = Batches(corpus, config), evaluation_steps(config)
    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(30), TextColumn("{task.description}"))
    with program.stop_requested() as stopped, Progress(*columns, TimeRemainingColumn()) as progress:
        meter = Meter(progress, corpus, config, loss, int(state.step))
        for step in range(int(state.step) + 1, config.steps + 1):
            state = train_step(state, batches[step - 1], config, loss, beside(step - 1))
            stopping = stopped()
            saving = stopping or step % config.checkpoint_every == 0 or step == config.steps
            at_rest = saving or step in evaluations
            if at_rest or step % REPORT_EVERY == 0:
                refuse_divergence(state, checkpoints)
                meter.show(state)
            if step in evaluations:
                nats = evaluate(state.model, corpus, config).nats_per_token
                curve = state.curves["test_loss"].at[evaluations.index(step)].set(nats)
                state = state._replace(curves=state.curves | {"test_loss": curve})
            if saving:
                checkpoints.save(step, state)
            if stopping and step < config.steps:
                raise KeyboardInterrupt
            if at_rest:
                meter.restart(step)
    return state


def refuse_divergence(state: State, checkpoints: Checkpoints) -> None:
    """Nothing is saved before this has passed: a gradient that is not finite has spoilt the parameters already."""
    for name in ("loss", "gradient_norm"):
        curve = np.asarray(state.curves[name])[: int(state.step)]
        wrong = np.flatnonzero(~np.isfinite(curve))
        if wrong.size:
            what, step = name.replace("_", " "), wrong[0] + 1
            raise WrongInput(
                f"the {what} is {curve[wrong[0]]} at step {step}: lower `learning_rate`; {checkpoints.last()}."
            )


def lately(state: State, config: Config, loss: Loss = TEXT) -> dict[str, float]:
    """The loss and what is measured beside it, means of the last `REPORT_EVERY` steps."""
    step = int(state.step)
    names = ("loss", *loss.measured(config))
    return {name: float(np.mean(np.asarray(state.curves[name])[max(step - REPORT_EVERY, 0) : step])) for name in names}


class Meter:
    """What the progress bar says: the loss, bits for a byte of text, what else is measured, and the tokens a second."""

    def __init__(self, progress: Progress, corpus: Corpus, config: Config, loss: Loss, step: int):
        self._progress, self._config, self._loss = progress, config, loss
        self._bar = progress.add_task("", total=config.steps, completed=step)
        self._bytes_per_token = corpus.token_bytes(config.vocabulary)[corpus.train].mean()
        self._tokens_per_step = config.batch_size * config.sequence_length
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._start = step, time.perf_counter()

    def show(self, state: State) -> None:
        step = int(state.step)
        numbers = lately(state, self._config, self._loss)
        speed = (step - self._step) * self._tokens_per_step / (time.perf_counter() - self._start)
        shown = [f"loss {numbers['loss']:.3f} nats a token"]
        of_text = numbers.get("cross_entropy", numbers["loss"] if isinstance(self._loss, OfText) else None)
        if of_text is not None:
            shown.append(f"{of_text / math.log(2) / self._bytes_per_token:.3f} bits a byte")
        if "cross_entropy" in numbers:
            shown.append("cross-entropy {cross_entropy:.3f}, z-loss {z_loss:.3f}, entropy {entropy:.3f}")
            shown.append("right {accuracy:.1%}, among 5 {top_5_accuracy:.1%}")
        shown.append(f"{speed:,.0f} tokens/s")
        self._progress.update(self._bar, completed=step, description=", ".join(shown).format(**numbers))


class CompiledStep:
    """A compiled step and the state that it has led to, to be timed; each call takes the next batch."""

    def __init__(
        self,
        config: Config,
        batches: Batches,
        loss: Loss = TEXT,
        beside: Callable[[int], Any] = lambda step: (),
    ):
        self._batches, self._loss, self._beside = batches, loss, beside
        self._next = 0
        self.state = initial_state(config, loss)
        self._step = train_step.lower(self.state, batches[0], config, loss, beside(0)).compile()
        self.temporary_bytes = getattr(self._step.memory_analysis(), "temp_size_in_bytes", None)

    def __call__(self) -> None:
        given = self._batches[self._next], self._loss, self._beside(self._next)
        self.state = jax.block_until_ready(self._step(self.state, *given))
        self._next += 1
