"""Train the language model by each route of its loss on the same batches: the curves, and a step's time and memory.

    python examples/compare_lm_routes.py                             # configs/lm.toml and configs/lm-large.toml
    python examples/compare_lm_routes.py --configs configs/lm.toml --rounds 50

Writes lm-routes-<platform>.json and .png, and prints the README's table. Each round times one step of each route, in an
order drawn anew. Memory is what the compiled step needs beside its arguments and its results.
"""

from common import program as _signals

if __name__ == "__main__":
    _signals.end_in_one_line(_signals.NOTHING_WRITTEN)

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import machine as _machine
from benchmarks.timing import interleaved, ratio
from common import files as checkpoint
from common import settings as _config
from common.settings import exit_status
from language_model import data as lm_data
from language_model import figures as figures
from language_model.loss import ROUTES
from language_model.settings import Config
from train_lm import Batches, initial_state, train_step

_ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the language model by each route of its loss on the same batches."""

    configs: tuple[Path, ...] = (_ROOT / "configs" / "lm.toml", _ROOT / "configs" / "lm-large.toml")
    """Settings of `train_lm.py`; their `loss` and `steps` do not matter."""
    rounds: int = 20
    """Steps of each route that are timed; two go before them."""
    output: Path = _ROOT / "examples" / "results"
    """Folder of the two files."""


def compare(config: Config, rounds: int) -> dict[str, Any]:
    corpus = lm_data.load(config)
    batches = Batches(corpus, config)
    programs = {
        route: Program(dataclasses.replace(config, loss=route, steps=rounds + 2), batches)  # pyright: ignore[reportArgumentType]
        for route in ROUTES
    }
    calls: dict[str, Callable[[], Any]] = dict(programs)
    timings = interleaved(calls, rounds=rounds, at_least=0, seed=config.seed)
    routes = {
        name: {
            "seconds": timings[name].median,
            "quartiles": timings[name].quartiles,
            "fused_as_a_share": dataclasses.asdict(ratio(timings["fused"], timings[name])),
            "temporary_bytes": program.temporary_bytes,
            "losses": np.asarray(program.state.curves["loss"]).tolist(),
        }
        for name, program in programs.items()
    }
    tokens = config.batch_size * config.sequence_length
    return {"tokens": tokens, "vocabulary": config.vocabulary, "settings": config.result_settings(), "routes": routes}


class Program:
    """A compiled step of one route and the state that it has led to; each call takes the next batch."""

    def __init__(self, config: Config, batches: Batches):
        self._batches = batches
        self._next = 0
        self.state = initial_state(config)
        self._step = train_step.lower(self.state, batches[0], config).compile()
        self.temporary_bytes = getattr(self._step.memory_analysis(), "temp_size_in_bytes", None)

    def __call__(self) -> None:
        self.state = jax.block_until_ready(self._step(self.state, self._batches[self._next]))
        self._next += 1


def table(cases: Sequence[dict[str, Any]]) -> str:
    rows = ["| tokens × vocabulary | route | a step | fused takes | temporary memory | loss at the last step |"]
    rows.append("|---|---|--:|--:|--:|--:|")
    for case in cases:
        for name, route in case["routes"].items():
            memory = "" if route["temporary_bytes"] is None else f"{route['temporary_bytes'] / 1e6:,.0f} MB"
            share = f"{route['fused_as_a_share']['of_medians']:.2f}" if name != "fused" else ""
            shape = f"{case['tokens']:,} × {case['vocabulary']:,}"
            rows.append(
                f"| {shape} | {name} | {route['seconds']:.2f} s | {share} | {memory} | {route['losses'][-1]:.5f} |"
            )
    return "\n".join(rows)


def largest_difference(case: dict[str, Any]) -> float:
    """Of the curves, relative to the fused one."""
    curves = {name: np.asarray(route["losses"]) for name, route in case["routes"].items()}
    return max(float(np.max(np.abs(curve / curves["fused"] - 1))) for curve in curves.values())


def main(argv: Sequence[str] | None = None) -> int:
    def program() -> None:
        options = _config.command_line(Options, argv)
        if options.rounds < 1:
            raise _config.WrongInput(f"`rounds` must be at least 1, got {options.rounds}.")
        cases = []
        for path in options.configs:
            config = _config.read(path, Config)
            mesh = config.make_mesh()
            with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
                cases.append(compare(config, options.rounds))
        machine = _machine.describe(("jax", "jaxlib", "optax", "equinox", "numpy"))
        results = {"rounds": options.rounds, "machine": machine, "cases": cases}
        options.output.mkdir(parents=True, exist_ok=True)
        path = options.output / f"lm-routes-{jax.default_backend()}"
        checkpoint.write(path.with_suffix(".json"), (json.dumps(results, indent=1) + "\n").encode())
        checkpoint.write(path.with_suffix(".png"), figures.draw_routes(cases))
        print(table(cases))
        apart = ", ".join(f"{largest_difference(case):.1e} at {case['vocabulary']:,} entries" for case in cases)
        print(f"\nThe curves lie at most this far apart, relatively: {apart}.\nResults: {path}.json and .png")

    return exit_status(program, interrupted=_signals.NOTHING_WRITTEN)


if __name__ == "__main__":
    _signals.leave(main())
