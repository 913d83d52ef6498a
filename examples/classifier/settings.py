"""The settings of `train_classifier.py`, and its options."""

import dataclasses
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal

import tyro

from common import settings

DEFAULT_CONFIG = settings.CONFIGS / "classifier.toml"


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run. One that exists has passed its checks.

    Two are equal if they lead to the same result: then `jit` compiles once for both, and one resumes the other's run.
    """

    classes: int
    """Digits 0 to classes-1 are told apart, 2 to 10 of them."""
    test_fraction: float
    """Share of the images held out, the same for every class."""
    seed: int
    """Of the split, and of the order of the images in each epoch."""
    optimiser: Literal["adam", "sgd"]
    """The optax optimiser; sgd has Nesterov momentum 0.9."""
    learning_rate: float
    """At the first step."""
    schedule: Literal["cosine", "constant"]
    """Cosine takes the learning rate to 0 at the last step."""
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images a step; an epoch's last, incomplete batch is dropped."""
    base: float
    """Of the loss's logarithm, above 1: 10 gives hartleys, 2 bits, 2.718281828459045 nats."""
    label_smoothing: float
    """Share of each label's probability that is spread over all classes, 0 to 1."""
    weight_decay: float
    """Weight of the L2 penalty: weight_decay/2 times the sum of the squared weights, the bias left out."""
    checkpoint_every: int = dataclasses.field(compare=False)
    """Epochs between checkpoints."""
    output: Path = dataclasses.field(compare=False)
    """Folder of the run's files."""
    mesh: str = dataclasses.field(compare=False)
    """Devices that share each step: data=4,classes=2 splits the images in 4 and the classes in 2; empty for one device.
    The result is the same to rounding, and a run may be resumed on another mesh."""

    def __post_init__(self) -> None:
        settings.check(self, _WANTED)

    def on_mesh(self) -> AbstractContextManager[None]:
        return settings.on_mesh(self.mesh, samples={"batch_size": self.batch_size})


_WANTED: settings.Wanted = {
    "classes": (lambda v: 2 <= v <= 10, "from 2 to 10, the digits that there are"),
    "test_fraction": settings.FRACTION,
    "seed": settings.SEED,
    "learning_rate": settings.POSITIVE,
    "epochs": (lambda v: 1 <= v <= 100_000, "from 1 to 100000"),
    "batch_size": settings.COUNT,
    "base": (lambda v: 1 < v < math.inf, "above 1 and finite"),
    "label_smoothing": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "weight_decay": settings.NOT_NEGATIVE,
    "checkpoint_every": settings.COUNT,
    "mesh": settings.MESH,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(settings.Run):
    """Train a linear classifier on handwritten digits, with `softjax.cross_entropy` as its loss.

    A run keeps its last two checkpoints in its output folder, and at the end writes params.npz, metrics.json and four
    pictures. A folder that already holds any of these is refused, unless you say what to do with them: --resume goes on
    from the last checkpoint (or begins, where a run was killed before its first one); --overwrite starts anew, its
    first checkpoint replacing the old ones, and its results replacing the old results when it has finished.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")]


def parse(argv: Sequence[str] | None) -> Options:
    return settings.parse(Options, argv, DEFAULT_CONFIG)
