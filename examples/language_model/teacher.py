"""A finished run of `train_lm.py` as a teacher, and the sparse labels that are written once to disk."""

import functools
import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int
from rich.progress import track

import softjax
from common import runs
from common.settings import WrongInput, decisive
from language_model import data
from language_model.data import Batches, Corpus
from language_model.model import Transformer, hidden_and_kernel
from language_model.settings import Config

METRICS = "metrics.json"
LABELS = "labels.npy"


class Teacher(NamedTuple):
    model: Transformer
    corpus: Corpus

    @property
    def fingerprint(self) -> str:
        """A hash of the parameters."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.model):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]


def config_of(folder: Path, **others: Any) -> Config:
    """The settings of the finished run in `folder`, and `others`, which do not change its result.

    Raises:
      WrongInput: if there is no finished run.
    """
    path = folder / METRICS
    try:
        saved = json.loads(path.read_bytes())["settings"]
        return Config(**saved, **others, checkpoint_every=1, output=folder)
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        wanted = "`teacher` must be the folder of a finished run of train_lm.py"
        raise WrongInput(f"{wanted}, and {path} cannot be used: {reason}.") from error


def load(config: Config, initial_state: Any) -> Teacher:
    """The model of the last checkpoint, and the text that it was trained on.

    Args:
      config: settings of the run.
      initial_state: has the structure of the state in the checkpoint.

    Raises:
      WrongInput: if the text has changed, or the checkpoint is missing or damaged.
    """
    corpus = data.load(config)
    with runs.lock(config.output):
        run = runs.Run(config.output, decisive(config) | {"text": corpus.fingerprint})
        state = run.restore(initial_state)
    if int(state.step) < config.steps:
        raise WrongInput(f"`teacher` {config.output} has no checkpoint of its last step, {config.steps}.")
    return Teacher(state.model, corpus)


class SparseLabelBatches(Batches):
    """Batches with the teacher's `k` most likely tokens at each position.

    The labels of all sequences that the first `steps` steps take are in a folder of the cache. They are written if they
    are missing or damaged.
    """

    def __init__(self, teacher: Teacher, k: int, steps: int, config: Config):
        super().__init__(teacher.corpus, config)
        self._labelled = np.unique([self.indices(step) for step in range(steps)])
        name = f"{teacher.fingerprint} {teacher.corpus.fingerprint} {k} {config.sequence_length} {config.compute}"
        key = hashlib.sha256(name.encode() + self._labelled.tobytes()).hexdigest()[:16]
        folder = config.cache / f"labels-{key}"
        with runs.lock(config.cache, wait=True):
            if not runs.is_intact(folder):
                _write(folder, teacher.model, self, self._labelled, k, config)
        self._labels = np.load(folder / LABELS, mmap_mode="r")

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Adds `ids` and `log_probabilities`, `[microbatches, sequences, sequence_length, k]`."""
        labels = self._labels[np.searchsorted(self._labelled, self.indices(step))]
        return {**super().__getitem__(step), "ids": labels["id"], "log_probabilities": labels["log_probability"]}


def label_type(config: Config) -> np.dtype:
    """Dtype of one id and its log-probability. float16 changes a probability p by up to p · |ln p| / 2000."""
    id_type = np.uint16 if config.vocabulary <= 2**16 else np.uint32
    return np.dtype([("id", id_type), ("log_probability", np.float16)])


def _write(folder: Path, model: Transformer, batches: Batches, indices: np.ndarray, k: int, config: Config) -> None:
    """Writes the labels of these sequences under a temporary name, and renames the folder when it is complete."""
    unfinished = folder.with_name(f".{folder.name}.tmp")
    for earlier in (unfinished, folder):
        shutil.rmtree(earlier, ignore_errors=True)
    try:
        unfinished.mkdir()
        with (unfinished / LABELS).open("wb") as file:
            shape, descr = (len(indices), config.sequence_length, k), np.lib.format.dtype_to_descr(label_type(config))
            np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
            sequences = config.batch_size // config.microbatches
            for first in track(range(0, len(indices), sequences), f"Labels: the teacher's {k} most likely tokens"):
                part = indices[first : first + sequences]
                rows = batches.tokens(np.resize(part, sequences))
                file.write(_labels(_top_k(model, rows, k, config), config)[: len(part)].tobytes())
            file.flush()
            os.fsync(file.fileno())
        runs.write_checksums(unfinished)
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # these files may be what fills the disk
        raise WrongInput(f"cannot write {folder}: {error.strerror}.") from error


def _labels(top: softjax.TopK, config: Config) -> np.ndarray:
    labels = np.empty(top.ids.shape, label_type(config))
    labels["id"], labels["log_probability"] = top
    return labels


@functools.partial(jax.jit, static_argnames=("k", "config"))
def _top_k(model: Transformer, rows: Int[Array, "sequences tokens"], k: int, config: Config) -> softjax.TopK:
    top = softjax.linear_top_k(*hidden_and_kernel(model, rows[:, :-1], config), k, base=math.e, **config.axis_names)
    return jax.tree.map(lambda array: array.reshape(len(rows), -1, k), top)
