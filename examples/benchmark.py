"""softjax.cross_entropy timed against optax's and torch's.

    python examples/benchmark.py                                   # as in configs/benchmark.toml; some minutes
    python examples/benchmark.py --rounds 3 --shapes 64 5          # any of its settings changed
    python examples/benchmark.py --markdown examples/results/core-cpu.json  # the README's tables of an earlier run

Each library is called as its users call it, for the mean loss of integer labels: softjax to base 10, the others in
nats. Three libraries compute one loss; torch takes part where it is installed and has the device that JAX runs on.
"""

import dataclasses
import functools
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import _benchmark_figure as figure
import _benchmark_report as report
import _machine as machine
import _timing as timing
import tyro
from _benchmark_contenders import Contender, contenders, problem
from _checkpoint import write
from _config import Source, WrongInput, exit_status, parse
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "benchmark.toml"
PACKAGES = ("jax", "jaxlib", "optax", "numpy", "torch")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time, and how often."""

    shapes: tuple[tuple[int, int], ...]
    """The problems: rows and classes."""
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...]
    """Of the logits."""
    seed: int
    """Of the logits and labels, and of the order in each round."""
    rounds: int
    """Each times every contender once."""
    at_least_ms: float
    """A faster call is repeated within its round until it takes as long."""
    torch_threads: int
    """On a CPU; XLA takes the cores that there are."""
    output: Path
    """Folder of the results file and the picture."""

    def __post_init__(self) -> None:
        wanted = {
            "shapes": (all(n >= 1 for shape in self.shapes for n in shape) and self.shapes, "pairs of at least 1"),
            "dtypes": (self.dtypes, "one dtype or more"),
            "seed": (self.seed >= 0, "at least 0"),
            "rounds": (self.rounds >= 1, "at least 1"),
            "at_least_ms": (0 < self.at_least_ms < math.inf, "above 0 and finite"),
            "torch_threads": (self.torch_threads >= 1, "at least 1"),
        }
        for name, (holds, what) in wanted.items():
            if not holds:
                raise WrongInput(f"`{name}` must be {what}, got {getattr(self, name)!r}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Source):
    """Time softjax.cross_entropy against optax's and torch's, and write the results as a JSON file and a picture."""

    markdown: Path | None = None
    """Run nothing: print the README's tables of this results file."""
    settings: Annotated[Config, tyro.conf.arg(name="")]


def run_case(rows: int, classes: int, dtype: str, config: Config, after_round: Callable[[], Any]) -> dict[str, Any]:
    logits, labels = problem(rows, classes, dtype, config.seed)
    entries = {(c.library, c.quantity): c for c in contenders(logits, labels, config.torch_threads)}
    timings = timing.interleaved(
        {name: entry.call for name, entry in entries.items()},
        rounds=config.rounds,
        at_least=config.at_least_ms / 1e3,
        seed=config.seed,
        after_round=after_round,
    )
    losses = {library: float(c.call()) for (library, quantity), c in entries.items() if quantity == "value"}
    losses["softjax"] *= math.log(10)
    ratios = [
        {"quantity": quantity, "to": library} | dataclasses.asdict(timing.ratio(timings["softjax", quantity], theirs))
        for (library, quantity), theirs in timings.items()
        if library != "softjax" and ("softjax", quantity) in timings
    ]
    return {
        "rows": rows,
        "classes": classes,
        "dtype": dtype,
        "losses_in_nats": losses,
        "timings": [timed(entries[name], timings[name]) for name in entries],
        "softjax_ratios": ratios,
    }


def timed(contender: Contender, times: timing.Timing) -> dict[str, Any]:
    return {
        "library": contender.library,
        "quantity": contender.quantity,
        "median": times.median,
        "quartiles": times.quartiles,
        "calls_a_round": times.calls,
        "seconds": times.seconds,
        "temporary_bytes": contender.temporary_bytes,
    }


def run(config: Config, console: Console) -> dict[str, Any]:
    problems = [(*shape, dtype) for shape in config.shapes for dtype in config.dtypes]
    columns = (TextColumn("round"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
        bar = progress.add_task("", total=len(problems) * config.rounds)
        cases = []
        for rows, classes, dtype in problems:
            progress.update(bar, description=f"{rows} × {classes}, {dtype}")
            cases.append(run_case(rows, classes, dtype, config, functools.partial(progress.advance, bar)))
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key != "output"}
    return {"machine": machine.describe(PACKAGES), "settings": settings, "cases": cases}


def as_json(results: dict[str, Any]) -> bytes:
    """Five digits are more than any timing has, and each list of numbers is one line."""
    text = json.dumps(_rounded(results), indent=1, ensure_ascii=False)
    return (re.sub(r"\[\s+([^][{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n").encode()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def load(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        report.markdown(results)
    except (ValueError, LookupError, TypeError) as error:
        raise WrongInput(f"{path} is no results file of this program: {error!r}") from error
    return results


def prepare(folder: Path) -> None:
    """Finds out before the minutes of a run, not after, that the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WrongInput(f"cannot write to the output folder {folder}: {error.strerror}.") from error


def publish(results: dict[str, Any], folder: Path, console: Console) -> None:
    name = f"core-{results['machine']['platform']}"
    contents = {f"{name}.json": as_json(results), f"{name}.png": figure.draw(results)}
    for file, content in contents.items():
        write(folder / file, content)
    console.print(report.table(results), *(f"Wrote {folder / file}" for file in contents), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    console = Console()

    def program() -> None:
        arguments = parse(Arguments, argv, DEFAULT_CONFIG)
        if arguments.markdown:
            print(report.markdown(load(arguments.markdown)))
            return
        prepare(arguments.settings.output)
        publish(run(arguments.settings, console), arguments.settings.output, console)

    return exit_status(program, interrupted="nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
