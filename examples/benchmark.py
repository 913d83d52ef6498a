"""Time softjax against optax, torch, hand-written losses and other fused losses.

    python examples/benchmark.py                              # the settings of configs/benchmark.toml; some minutes
    python examples/benchmark.py --rounds 3 --shapes 64 5     # override any setting
    python examples/benchmark.py --part linear --rounds 3     # the last layer fused with its loss
    python examples/benchmark.py --part distil --rounds 3     # the fused divergence of a student from its teacher
    python examples/benchmark.py --part growth                # time and memory as samples and classes grow
    python examples/benchmark.py --part chunks                # the last layer with other sizes of its chunks
    python examples/benchmark.py --part packing               # the last layer where samples have weight 0
    python examples/benchmark.py --markdown examples/results/core-cpu.json   # print the tables of an earlier run
    python examples/benchmark.py --markdown examples/results  # print results/README.md from all files of that folder

Each library is called as its users call it, for the mean loss of integer labels. softjax's default base is 10, the
others compute nats. torch is included if it is installed and supports the device that JAX uses.
"""

from common import program

if __name__ == "__main__":
    program.end_in_one_line(program.NOTHING_WRITTEN)

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import (
    core_figure,
    core_report,
    divergence_report,
    linear_cases,
    linear_report,
    machine,
    packing_report,
    page,
)
from benchmarks.core_cases import core_case, core_problems
from benchmarks.divergence_cases import distil_case
from benchmarks.packing_cases import packing_case
from benchmarks.settings import Config, parse
from common.program import WrongInput

PACKAGES = ("jax", "jaxlib", "optax", "numpy", "torch", "jax-cce", "tokamax")
CASES = {"core": core_case, **linear_cases.CASES, "distil": distil_case, "packing": packing_case}
REPORTS = {"core": core_report, "distil": divergence_report, "packing": packing_report}


def run(part: str, config: Config, console: Console) -> dict[str, Any]:
    """Times all problems of a part, and returns the results file."""
    problems = core_problems(config) if part == "core" else linear_cases.problems(part, config)
    columns = (TextColumn("round"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
        bar = progress.add_task("", total=len(problems) * config.rounds)
        cases = []
        for shape, dtype in problems:
            progress.update(bar, description=" × ".join(map(str, shape)) + f", {dtype}")
            cases.append(CASES[part](shape, dtype, config, functools.partial(progress.advance, bar)))
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key != "output"}
    results = {"machine": machine.describe(PACKAGES), "part": part, "settings": settings, "cases": cases}
    if part == "linear":
        results["peak_resident_bytes"] = linear_cases.peak_resident_bytes(config)
    return results


def as_json(results: dict[str, Any]) -> bytes:
    """JSON with floats of five digits, more than any timing is reliable to, and one line per list of numbers."""
    text = json.dumps(_round_floats(results), indent=1, ensure_ascii=False)
    return (re.sub(r"\[\s+([^][{}\"]*?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text) + "\n").encode()


def _round_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round_floats(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_round_floats(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def load(path: Path) -> dict[str, Any]:
    """Reads a results file.

    Raises:
      WrongInput: if its tables cannot be printed.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        markdown(results)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WrongInput(f"{path} is not a results file of this program: {error!r}") from error
    return results


def markdown(results: dict[str, Any]) -> str:
    return REPORTS.get(results.get("part", "core"), linear_report).markdown(results)


def publish(results: dict[str, Any], folder: Path, console: Console) -> None:
    """Writes the results file and its figure, and prints the tables."""
    part = results["part"]
    name = f"{part}-{results['machine']['platform']}"
    contents = {f"{name}.json": as_json(results)}
    if part in ("core", "growth"):
        contents[f"{name}.png"] = (core_figure if part == "core" else linear_report).draw(results)
    for file, content in contents.items():
        program.write(folder / file, content)
    if part == "core":
        console.print(core_report.terminal_table(results))
    else:
        print(markdown(results))
    console.print(*(f"Wrote {folder / file}" for file in contents), sep="\n")


@program.exit_status(program.NOTHING_WRITTEN)
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if options.markdown:
        print(page.render(options.markdown) if options.markdown.is_dir() else markdown(load(options.markdown)))
        return
    program.make_writable(options.settings.output)
    console = Console()
    publish(run(options.part, options.settings, console), options.settings.output, console)


if __name__ == "__main__":
    program.leave(main())
