"""The settings of `benchmark.py`, and its options."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from common import settings

DEFAULT_CONFIG = settings.CONFIGS / "benchmark.toml"


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
    distil_shapes: tuple[tuple[int, int, int], ...]
    """The problems of a student and its teacher: samples, features of both, and classes."""
    block_sizes: tuple[int, ...]
    """The grid of `--part blocks`."""
    output: Path
    """Folder of the results file and the picture."""

    def __post_init__(self) -> None:
        settings.check(self, _WANTED)


def _positive(value: Any) -> bool:
    return all(map(_positive, value)) if isinstance(value, tuple) else value >= 1


_PROBLEMS = (lambda shapes: shapes and _positive(shapes), "triples of at least 1")
_SIZES = (lambda sizes: sizes and _positive(sizes), "numbers of at least 1")
_WANTED: settings.Wanted = {
    "shapes": (_PROBLEMS[0], "pairs of at least 1"),
    "dtypes": (bool, "one dtype or more"),
    "linear_shapes": _PROBLEMS,
    "linear_bfloat16_shapes": (_positive, "triples of at least 1"),
    "distil_shapes": _PROBLEMS,
    "growth_features": settings.COUNT,
    "growth_samples": _SIZES,
    "growth_classes": _SIZES,
    "block_sizes": (_positive, "numbers of at least 1"),
    "seed": (lambda v: v >= 0, "at least 0"),
    "rounds": settings.COUNT,
    "at_least_ms": settings.POSITIVE,
    "torch_threads": settings.COUNT,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(settings.Source):
    """Time softjax.cross_entropy against optax's and torch's, and write the results as a JSON file and a picture."""

    part: Literal["core", "linear", "growth", "blocks", "distil"] = "core"
    """The loss of logits; the last layer and its loss; that as samples and classes grow; its block sizes; the last
    layers of a student and its teacher."""
    markdown: Path | None = None
    """Run nothing: print the tables of this results file, or the page of a folder of them."""
    settings: Annotated[Config, tyro.conf.arg(name="")]


def parse(argv: Sequence[str] | None) -> Options:
    return settings.parse(Options, argv, DEFAULT_CONFIG)
