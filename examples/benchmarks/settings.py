"""Settings and command-line options of `benchmark.py`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from common import settings

DEFAULT_CONFIG = settings.CONFIGS / "benchmark.toml"


@dataclasses.dataclass(frozen=True)
class Config:
    """Problem sizes and repetitions of the benchmark."""

    shapes: tuple[tuple[int, int], ...]
    """Problems of `--part core`: rows and classes."""
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...]
    """Dtypes of the logits in `--part core`."""
    seed: int
    """Seed of the data and of the order within each round."""
    rounds: int
    """Number of rounds. Each round times every contender once."""
    at_least_ms: float
    """A faster call is repeated within its round until it takes this long."""
    torch_threads: int
    """CPU threads of torch. XLA uses all cores."""
    linear_shapes: tuple[tuple[int, int, int], ...]
    """Problems of the last layer: samples, features and classes."""
    linear_bfloat16_shapes: tuple[tuple[int, int, int], ...]
    """Problems of the last layer in bfloat16."""
    growth_features: int
    """Features in `--part growth`."""
    growth_samples: tuple[int, ...]
    """Numbers of samples, each with the middle value of `growth_classes`."""
    growth_classes: tuple[int, ...]
    """Numbers of classes, each with the first value of `growth_samples`."""
    distil_shapes: tuple[tuple[int, int, int], ...]
    """Problems of `--part distil`: samples, features of student and teacher, and classes."""
    packing_shapes: tuple[tuple[int, int, int], ...]
    """Problems of `--part packing`: samples, features and classes."""
    block_sizes: tuple[int, ...]
    """Values of `block_size` in `--part chunks`."""
    output: Path
    """Folder for the results file and the figure."""

    def __post_init__(self) -> None:
        settings.check(self, _WANTED)


def _all_positive(value: Any) -> bool:
    return all(map(_all_positive, value)) if isinstance(value, tuple) else value >= 1


def _some_and_all_positive(values: tuple[Any, ...]) -> bool:
    return bool(values) and _all_positive(values)


_TRIPLES = (_some_and_all_positive, "triples of positive integers")
_SIZES = (_some_and_all_positive, "positive integers")
_WANTED: settings.Wanted = {
    "shapes": (_some_and_all_positive, "pairs of positive integers"),
    "dtypes": (bool, "at least one dtype"),
    "linear_shapes": _TRIPLES,
    "linear_bfloat16_shapes": (_all_positive, "triples of positive integers"),
    "distil_shapes": _TRIPLES,
    "packing_shapes": _TRIPLES,
    "growth_features": settings.COUNT,
    "growth_samples": _SIZES,
    "growth_classes": _SIZES,
    "block_sizes": (_all_positive, "positive integers"),
    "seed": (lambda v: v >= 0, "at least 0"),
    "rounds": settings.COUNT,
    "at_least_ms": settings.POSITIVE,
    "torch_threads": settings.COUNT,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(settings.Source):
    """Time softjax against optax, torch and hand-written losses. Write a JSON file, and for two parts a figure."""

    part: Literal["core", "linear", "growth", "chunks", "packing", "distil"] = "core"
    """What to time.
    core: the cross-entropy of given logits.
    linear: the last layer fused with its loss.
    growth: linear, for growing numbers of samples and classes.
    chunks: linear, for each `block_size`.
    packing: linear, where a part of the samples has weight 0.
    distil: the divergence from a teacher, fused with both last layers."""
    markdown: Path | None = None
    """Measure nothing. Print the tables of this results file, or the results page of a folder of results files."""
    settings: Annotated[Config, tyro.conf.arg(name="")]


def parse(argv: Sequence[str] | None) -> Options:
    return settings.parse(Options, argv, DEFAULT_CONFIG)
