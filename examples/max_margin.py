"""How far gradient descent can raise the margin of a classifier, by the gradients of softjax, optax and torch.

    python examples/max_margin.py                               # the digits 0 to 4
    python examples/max_margin.py --classes 3 --output runs/margin

All digits are told apart by the first thousand steps. From then on normalised gradient descent raises the margin, and
the gradient is that of confident samples alone. Where 1 + Σ rounds to 1 it has 0 at the label, and the margin falls.
Writes max-margin.json and max-margin.png.
"""

from common import program as _signals

if __name__ == "__main__":
    _signals.end_in_one_line(_signals.NOTHING_WRITTEN)

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import machine as _machine
from classifier import digits as _digits
from common import files as checkpoint
from common import settings as _config
from common.settings import WrongInput, exit_status
from margin import figure as figure
from margin.descent import Samples, Schedule, contenders, curves, hard_margin

NAME = "max-margin"
EXACT = ("softjax", "float64")  # the run that the others are to be level with


@dataclasses.dataclass(frozen=True)
class Options:
    """How far gradient descent can raise the margin of a classifier, by the gradients of softjax, optax and torch."""

    classes: int = 5
    """Digits 0 to classes-1 are told apart, 3 to 10 of them."""
    rate: float = 0.02
    """The length of each step."""
    steps: int = 32_000
    every: int = 100
    """Steps from one record to the next."""
    output: Path = Path(__file__).resolve().parent / "results"
    """Folder of the two files."""


def check(options: Options) -> None:
    if not 3 <= options.classes <= 10:
        raise WrongInput(f"`classes` must be from 3 to 10, got {options.classes}.")
    if not 0 < options.rate < math.inf:
        raise WrongInput(f"`rate` must be above 0 and finite, got {options.rate}.")
    if options.every < 1 or options.steps < 1 or options.steps % options.every:
        raise WrongInput(f"`steps` must be a multiple of `every`, got {options.steps} and {options.every}.")


def compare(options: Options, console: Console) -> dict[str, Any]:
    samples = Samples(*_digits.whole(options.classes), options.classes)
    schedule = Schedule(options.rate, options.steps, options.every)
    runs = []
    for library, dtype, descend in contenders():
        with console.status(f"{library} {dtype}"):
            runs.append({"library": library, "dtype": dtype, **curves(descend, samples, schedule)})
    return {
        "settings": {"classes": options.classes, **schedule._asdict()},
        "machine": _machine.describe(("jax", "jaxlib", "optax", "torch", "scikit-learn", "numpy")),
        "images": len(samples.labels),
        "hard_margin": hard_margin(samples),
        "steps": list(range(options.every, options.steps + 1, options.every)),
        "runs": runs,
    }


def table_of(results: dict[str, Any]) -> Table:
    steps, hard = results["steps"], results["hard_margin"]
    exact = next(np.array(run["margin"]) for run in results["runs"] if (run["library"], run["dtype"]) == EXACT)
    table = Table(title=f"Margins; the hard margin is {hard:.5f}")
    table.add_column(no_wrap=True)
    for column in ("largest", "at step", "at gap", "at the end", "1 % behind from", "time"):
        table.add_column(column, justify="right")
    for run in results["runs"]:
        margins = np.array(run["margin"])
        best, level = int(np.argmax(margins)), np.flatnonzero(margins >= exact - 0.01 * abs(exact))
        behind = int(level[-1]) + 1 if len(level) else 0  # the record after the last that is level
        table.add_row(
            f"{run['library']} {run['dtype']}",
            f"{margins[best]:.5f}",
            f"{steps[best]:,}",
            f"{run['gap'][best]:.1f}",
            f"{margins[-1]:.5f}",
            f"{steps[behind]:,}" if behind < len(steps) else "",
            f"{run['seconds']:.1f} s",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    console = Console()

    def program() -> None:
        options = _config.command_line(Options, argv)
        check(options)
        results = compare(options, console)
        picture = figure.draw(results)
        options.output.mkdir(parents=True, exist_ok=True)
        path = options.output / NAME
        checkpoint.write(path.with_suffix(".json"), (json.dumps(results) + "\n").encode())
        checkpoint.write(path.with_suffix(".png"), picture)
        console.print(table_of(results))
        print(f"Results: {path}.json and .png")

    return exit_status(program, interrupted=_signals.NOTHING_WRITTEN)


if __name__ == "__main__":
    _signals.leave(main())
