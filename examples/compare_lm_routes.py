"""Train the language model with each route of its loss, and compare loss curves, time per step and memory.

    python examples/compare_lm_routes.py                             # configs/lm.toml and configs/lm-large.toml
    python examples/compare_lm_routes.py --configs configs/lm.toml --rounds 50

All routes see the same batches. A further case ignores most tokens of the first configuration, as in fine-tuning, where
only completions have a loss: turns of prompt and completion alternate at random. Each round times one step of each
route, in a random order. Temporary memory is what the compiled step needs in addition to its arguments and results.

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
from language_model.data import Batches, Corpus
from language_model.settings import ROUTES, Config
from language_model.timing import TimedStep
from train_lm import initial_state, train_step


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the language model with each route of its loss, on the same batches."""

    configs: tuple[Path, ...] = (settings.CONFIGS / "lm.toml", settings.CONFIGS / "lm-large.toml")
    """Settings files of `train_lm.py`. Their `loss` and `steps` are not used."""
    prompt_fraction: float = 0.7
    """The further case: the part of the tokens that is prompt, of weight 0. 0 leaves it out."""
    rounds: int = 20
    """Timed steps of each route. Two more steps run first, untimed."""
    output: Path = Path(__file__).resolve().parent / "results"
    """Folder for the two files."""

    def __post_init__(self) -> None:
        fraction = (lambda v: 0 <= v < 1, "at least 0 and below 1")
        settings.check(self, {"rounds": settings.COUNT, "prompt_fraction": fraction})


class PromptBatches(Batches):
    """Batches with `active`, which is False in prompts: turns of 16 tokens, at random prompt or completion."""

    def __init__(self, corpus: Corpus, config: Config, prompt_fraction: float):
        super().__init__(corpus, config)
        self._seed, self._prompt_fraction = config.seed, prompt_fraction

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        tokens = super().__getitem__(step)["tokens"]
        *sequences, length = tokens[..., 1:].shape
        turns = -(-length // 16)
        of_others = self._prompt_fraction * turns / max(turns - 1, 1)  # the last turn is a completion
        is_active = np.random.default_rng([self._seed, step]).uniform(size=(*sequences, turns)) >= of_others
        is_active[..., -1] = True
        active = np.repeat(is_active, 16, axis=-1)[..., :length]
        return {"tokens": tokens, "active": active}


def compare(config: Config, rounds: int, prompt_fraction: float = 0.0) -> dict[str, Any]:
    """Trains with every route, and returns the entry of this configuration in the results file."""
    corpus = data.load(config)
    batches = PromptBatches(corpus, config, prompt_fraction) if prompt_fraction else Batches(corpus, config)
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
    return {
        "tokens": tokens,
        "vocabulary": config.vocabulary,
        "prompt_fraction": prompt_fraction,
        "settings": settings.decisive(config),
        "routes": routes,
    }


@program.exit_status(program.NOTHING_WRITTEN)
def main(argv: Sequence[str] | None = None) -> None:
    options = settings.command_line(Options, argv)
    program.make_writable(options.output)
    runs, cases = [(path, 0.0) for path in options.configs], []
    if options.prompt_fraction:
        runs.append((options.configs[0], options.prompt_fraction))
    for path, prompt_fraction in runs:
        config = settings.read(path, Config)
        with config.on_mesh():
            cases.append(compare(config, options.rounds, prompt_fraction))
    packages = ("jax", "jaxlib", "optax", "equinox", "numpy")
    results = {"rounds": options.rounds, "machine": machine.describe(packages), "cases": cases}
    path = options.output / f"lm-routes-{jax.default_backend()}"
    program.write(path.with_suffix(".json"), (json.dumps(results, indent=1) + "\n").encode())
    program.write(path.with_suffix(".png"), routes_report.draw(cases))
    print(routes_report.table(cases))
    differences = ", ".join(
        f"{routes_report.largest_difference(case):.1e} at {routes_report.describe_case(case)}" for case in cases
    )
    print(f"\nLargest relative difference between the loss curves: {differences}.\nResults: {path}.json and .png")


if __name__ == "__main__":
    program.leave(main())
