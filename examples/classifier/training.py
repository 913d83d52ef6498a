"""The classifier's objective, an epoch of its training, and the whole of it."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import softjax
from classifier import digits, scores
from classifier.digits import Data, Images
from classifier.settings import Config
from common import settings
from common.checkpoint import Checkpoints
from common.program import WrongInput

Params = dict[str, jax.Array]
Carry = tuple[Any, optax.OptState]  # the parameters and the optimiser's moments


class State(NamedTuple):
    """All that a run carries from one epoch to the next, and so all that a checkpoint holds."""

    params: Params
    optimiser: optax.OptState
    epoch: jax.Array
    history: dict[str, jax.Array]  # one number an epoch, NaN for those to come


def load_data(config: Config) -> Data:
    try:
        data = digits.load(config.classes, config.test_fraction, config.seed)
    except ValueError as error:
        raise WrongInput(f"`test_fraction` is {config.test_fraction}: {error}") from error
    images = len(data.train.labels)
    if config.batch_size > images:
        raise WrongInput(f"`batch_size` {config.batch_size} is more than the {images} training images.")
    return data


def logits_of(params: Params, pixels: jax.Array) -> jax.Array:
    return pixels @ params["kernel"] + params["bias"][None, :]


def objective(params: Params, images: Images, config: Config, **split: Any) -> jax.Array:
    """The mesh, if there is one, shares the classes; `batch_axis_name="data"` has it share the images too."""
    squares = jnp.sum(params["kernel"] ** 2)
    if config.mesh:
        # Five classes do not divide by two: a sixth fills up, with a column of zeros, and `where` leaves it out.
        spare = -config.classes % settings.shares(config.mesh)[1]
        params = jax.tree.map(lambda a: jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, spare)]), params)
        exist = jnp.arange(config.classes + spare) < config.classes
        split |= {"axis_name": "classes", "where": exist[None, :]}
    loss = softjax.cross_entropy(
        logits_of(params, images.pixels),
        images.labels,
        base=config.base,
        label_smoothing=config.label_smoothing,
        **split,
    )
    return loss + 0.5 * config.weight_decay * squares


def steps_per_epoch(data: Data, config: Config) -> int:
    return len(data.train.labels) // config.batch_size


def make_optimiser(data: Data, config: Config) -> optax.GradientTransformation:
    steps = config.epochs * steps_per_epoch(data, config)
    rate = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, steps),
    }[config.schedule]
    optimisers = {"adam": optax.adam(rate), "sgd": optax.sgd(rate, momentum=0.9, nesterov=True)}
    return optimisers[config.optimiser]


def initial_state(data: Data, config: Config) -> State:
    # Zeros are as good a start as any: the objective is convex.
    shape = (data.train.pixels.shape[1], config.classes)
    params = {"kernel": jnp.zeros(shape, jnp.float32), "bias": jnp.zeros(config.classes, jnp.float32)}
    numbers = jax.eval_shape(lambda: measure(params, data, config))
    history = {name: jnp.full(config.epochs, jnp.nan, number.dtype) for name, number in numbers.items()}
    state = State(params, make_optimiser(data, config).init(params), jnp.int32(0), history)
    return jax.device_put(state, P()) if config.mesh else state  # on every device of the mesh


@functools.partial(jax.jit, static_argnames="config")
def run_epoch(state: State, data: Data, config: Config) -> State:
    optimiser = make_optimiser(data, config)
    split = {"batch_axis_name": "data"} if config.mesh else {}

    def step(carry: Carry, rows: jax.Array) -> tuple[Carry, None]:
        params, moments = carry
        batch = jax.tree.map(lambda array: array[rows], data.train)
        gradient = jax.grad(objective)(params, batch, config, **split)
        # optax mixes its int32 count of steps with floats, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimiser.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), None

    # From the seed and the epoch alone: a resumed run sees the images in the order of an uninterrupted one.
    key = jax.random.fold_in(jax.random.key(config.seed), state.epoch)
    steps = steps_per_epoch(data, config)
    order = jax.random.permutation(key, len(data.train.labels))[: steps * config.batch_size]
    (params, moments), _ = jax.lax.scan(step, (state.params, state.optimiser), order.reshape(steps, -1))
    history = {
        name: state.history[name].at[state.epoch].set(value) for name, value in measure(params, data, config).items()
    }
    return State(params, moments, state.epoch + 1, history)


def measure(params: Params, data: Data, config: Config) -> dict[str, jax.Array]:
    """The numbers that the curves show; the losses are without smoothing, to the base of the run."""
    numbers = {"objective": objective(params, data.train, config)}
    for part, images in data._asdict().items():
        logits = logits_of(params, images.pixels)
        numbers[f"{part}_loss"] = softjax.cross_entropy(logits, images.labels, base=config.base)
        numbers[f"{part}_accuracy"] = softjax.metrics.accuracy(softjax.statistics(logits, images.labels))
    return numbers


def train(state: State, data: Data, config: Config, checkpoints: Checkpoints) -> State:
    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn()) as progress:
        bar = progress.add_task("", total=config.epochs, completed=int(state.epoch))
        for epoch in range(int(state.epoch) + 1, config.epochs + 1):
            state = run_epoch(state, data, config)
            now = {name: float(np.asarray(curve)[epoch - 1]) for name, curve in state.history.items()}
            if not math.isfinite(now["objective"]):
                raise WrongInput(f"the objective is {now['objective']} in epoch {epoch}: lower `learning_rate`.")
            if epoch % config.checkpoint_every == 0 or epoch == config.epochs:
                checkpoints.save(epoch, state)
            loss = f"loss {now['train_loss']:.4f} {scores.unit(config.base)}"
            progress.update(bar, completed=epoch, description=f"{loss}, test accuracy {now['test_accuracy']:.1%}")
    return state
