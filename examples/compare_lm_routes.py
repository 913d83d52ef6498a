"""Train the language model with each route of its loss, and compare loss curves, time per step and memory.

    python examples/compare_lm_routes.py                             # configs/lm.toml and configs/lm-large.toml
    python examples/compare_lm_routes.py --configs configs/lm.toml --rounds 50

All routes see the same batches. Each round times one step of each route, in a random order. Temporary memory is what
the compiled step needs in addition to its arguments and results.

Writes lm-routes-<platform>.json and .png, and prints the table of results/README.md.
"""

from common import program

if __name__ == "__main__":
    program.end_in_one_line(program.NOTHING_WRITTEN)

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import machine, routes_report
from benchmarks.timing import interleaved, ratio
from common import settings
from language_model import data
from language_model.data import Batches
from language_model.settings import ROUTES, Config
from language_model.timing import TimedStep
from train_lm import initial_state, train_step


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the language model with each route of its loss, on the same batches."""

    configs: tuple[Path, ...] = (settings.CONFIGS / "lm.toml", settings.CONFIGS / "lm-large.toml")
    """Settings files of `train_lm.py`. Their `loss` and `steps` are not used."""
    rounds: int = 20
    """Timed steps of each route. Two more steps run first, untimed."""
    output: Path = Path(__file__).resolve().parent / "results"
    """Folder for the two files."""

    def __post_init__(self) -> None:
        settings.check(self, {"rounds": settings.COUNT})


def compare(config: Config, rounds: int) -> dict[str, Any]:
    """Trains with every route, and returns the entry of this configuration in the results file."""
    corpus = data.load(config)
    batches = Batches(corpus, config)
    configs = {route: dataclasses.replace(config, loss=route, steps=rounds + 2) for route in ROUTES}
    programs = {
        route: TimedStep(train_step, initial_state(config), batches, config) for route, config in configs.items()
    }
    calls: dict[str, Callable[[], Any]] = dict(programs)
    timings = interleaved(calls, rounds=rounds, at_least=0, seed=config.seed)
    routes = {
        name: {
            "seconds": timings[name].median,
            "quartiles": timings[name].quartiles,
            "fused_ratio": dataclasses.asdict(ratio(timings["fused"], timings[name])),
            "temporary_bytes": program.temporary_bytes,
            "losses": np.asarray(program.state.curves["loss"]).tolist(),
        }
        for name, program in programs.items()
    }
    tokens = config.batch_size * config.sequence_length
    return {"tokens": tokens, "vocabulary": config.vocabulary, "settings": settings.decisive(config), "routes": routes}


@program.exit_status(program.NOTHING_WRITTEN)
def main(argv: Sequence[str] | None = None) -> None:
    options = settings.command_line(Options, argv)
    program.make_writable(options.output)
    cases = []
    for path in options.configs:
        config = settings.read(path, Config)
        with config.on_mesh():
            cases.append(compare(config, options.rounds))
    packages = ("jax", "jaxlib", "optax", "equinox", "numpy")
    results = {"rounds": options.rounds, "machine": machine.describe(packages), "cases": cases}
    path = options.output / f"lm-routes-{jax.default_backend()}"
    program.write(path.with_suffix(".json"), (json.dumps(results, indent=1) + "\n").encode())
    program.write(path.with_suffix(".png"), routes_report.draw(cases))
    print(routes_report.table(cases))
    differences = ", ".join(
        f"{routes_report.largest_difference(case):.1e} with vocabulary {case['vocabulary']:,}" for case in cases
    )
    print(f"\nLargest relative difference between the loss curves: {differences}.\nResults: {path}.json and .png")


if __name__ == "__main__":
    program.leave(main())
