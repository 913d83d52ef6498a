"""Distil a language model into three students: from sparse labels, from hidden states, and from the text alone.

    python examples/train_lm.py                 # trains the teacher
    python examples/distil.py                   # the settings of configs/distil.toml
    python examples/distil.py --k 8             # any of them changed
    python examples/distil.py --resume          # go on after an interrupt, or compare finished students again
    python examples/distil.py --overwrite       # start anew in folders that hold a run

The sparse labels are the teacher's k most likely tokens (`softjax.linear_top_k`), written once to disk. From hidden
states, `softjax.linear_divergence` compares the whole distributions. Logits are never materialised. The students begin
with the same parameters and see the same batches.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import distil_report, machine
from benchmarks.timing import interleaved
from common import program, runs, settings
from common.settings import WrongInput
from language_model import teacher as teachers
from language_model.data import Batches
from language_model.distillation import (
    DEFAULT_CONFIG,
    Distillation,
    HiddenStateLoss,
    Options,
    SparseLabelLoss,
    distance,
)
from language_model.evaluation import evaluate
from language_model.model import Transformer
from language_model.settings import Config
from language_model.teacher import SparseLabelBatches, Teacher
from language_model.timing import TimedStep
from train_lm import TEXT, Loss, State, evaluation_steps, initial_state, train, train_step

RESULTS = ("distil.png", "distil.json")  # in the order of writing: distil.json means that both are there
WARM_UP = 2  # steps before the timed ones


class Lesson(NamedTuple):
    """What a student learns from."""

    loss: Loss
    batches: Batches


def make_lessons(teacher: Teacher, wanted: Distillation, config: Config) -> dict[str, Lesson]:
    text = Batches(teacher.corpus, config)
    labelled = SparseLabelBatches(teacher, wanted.k, max(wanted.steps, wanted.rounds + WARM_UP), config)
    divergence = {"kind": wanted.kind, "beta": wanted.beta, "temperature": wanted.temperature}
    return {
        "sparse": Lesson(SparseLabelLoss(rest=wanted.rest, text_share=wanted.text_share), labelled),
        "hidden": Lesson(HiddenStateLoss(teacher.model, **divergence, text_share=wanted.text_share), text),
        "text": Lesson(TEXT, text),
    }


@runs.exit_status
def main(argv: Sequence[str] | None = None) -> None:
    options = settings.parse(Options, argv, DEFAULT_CONFIG)
    wanted = options.settings
    teacher_config = teachers.config_of(wanted.teacher, cache=wanted.cache, mesh=wanted.mesh)
    config = wanted.student(teacher_config)
    if wanted.k > config.vocabulary:
        raise WrongInput(f"`k` {wanted.k} is more than the teacher's vocabulary of {config.vocabulary}.")
    with config.on_mesh(), contextlib.ExitStack() as stack:
        teacher = teachers.load(teacher_config, initial_state(teacher_config))
        program.make_writable(config.output)
        decisive = settings.decisive(wanted) | {"teacher": teacher.fingerprint, "text": teacher.corpus.fingerprint}
        results = [f"../{name}" for name in RESULTS]
        times = {"every": config.checkpoint_every, "last": config.steps}
        # All folders are opened before the first student learns: the last of them may be refused.
        student_runs = {
            name: stack.enter_context(runs.open_run(config.output / name, options, decisive, results, **times))
            for name in distil_report.STUDENTS
        }
        lessons = make_lessons(teacher, wanted, config)
        students = {}
        for name, (loss, batches) in lessons.items():
            state = student_runs[name].restore(initial_state(config))
            print(f"Learning from {distil_report.STUDENTS[name]}, after step {int(state.step)}.")
            students[name] = train(state, batches, teacher.corpus, config, student_runs[name], loss)
        publish(compare(teacher, students, lessons, wanted, config), config)


def compare(
    teacher: Teacher, students: dict[str, State], lessons: dict[str, Lesson], wanted: Distillation, config: Config
) -> dict[str, Any]:
    results = {
        "settings": settings.decisive(wanted),
        "machine": machine.describe(("jax", "jaxlib", "optax", "equinox", "numpy")),
        "vocabulary": config.vocabulary,
        "tokens_per_step": config.batch_size * config.sequence_length,
        "evaluated": evaluation_steps(config),
        "bytes_per_token": {
            "logits": 4 * config.vocabulary,
            "hidden": config.compute_dtype.itemsize * teacher.model.kernel.shape[0],
            "sparse": wanted.k * teachers.label_type(config).itemsize,
        },
        "teacher": held_out_metrics(teacher, teacher.model, config),
        "students": {
            name: held_out_metrics(teacher, state.model, config) | {"curve": state.curves["test_loss"].tolist()}
            for name, state in students.items()
        },
    }
    for name, numbers in measure_steps(lessons, wanted, config).items():
        results["students"][name] |= numbers
    return results


def held_out_metrics(teacher: Teacher, model: Transformer, config: Config) -> dict[str, Any]:
    test = evaluate(model, teacher.corpus, config)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
        "nats_per_token": test.nats_per_token,
        "accuracy": test.means["accuracy"],
        **distance(teacher.model, model, teacher.corpus, config),
        "calibration_error": float(test.calibration.expected_error()),
        "calibration": {
            field.name: np.asarray(getattr(test.calibration, field.name)).tolist()
            for field in dataclasses.fields(test.calibration)
        },
    }


def measure_steps(lessons: dict[str, Lesson], wanted: Distillation, config: Config) -> dict[str, dict[str, Any]]:
    """Time and temporary memory of a training step of each student. The timed steps are interleaved."""
    config = dataclasses.replace(config, steps=wanted.rounds + WARM_UP)
    steps = {
        name: TimedStep(train_step, initial_state(config), batches, config, loss)
        for name, (loss, batches) in lessons.items()
    }
    timings = interleaved(dict(steps), rounds=wanted.rounds, at_least=0, seed=config.seed)
    return {
        name: {
            "seconds": timings[name].median,
            "quartiles": timings[name].quartiles,
            "temporary_bytes": step.temporary_bytes,
        }
        for name, step in steps.items()
    }


def publish(results: dict[str, Any], config: Config) -> None:
    contents = {
        "distil.png": distil_report.draw(results),
        "distil.json": (json.dumps(results, indent=1) + "\n").encode(),
    }
    for name in RESULTS:
        program.write(config.output / name, contents[name])
    print(distil_report.table(results))
    print(f"Results: {config.output}")


if __name__ == "__main__":
    sys.exit(main())
