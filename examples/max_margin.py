"""Compare how far gradient descent raises the margin of a classifier with the gradients of softjax, optax and torch.

    python examples/max_margin.py                               # the digits 0 to 4
    python examples/max_margin.py --classes 3 --output runs/margin

The classifier separates all digits after about 1,000 steps. From then on, normalised gradient descent raises the
margin, and only confident samples contribute to the gradient. Where 1 + Σ rounds to 1, an inexact gradient is 0 at the
label, and the margin falls.

Writes max-margin.json and max-margin.png.
"""

from common import program

if __name__ == "__main__":
    program.end_in_one_line(program.NOTHING_WRITTEN)

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from common import settings
from common.program import WrongInput
from margin import figure
from margin.descent import Samples, Schedule, contenders, hard_margin, measure_curves
from train_classifier import load_digits

NAME = "max-margin"
REFERENCE = ("softjax", "float64")  # the table compares the other runs with this one


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare the margins that gradient descent reaches with the gradients of softjax, optax and torch."""

    classes: int = 5
    """Number of classes, 3 to 10: the digits 0 to classes − 1."""
    rate: float = 0.02
    """Length of each step."""
    steps: int = 32_000
    """Number of steps."""
    every: int = 100
    """Steps between two records. It must divide `steps`."""
    output: Path = Path(__file__).resolve().parent / "results"
    """Folder for the two files."""

    def __post_init__(self) -> None:
        settings.check(self, {"classes": (lambda v: 3 <= v <= 10, "from 3 to 10"), "rate": settings.POSITIVE})
        if self.every < 1 or self.steps < 1 or self.steps % self.every:
            raise WrongInput(f"`steps` must be a multiple of `every`, got {self.steps} and {self.every}.")


def compare(options: Options, console: Console) -> dict[str, Any]:
    """Runs every contender and returns the results file."""
    samples = Samples(*load_digits(options.classes), options.classes)
    schedule = Schedule(options.rate, options.steps, options.every)
    runs = []
    for library, dtype, descend in contenders():
        with console.status(f"{library} {dtype}"):
            runs.append({"library": library, "dtype": dtype, **measure_curves(descend, samples, schedule)})
    return {
        "settings": {"classes": options.classes, **schedule._asdict()},
        "machine": machine.describe(("jax", "jaxlib", "optax", "torch", "scikit-learn", "numpy")),
        "images": len(samples.labels),
        "hard_margin": hard_margin(samples),
        "steps": list(range(options.every, options.steps + 1, options.every)),
        "runs": runs,
    }


def build_table(results: dict[str, Any]) -> Table:
    """One row per run: its largest margin, its last margin, and the step where it falls 1 % behind the reference."""
    steps, hard = results["steps"], results["hard_margin"]
    reference = next(np.array(run["margin"]) for run in results["runs"] if (run["library"], run["dtype"]) == REFERENCE)
    table = Table(title=f"Margins. The hard margin is {hard:.5f}.")
    table.add_column(no_wrap=True)
    for column in ("largest", "at step", "at gap", "last", "1 % behind\nfrom step", "time"):
        table.add_column(column, justify="right")
    for run in results["runs"]:
        margins = np.array(run["margin"])
        best, level = int(np.argmax(margins)), np.flatnonzero(margins >= reference - 0.01 * abs(reference))
        first_behind = int(level[-1]) + 1 if len(level) else 0
        table.add_row(
            f"{run['library']} {run['dtype']}",
            f"{margins[best]:.5f}",
            f"{steps[best]:,}",
            f"{run['gap'][best]:.1f}",
            f"{margins[-1]:.5f}",
            f"{steps[first_behind]:,}" if first_behind < len(steps) else "",
            f"{run['seconds']:.1f} s",
        )
    return table


@program.exit_status(program.NOTHING_WRITTEN)
def main(argv: Sequence[str] | None = None) -> None:
    options = settings.command_line(Options, argv)
    program.make_writable(options.output)
    console = Console()
    results = compare(options, console)
    picture = figure.draw(results)
    path = options.output / NAME
    program.write(path.with_suffix(".json"), (json.dumps(results) + "\n").encode())
    program.write(path.with_suffix(".png"), picture)
    console.print(build_table(results))
    print(f"Results: {path}.json and .png")


if __name__ == "__main__":
    program.leave(main())
