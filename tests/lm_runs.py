"""Tiny runs of `train_lm.py` and `distil.py`, on generated text."""

import json
import random
from pathlib import Path

import jax
import numpy as np

import distil as distil_program
import train_lm as program
from common.runs import Run
from common.settings import decisive, parse, read
from language_model import data
from language_model.settings import DEFAULT_CONFIG, Config, Options

WORDS = "the a cat dog sees likes old red house and under über naïve 東京".split()  # noqa: SIM905
TINY = {
    "pattern": "*.txt",
    "test_fraction": 0.3,
    "vocabulary": 320,
    "sequence_length": 16,
    "features": 16,
    "layers": 1,
    "heads": 2,
    "steps": 12,
    "batch_size": 8,
    "learning_rate": 0.02,
    "warmup_steps": 2,
    "evaluate_every": 5,
    "checkpoint_every": 4,
    "prompt": "the ",
    "sample_tokens": 8,
}


def write_text(folder: Path, files=12):
    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    for number in range(files):
        words = generator.choices(WORDS, k=generator.randrange(20, 400))
        (folder / f"{number}.txt").write_text("# " + " ".join(words) + ".\n", encoding="utf-8")
    return folder


def options(output, text, /, **settings):
    settings = {**TINY, "text": text, "cache": Path(text).parent / "cache", "output": output, **settings}
    return [word for key, value in settings.items() for word in _words(key.replace("_", "-"), value)]


def _words(key, value):
    return [f"--{key}" if value else f"--no-{key}"] if isinstance(value, bool) else [f"--{key}", str(value)]


def run(output, text, /, *flags, **settings):
    return program.main([*options(output, text, **settings), *flags])


def config_of(output, text, **settings):
    return parse(Options, options(output, text, **settings), DEFAULT_CONFIG).settings


def default_config():
    return read(DEFAULT_CONFIG, Config)


def last_state(config):
    """The state in the last checkpoint of a run."""
    settings = decisive(config) | {"text": data.load(config).fingerprint}
    return Run(config.output, settings).restore(program.initial_state(config))


def same_result(ours, theirs):
    """Compares parameters, moments and curves bit by bit, and the results."""
    for actual, expected in zip(*map(jax.tree.leaves, (last_state(ours), last_state(theirs))), strict=True):
        assert np.asarray(actual).tobytes() == np.asarray(expected).tobytes()
    for name in ("metrics.json", "sample.txt"):
        assert (ours.output / name).read_bytes() == (theirs.output / name).read_bytes()


# Compiled: outside of `jit` each operation would be a program of its own.
hidden_states = jax.jit(lambda model, inputs: jax.vmap(model)(inputs))


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


TINY_STUDENT = {
    "k": 8,
    "features": 8,
    "layers": 1,
    "heads": 2,
    "steps": 8,
    "batch_size": 8,
    "learning_rate": 0.02,
    "warmup_steps": 2,
    "evaluate_every": 3,
    "checkpoint_every": 4,
    "rounds": 6,  # with two steps before them as many as `steps`: one program is traced for both
}


def distil_words(teacher, output, /, **changed):
    given = {**TINY_STUDENT, "teacher": teacher.output, "cache": teacher.cache, "output": output, **changed}
    return [word for key, value in given.items() for word in _words(key.replace("_", "-"), value)]


def distil(teacher, output, /, *flags, **changed):
    return distil_program.main([*distil_words(teacher, output, **changed), *flags])
