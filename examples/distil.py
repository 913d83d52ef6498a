"""Three small language models learn: from a teacher's sparse labels, from its hidden vectors, and from the text alone.

    python examples/train_lm.py                 # the teacher
    python examples/distil.py                   # everything as in configs/distil.toml
    python examples/distil.py --k 8             # any of its settings changed
    python examples/distil.py --resume          # go on where a stopped or killed run was; compare a finished one anew
    python examples/distil.py --overwrite       # start anew in folders that hold a run

The labels are the teacher's k likeliest tokens (`softjax.linear_top_k`), written once to disk. From the hidden vectors
and the teacher's last layer `softjax.linear_divergence` takes the whole distribution. Nowhere do logits exist. The
students are alike at the beginning and see the same text in the same order.
"""

from common import program

if __name__ == "__main__":
    program.end_in_one_line(program.RESUMABLE)

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import distil_report, machine
from benchmarks.timing import interleaved
from common import checkpoint, settings
from common.program import WrongInput
from language_model import teacher as teachers
from language_model.data import Batches
from language_model.distillation import (
    DEFAULT_CONFIG,
    Distillation,
    OfHiddenVectors,
    OfSparseLabels,
    Options,
    nearness,
)
from language_model.evaluation import evaluate
from language_model.loss import TEXT, Loss
from language_model.model import Transformer
from language_model.settings import Config
from language_model.teacher import Teacher
from language_model.training import CompiledStep, State, evaluation_steps, initial_state, train

# In the order of writing: where the last is there, both are.
RESULTS = ("distil.png", "distil.json")


class Lesson(NamedTuple):
    """What a student learns by, and from what beside the text of each step."""

    loss: Loss
    beside: Callable[[int], Any] = lambda step: ()


def lessons(teacher: Teacher, wanted: Distillation, config: Config) -> dict[str, Lesson]:
    of_both = {"text_share": wanted.text_share}
    labels = teachers.sparse_labels(teacher, wanted.k, max(wanted.steps, timed(wanted)), config)
    of_divergence = {"kind": wanted.kind, "beta": wanted.beta, "temperature": wanted.temperature}
    return {
        "sparse": Lesson(OfSparseLabels(rest=wanted.rest, **of_both), labels),
        "hidden": Lesson(OfHiddenVectors(teacher.model, **of_divergence, **of_both)),
        "text": Lesson(TEXT),
    }


@program.exit_status(program.RESUMABLE)
def main(argv: Sequence[str] | None = None) -> None:
    options = settings.parse(Options, argv, DEFAULT_CONFIG)
    wanted = options.settings
    of_teacher = teachers.config_of(wanted.teacher, cache=wanted.cache, mesh=wanted.mesh)
    config = wanted.student(of_teacher)
    if wanted.k > config.vocabulary:
        raise WrongInput(f"`k` {wanted.k} is more than the teacher's vocabulary of {config.vocabulary}.")
    with config.on_mesh(), contextlib.ExitStack() as stack:
        teacher = teachers.load(of_teacher)
        program.make_writable(config.output)
        decisive = settings.decisive(wanted) | {"teacher": teacher.fingerprint, "text": teacher.corpus.fingerprint}
        # All before the first student learns: the last may be the one whose folder is refused.
        kept = {
            name: stack.enter_context(
                checkpoint.begun(config.output / name, options, decisive, [f"../{result}" for result in RESULTS])
            )
            for name in distil_report.STUDENTS
        }
        taught = lessons(teacher, wanted, config)
        students = {}
        for name, lesson in taught.items():
            state = kept[name].restore(initial_state(config, lesson.loss))
            print(f"Learning from {distil_report.STUDENTS[name]}, after step {int(state.step)}.")
            students[name] = train(state, teacher.corpus, config, kept[name], *lesson)
        publish(compare(teacher, students, taught, wanted, config), config)


def compare(
    teacher: Teacher, students: dict[str, State], taught: dict[str, Lesson], wanted: Distillation, config: Config
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
        "teacher": worth(teacher, teacher.model, config),
        "students": {
            name: worth(teacher, state.model, config) | {"curve": state.curves["test_loss"].tolist()}
            for name, state in students.items()
        },
    }
    for name, numbers in times(teacher, taught, wanted, config).items():
        results["students"][name] |= numbers
    return results


def worth(teacher: Teacher, model: Transformer, config: Config) -> dict[str, Any]:
    """Of the model on the held-out files."""
    test = evaluate(model, teacher.corpus, config)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
        "nats_per_token": test.nats_per_token,
        "accuracy": test.means["accuracy"],
        **nearness(teacher.model, model, teacher.corpus, config),
        "calibration_error": float(test.calibration.expected_error()),
        "calibration": {
            field.name: np.asarray(getattr(test.calibration, field.name)).tolist()
            for field in dataclasses.fields(test.calibration)
        },
    }


def timed(wanted: Distillation) -> int:
    """Steps: two go before the rounds."""
    return wanted.rounds + 2


def times(
    teacher: Teacher, taught: dict[str, Lesson], wanted: Distillation, config: Config
) -> dict[str, dict[str, Any]]:
    """Of a step of each student, the steps interleaved; and its memory beside arguments and results."""
    config = dataclasses.replace(config, steps=timed(wanted))
    batches = Batches(teacher.corpus, config)
    steps = {name: CompiledStep(config, batches, *lesson) for name, lesson in taught.items()}
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
    program.leave(main())
