"""softjax timed against the libraries and the code that do the same.

    python examples/benchmark.py                                   # as in configs/benchmark.toml; some minutes
    python examples/benchmark.py --rounds 3 --shapes 64 5          # any of its settings changed
    python examples/benchmark.py --part linear --rounds 3          # the last layer and its loss without the logits
    python examples/benchmark.py --markdown examples/results/core-cpu.json  # the README's tables of an earlier run

Each library is called as its users call it, for the mean loss of integer labels: softjax to base 10, the others in
nats. Three libraries compute one loss; torch takes part where it is installed and has the device that JAX runs on.
"""

from common import program as _signals

if __name__ == "__main__":
    _signals.end_in_one_line(_signals.NOTHING_WRITTEN)

import dataclasses
import functools
import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import core_figure as figure
from benchmarks import core_report as report
from benchmarks import linear_cases as linear
from benchmarks import linear_report as linear_report
from benchmarks import machine as machine
from benchmarks import timing as timing
from benchmarks.core_contenders import Contender, contenders, problem
from common.files import write
from common.settings import Source, WrongInput, exit_status, parse

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "benchmark.toml"
PACKAGES = ("jax", "jaxlib", "optax", "numpy", "torch", "jax-cce", "tokamax")


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
    linear_shapes: tuple[tuple[int, int, int], ...]
    """The problems of the last layer: samples, features and classes."""
    linear_bfloat16_shapes: tuple[tuple[int, int, int], ...]
    """Those that are timed in bfloat16 as well."""
    growth_features: int
    """Features of the problems that grow."""
    growth_samples: tuple[int, ...]
    """With the middle one of `growth_classes`."""
    growth_classes: tuple[int, ...]
    """With the first of `growth_samples`."""
    block_sizes: tuple[int, ...]
    """The grid of `--part blocks`."""
    output: Path
    """Folder of the results file and the picture."""

    def __post_init__(self) -> None:
        wanted = {
            "shapes": (_positive(self.shapes) and self.shapes, "pairs of at least 1"),
            "dtypes": (self.dtypes, "one dtype or more"),
            "linear_shapes": (_positive(self.linear_shapes) and self.linear_shapes, "triples of at least 1"),
            "linear_bfloat16_shapes": (_positive(self.linear_bfloat16_shapes), "triples of at least 1"),
            "growth_features": (self.growth_features >= 1, "at least 1"),
            "growth_samples": (_positive([self.growth_samples]) and self.growth_samples, "numbers of at least 1"),
            "growth_classes": (_positive([self.growth_classes]) and self.growth_classes, "numbers of at least 1"),
            "block_sizes": (_positive([self.block_sizes]), "numbers of at least 1"),
            "seed": (self.seed >= 0, "at least 0"),
            "rounds": (self.rounds >= 1, "at least 1"),
            "at_least_ms": (0 < self.at_least_ms < math.inf, "above 0 and finite"),
            "torch_threads": (self.torch_threads >= 1, "at least 1"),
        }
        for name, (holds, what) in wanted.items():
            if not holds:
                raise WrongInput(f"`{name}` must be {what}, got {getattr(self, name)!r}.")


def _positive(shapes: Sequence[Sequence[int]]) -> bool:
    return all(n >= 1 for shape in shapes for n in shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Source):
    """Time softjax.cross_entropy against optax's and torch's, and write the results as a JSON file and a picture."""

    part: Literal["core", "linear", "growth", "blocks"] = "core"
    """The loss of logits; the last layer and its loss; that as samples and classes grow; its block sizes."""
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


def run(part: str, config: Config, console: Console) -> dict[str, Any]:
    if part == "core":
        problems = [((*shape, dtype), functools.partial(run_case, *shape, dtype)) for shape in config.shapes
                    for dtype in config.dtypes]  # fmt: skip
    else:
        case = linear.CASES[part]
        problems = [((*shape, dtype), functools.partial(case, shape, dtype))
                    for shape, dtype in linear.problems(part, config)]  # fmt: skip
    columns = (TextColumn("round"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
        bar = progress.add_task("", total=len(problems) * config.rounds)
        cases = []
        for name, case in problems:
            progress.update(bar, description=" × ".join(map(str, name[:-1])) + f", {name[-1]}")
            cases.append(case(config, functools.partial(progress.advance, bar)))
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key != "output"}
    results = {"machine": machine.describe(PACKAGES), "part": part, "settings": settings, "cases": cases}
    return results | ({"peak_resident_bytes": linear.peak_resident(config)} if part == "linear" else {})


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
        markdown(results)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WrongInput(f"{path} is no results file of this program: {error!r}") from error
    return results


def prepare(folder: Path) -> None:
    """Finds out before the minutes of a run, not after, that the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WrongInput(f"cannot write to the output folder {folder}: {error.strerror}.") from error


def markdown(results: dict[str, Any]) -> str:
    return (report if results.get("part", "core") == "core" else linear_report).markdown(results)


def publish(results: dict[str, Any], folder: Path, console: Console) -> None:
    part = results["part"]
    name = f"{part}-{results['machine']['platform']}"
    contents = {f"{name}.json": as_json(results)}
    if part in ("core", "growth"):
        contents[f"{name}.png"] = (figure if part == "core" else linear_report).draw(results)
    for file, content in contents.items():
        write(folder / file, content)
    if part == "core":
        console.print(report.table(results))
    else:
        print(linear_report.markdown(results))
    console.print(*(f"Wrote {folder / file}" for file in contents), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    console = Console()

    def program() -> None:
        arguments = parse(Arguments, argv, DEFAULT_CONFIG)
        if arguments.markdown:
            print(markdown(load(arguments.markdown)))
            return
        prepare(arguments.settings.output)
        publish(run(arguments.part, arguments.settings, console), arguments.settings.output, console)

    return exit_status(program, interrupted=_signals.NOTHING_WRITTEN)


if __name__ == "__main__":
    _signals.leave(main())
