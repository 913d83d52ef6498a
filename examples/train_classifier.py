"""Train a linear classifier of handwritten digits, with `softjax.cross_entropy` as the loss and optax as the optimiser.

    python examples/train_classifier.py                          # the settings of configs/classifier.toml
    python examples/train_classifier.py --epochs 50 --base 2     # any of them changed
    python examples/train_classifier.py --mesh data=4,classes=2  # on 8 devices
    python examples/train_classifier.py --resume                 # go on after an interrupt or a kill
    python examples/train_classifier.py --overwrite              # start anew in a folder that holds a run

The objective is convex: it has one optimum, which scikit-learn finds too. For N images,

    here          (1/N) Σ −log_b softmax(x W + c)_y + (λ/2) ‖W‖²    λ = weight_decay; the bias c is not penalised
    scikit-learn     C  Σ −ln softmax(x W + c)_y    + (1/2) ‖W‖²    sklearn.linear_model.LogisticRegression

The base scales only the first term, by 1/ln b. So both have the same optimum if C = 1 / (N λ ln b).
(With two classes, scikit-learn's W is the difference of our two columns, and C is twice as large.)
"""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
import tyro
from jax.sharding import PartitionSpec as P
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn import datasets
from sklearn.model_selection import train_test_split

import softjax
from classifier import plots
from common import runs, settings
from common.settings import WrongInput
from softjax import metrics

DEFAULT_CONFIG = settings.CONFIGS / "classifier.toml"
RESULTS = ("params.npz", *plots.NAMES, "metrics.json")  # in the order of writing: metrics.json means that all are there
CURVES = ("objective", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
UNITS = {"hartleys": 10.0, "bits": 2.0, "nats": math.e}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run. Fields with `compare=False` do not change its result."""

    classes: int
    """Number of classes: the digits 0 to classes-1, 2 to 10 of them."""
    test_fraction: float
    """Fraction of the images held out for testing, the same in every class."""
    seed: int
    """Seed of the split, and of the order of the images in each epoch."""
    optimiser: Literal["adam", "sgd"]
    """The optax optimiser; sgd has Nesterov momentum 0.9."""
    learning_rate: float
    """Learning rate of the first step."""
    schedule: Literal["cosine", "constant"]
    """Cosine takes the learning rate to 0 at the last step."""
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per step; the last, incomplete batch of an epoch is dropped."""
    base: float
    """Base of the logarithm in the loss, above 1: 10 gives hartleys, 2 bits, 2.718281828459045 nats."""
    label_smoothing: float
    """Part of each label's probability that is spread over all classes, 0 to 1."""
    weight_decay: float
    """Weight of the L2 penalty: weight_decay/2 times the sum of the squared weights, without the bias."""
    checkpoint_every: int = dataclasses.field(compare=False)
    """Epochs between checkpoints."""
    output: Path = dataclasses.field(compare=False)
    """Folder of the run's files."""
    mesh: str = dataclasses.field(compare=False)
    """Devices that share each step: data=4,classes=2 shards the images over 4 and the classes over 2; empty for one
    device. The result is the same up to rounding, and a run may be resumed on another mesh."""

    def __post_init__(self) -> None:
        wanted: settings.Wanted = {
            "classes": (lambda v: 2 <= v <= 10, "from 2 to 10"),
            "test_fraction": settings.FRACTION,
            "seed": settings.SEED,
            "learning_rate": settings.POSITIVE,
            "epochs": (lambda v: 1 <= v <= 100_000, "from 1 to 100000"),
            "batch_size": settings.COUNT,
            "base": (lambda v: 1 < v < math.inf, "above 1 and finite"),
            "label_smoothing": settings.PROBABILITY,
            "weight_decay": settings.NOT_NEGATIVE,
            "checkpoint_every": settings.COUNT,
            "mesh": settings.MESH,
        }
        settings.check(self, wanted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(settings.RunOptions):
    """Train a linear classifier of handwritten digits, with `softjax.cross_entropy` as the loss.

    A run keeps its last two checkpoints in its output folder. At the end it writes params.npz, metrics.json and four
    plots. A folder that already holds any of these is refused unless you pass an option: --resume goes on from the last
    checkpoint, or begins if there is none; --overwrite starts anew, and replaces the old checkpoints when it saves its
    first and the old results when it has finished. Ctrl-C saves a checkpoint and stops.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")]


# The data.


class Images(NamedTuple):
    pixels: jax.Array  # [images, 64], ink from 0 to 1
    labels: jax.Array  # [images], the digits


class Data(NamedTuple):
    train: Images
    test: Images


def load_digits(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits 0 to classes − 1, with 8×8 pixels."""
    ink, digits = datasets.load_digits(n_class=classes, return_X_y=True)
    return np.asarray(ink / 16, np.float32), np.asarray(digits, np.int32)


def load_data(config: Config) -> Data:
    """Holds out the test images, the same fraction of each class."""
    pixels, labels = load_digits(config.classes)
    options = {"test_size": config.test_fraction, "random_state": config.seed, "stratify": labels}
    try:
        train_pixels, test_pixels, train_labels, test_labels = map(
            jnp.asarray, train_test_split(pixels, labels, **options)
        )
    except ValueError as error:
        raise WrongInput(f"`test_fraction` is {config.test_fraction}: {error}") from error
    if config.batch_size > len(train_labels):
        raise WrongInput(f"`batch_size` {config.batch_size} is more than the {len(train_labels)} training images.")
    return Data(Images(train_pixels, train_labels), Images(test_pixels, test_labels))


# The state of a run.

Params = dict[str, jax.Array]


class State(NamedTuple):
    """What a run carries from one epoch to the next, and what a checkpoint holds."""

    params: Params
    optimiser: optax.OptState
    epoch: jax.Array
    history: dict[str, jax.Array]  # one value per epoch, NaN for those to come


def steps_per_epoch(data: Data, config: Config) -> int:
    return len(data.train.labels) // config.batch_size


def initial_state(data: Data, config: Config) -> State:
    # Zeros are as good a start as any: the objective is convex.
    params = {
        "kernel": jnp.zeros((data.train.pixels.shape[1], config.classes), jnp.float32),
        "bias": jnp.zeros(config.classes, jnp.float32),
    }
    optimiser = make_optimiser(config, config.epochs * steps_per_epoch(data, config))
    history = {name: jnp.full(config.epochs, jnp.nan, jnp.float32) for name in CURVES}
    state = State(params, optimiser.init(params), jnp.int32(0), history)
    return jax.device_put(state, P()) if config.mesh else state  # a copy on every device


# The model, its loss, a step of training and the loop.


def model(params: Params, pixels: jax.Array) -> jax.Array:
    return pixels @ params["kernel"] + params["bias"][None, :]


def loss_fn(params: Params, images: Images, config: Config) -> jax.Array:
    logits = settings.shard(model(params, images.pixels), "data", "classes")
    loss = softjax.cross_entropy(
        logits, images.labels, base=config.base, label_smoothing=config.label_smoothing, reduction="mean"
    )
    return loss + 0.5 * config.weight_decay * jnp.sum(params["kernel"] ** 2)


@functools.cache  # `jit` compiles the step once for each optimiser object
def make_optimiser(config: Config, steps: int) -> optax.GradientTransformation:
    schedules = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, steps),
    }
    rate = schedules[config.schedule]
    optimisers = {"adam": optax.adam(rate), "sgd": optax.sgd(rate, momentum=0.9, nesterov=True)}
    return optimisers[config.optimiser]


@functools.partial(jax.jit, static_argnames=("optimiser", "config"))
def train_step(
    state: State, batch: Images, optimiser: optax.GradientTransformation, config: Config
) -> tuple[State, jax.Array]:
    loss, gradient = jax.value_and_grad(loss_fn)(state.params, batch, config)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        updates, moments = optimiser.update(gradient, state.optimiser, state.params)
    return state._replace(params=optax.apply_updates(state.params, updates), optimiser=moments), loss


def train(state: State, data: Data, config: Config, run: runs.Run) -> State:
    steps = steps_per_epoch(data, config)
    optimiser = make_optimiser(config, config.epochs * steps)
    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with run.finish_steps(), Progress(*columns, TimeElapsedColumn()) as progress:
        bar = progress.add_task("", total=config.epochs)
        for epoch in range(int(state.epoch) + 1, config.epochs + 1):
            # The order depends on the seed and the epoch alone, so that a resumed run sees the same batches.
            key = jax.random.fold_in(jax.random.key(config.seed), epoch - 1)
            order = jax.random.permutation(key, len(data.train.labels))
            losses = []
            for rows in order[: steps * config.batch_size].reshape(steps, config.batch_size):
                batch = Images(data.train.pixels[rows], data.train.labels[rows])
                state, loss = train_step(state, batch, optimiser, config)
                losses.append(loss)
            state = record(state, data, config)
            objective, accuracy = (float(state.history[name][epoch - 1]) for name in ("objective", "test_accuracy"))
            if not math.isfinite(objective):
                raise WrongInput(f"the objective is {objective} in epoch {epoch}: lower `learning_rate`.")
            if run.is_due(epoch):
                run.save(epoch, state)
            text = f"loss {np.mean(losses):.4f} {unit(config.base)}, test accuracy {accuracy:.1%}"
            progress.update(bar, completed=epoch, description=text)
    return state


# Evaluation.


def epoch_metrics(params: Params, data: Data, config: Config) -> dict[str, jax.Array]:
    """The values that the training curves show. The losses are without label smoothing and penalty."""
    numbers = {"objective": loss_fn(params, data.train, config)}
    for name, images in data._asdict().items():
        logits = model(params, images.pixels)
        numbers[f"{name}_loss"] = softjax.cross_entropy(logits, images.labels, base=config.base)
        numbers[f"{name}_accuracy"] = metrics.accuracy(softjax.statistics(logits, images.labels))
    return numbers


@functools.partial(jax.jit, static_argnames="config")
def record(state: State, data: Data, config: Config) -> State:
    """Ends an epoch: adds its metrics to the history."""
    numbers = epoch_metrics(state.params, data, config)
    history = {name: state.history[name].at[state.epoch].set(value) for name, value in numbers.items()}
    return state._replace(epoch=state.epoch + 1, history=history)


class Scores(NamedTuple):
    accuracy: Any
    hartleys: Any
    bits: Any
    nats: Any
    perplexity: Any
    brier_score: Any
    calibration_error: Any
    temperature: Any  # the one that minimises the loss of these images: below 1, the model is underconfident


@jax.jit
def evaluate(params: Params, images: Images) -> Scores:
    logits = model(params, images.pixels)
    s = softjax.statistics(logits, images.labels)
    return Scores(
        accuracy=metrics.accuracy(s),
        **{name: softjax.cross_entropy(logits, images.labels, base=base) for name, base in UNITS.items()},
        perplexity=metrics.perplexity(s),
        brier_score=metrics.brier_score(s),
        calibration_error=metrics.calibration(s, plots.BINS).expected_error(),
        temperature=metrics.fit_temperature(logits, images.labels),
    )


def unit(base: float) -> str:
    return next((name for name, value in UNITS.items() if value == base), f"to base {base:g}")


# The program.


@runs.exit_status
def main(argv: Sequence[str] | None = None) -> None:
    options = settings.parse(Options, argv, DEFAULT_CONFIG)
    config = options.settings
    with settings.on_mesh(config.mesh, samples={"batch_size": config.batch_size}):
        data = load_data(config)
        times = {"every": config.checkpoint_every, "last": config.epochs}
        with runs.open_run(config.output, options, settings.decisive(config), RESULTS, **times) as run:
            state = run.restore(initial_state(data, config))
            if state.epoch:
                print(f"Resumed after epoch {int(state.epoch)}.")
            state = train(state, data, config, run)
            publish(state, data, config, run)


def publish(state: State, data: Data, config: Config, run: runs.Run) -> None:
    scores = {}
    for name, images in data._asdict().items():
        values = {key: value.item() for key, value in evaluate(state.params, images)._asdict().items()}
        values["perplexity"] = min(values["perplexity"], sys.float_info.max)  # JSON has no infinity
        scores[name] = {"images": len(images.labels), **values}
    history = {name: np.asarray(values) for name, values in state.history.items()}
    results = {"settings": settings.decisive(config), "objective": history["objective"][-1].item(), **scores}
    drawn = plots.draw(
        history,
        np.asarray(state.params["kernel"]),
        softjax.statistics(model(state.params, data.test.pixels), data.test.labels),
        np.asarray(data.test.labels),
        unit(config.base),
    )
    params = runs.npz(state.params)
    run.publish({"params.npz": params, "metrics.json": (json.dumps(results, indent=2) + "\n").encode(), **drawn})
    table = Table("", *scores, title="Linear classifier of handwritten digits")
    for name in scores["test"]:
        form = {"images": "d", "accuracy": ".2%"}.get(name, ".4f")
        table.add_row(name.replace("_", " ").capitalize(), *(format(part[name], form) for part in scores.values()))
    rich.print(table)
    print(f"Results: {config.output}")


if __name__ == "__main__":
    sys.exit(main())
