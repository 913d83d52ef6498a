"""The settings of `train_classifier.py`, and its options."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from common import devices as _devices
from common import run as _run
from common.settings import WrongInput

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "classifier.toml"


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
        for name, (holds, wanted) in _WANTED.items():
            value = getattr(self, name)
            if not holds(value):
                raise WrongInput(f"`{name}` must be {wanted}, got {value!r}.")

    def shares(self) -> tuple[int, int] | None:
        """Into how many parts the images and the classes are split, if there is a mesh."""
        return _devices.shares(self.mesh)

    def make_mesh(self) -> jax.sharding.Mesh | None:
        return _devices.make_mesh(self.mesh, samples={"batch_size": self.batch_size})

    def result_settings(self) -> dict[str, Any]:
        """The settings that decide the result, in types that JSON keeps."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.compare}


# Each test is false for NaN.
_WANTED = {
    "classes": (lambda v: 2 <= v <= 10, "from 2 to 10, the digits that there are"),
    "test_fraction": (lambda v: 0 < v < 1, "between 0 and 1"),
    "seed": (lambda v: 0 <= v < 2**32, "from 0 to 4294967295"),
    "learning_rate": (lambda v: 0 < v < math.inf, "above 0 and finite"),
    "epochs": (lambda v: 1 <= v <= 100_000, "from 1 to 100000"),
    "batch_size": (lambda v: v >= 1, "at least 1"),
    "base": (lambda v: 1 < v < math.inf, "above 1 and finite"),
    "label_smoothing": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "weight_decay": (lambda v: 0 <= v < math.inf, "at least 0 and finite"),
    "checkpoint_every": (lambda v: v >= 1, "at least 1"),
    "mesh": (_devices.PATTERN.fullmatch, _devices.WANTED),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(_run.Source):
    """Train a linear classifier on handwritten digits, with `softjax.cross_entropy` as its loss.

    A run keeps checkpoint.npz in its output folder, and at the end writes params.npz, metrics.json and four pictures.
    A folder that already holds any of these is refused, unless you say what to do with them: --resume goes on from the
    checkpoint (or begins, where a run was killed before its first one); --overwrite starts anew, its checkpoints
    replacing the old one, and its results replacing the old results only when it has finished.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")]


def parse(argv: Sequence[str] | None) -> Arguments:
    return _run.parse(Arguments, argv, DEFAULT_CONFIG)
