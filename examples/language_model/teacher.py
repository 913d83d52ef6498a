"""A finished run of `train_lm.py` as a teacher, and the sparse labels that it writes once to disk."""

import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int
from rich.progress import track

import softjax
from common import checkpoint
from common.checkpoint import Checkpoints
from common.program import WrongInput
from common.settings import decisive
from language_model import data
from language_model.data import Batches, Corpus
from language_model.loss import hidden_and_kernel
from language_model.model import Transformer
from language_model.settings import Config
from language_model.training import initial_state

METRICS = "metrics.json"
LABELS = "labels.npy"


class Teacher(NamedTuple):
    model: Transformer
    corpus: Corpus

    @property
    def fingerprint(self) -> str:
        """Of its parameters."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.model):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]


def config_of(folder: Path, **of_machine: Any) -> Config:
    """The settings of the finished run in `folder`; those that do not decide its result are given.

    Raises:
      WrongInput: if there is no finished run.
    """
    path = folder / METRICS
    try:
        of_run = json.loads(path.read_bytes())["settings"]
        return Config(**of_run, **of_machine, checkpoint_every=1, output=folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else repr(error)
        wanted = "`teacher` must be the folder of a finished run of train_lm.py"
        raise WrongInput(f"{wanted}, and {path} cannot be used: {why}.") from error


def load(config: Config) -> Teacher:
    """The model of the run's last checkpoint, and the text that it was trained on.

    Raises:
      WrongInput: if the text is another now, or the checkpoint is gone or damaged.
    """
    corpus = data.load(config)
    with checkpoint.held(config.output):
        kept = Checkpoints(config.output / checkpoint.FOLDER, decisive(config) | {"text": corpus.fingerprint})
        state = kept.restore(initial_state(config))
    if int(state.step) < config.steps:
        raise WrongInput(f"`teacher` {config.output} has no checkpoint of its last step, {config.steps}.")
    return Teacher(state.model, corpus)


def sparse_labels(teacher: Teacher, k: int, steps: int, config: Config) -> Callable[[int], Any]:
    """Beside the sequences of each step ids and log-probabilities, `[microbatches, sequences, positions, k]`.

    Those of all sequences that so many steps take lie in the cache, and are written if they are not there or damaged.
    """
    batches = Batches(teacher.corpus, config)
    taken = np.unique([batches.numbers(step) for step in range(steps)])
    what = f"{teacher.fingerprint} {teacher.corpus.fingerprint} {k} {config.sequence_length} {config.compute}"
    folder = config.cache / f"labels-{hashlib.sha256(what.encode() + taken.tobytes()).hexdigest()[:16]}"
    with checkpoint.held(config.cache, wait=True):
        if not checkpoint.intact(folder):
            _write(folder, teacher.model, batches, taken, k, config)
    labels = np.load(folder / LABELS, mmap_mode="r")

    def beside(step: int) -> tuple[np.ndarray, np.ndarray]:
        of_step = labels[np.searchsorted(taken, batches.numbers(step))]
        return of_step["id"], of_step["log_probability"]

    return beside


def label_type(config: Config) -> np.dtype:
    """Of one of a label's k. Half a float's digits move a probability p by p · |ln p| / 2000."""
    id_type = np.uint16 if config.vocabulary <= 2**16 else np.uint32
    return np.dtype([("id", id_type), ("log_probability", np.float16)])


def _write(folder: Path, model: Transformer, batches: Batches, taken: np.ndarray, k: int, config: Config) -> None:
    """The folder gets its name when all of it is there."""
    written = folder.with_name(f".{folder.name}.tmp")
    for rest in (written, folder):
        shutil.rmtree(rest, ignore_errors=True)
    try:
        written.mkdir()
        with (written / LABELS).open("wb") as file:
            shape, descr = (len(taken), config.sequence_length, k), np.lib.format.dtype_to_descr(label_type(config))
            np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
            sequences = config.batch_size // config.microbatches
            for first in track(range(0, len(taken), sequences), f"The teacher's {k} likeliest tokens"):
                part = taken[first : first + sequences]
                rows = batches.tokens(np.resize(part, sequences))
                file.write(_labels(_top_k(model, rows, k, config), config)[: len(part)].tobytes())
            file.flush()
            os.fsync(file.fileno())
        checkpoint.seal(written)
        written.rename(folder)
    except OSError as error:
        shutil.rmtree(written, ignore_errors=True)  # it may be what fills the disk
        raise WrongInput(f"cannot write {folder}: {error.strerror}.") from error


def _labels(top: softjax.TopK, config: Config) -> np.ndarray:
    labels = np.empty(top.ids.shape, label_type(config))
    labels["id"], labels["log_probability"] = top
    return labels


@functools.partial(jax.jit, static_argnames=("k", "config"))
def _top_k(model: Transformer, rows: Int[Array, "sequences tokens"], k: int, config: Config) -> softjax.TopK:
    top = softjax.linear_top_k(*hidden_and_kernel(model, rows[:, :-1], config), k, base=math.e, **config.axis_names)
    return jax.tree.map(lambda array: array.reshape(len(rows), -1, k), top)
