"""The settings of `train_classifier.py`, and its options."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import _config
import jax
import tyro
from _config import WrongInput

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "classifier.toml"


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
        data, classes = _MESH.fullmatch(self.mesh).groups(default="1")  # pyright: ignore[reportOptionalMemberAccess]
        return (int(data), int(classes)) if self.mesh else None

    def make_mesh(self) -> jax.sharding.Mesh | None:
        shares = self.shares()
        if shares is None:
            return None
        wanted, present = math.prod(shares), jax.device_count()
        if wanted > present:
            simulate = f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted} simulates them on a CPU"
            raise WrongInput(f"`mesh` {self.mesh} needs {wanted} devices, there are {present}; {simulate}.")
        if self.batch_size % shares[0]:
            raise WrongInput(f"`batch_size` {self.batch_size} does not divide by the data={shares[0]} of `mesh`.")
        automatic = (jax.sharding.AxisType.Auto,) * 2
        return jax.make_mesh(shares, ("data", "classes"), automatic, devices=jax.devices()[:wanted])

    def result_settings(self) -> dict[str, Any]:
        """The settings that decide the result, in types that JSON keeps."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.compare}


_MESH = re.compile(r"(?:data=([1-9]\d{0,5}))?(?:(?:^|,)classes=([1-9]\d{0,5}))?")

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
    "mesh": (_MESH.fullmatch, "like data=4,classes=2, one of the two, or empty"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(_config.Source):
    """Train a linear classifier on handwritten digits, with `softjax.cross_entropy` as its loss.

    A run keeps checkpoint.npz in its output folder, and at the end writes params.npz, metrics.json and four pictures.
    A folder that already holds any of these is refused, unless you say what to do with them: --resume goes on from the
    checkpoint (or begins, where a run was killed before its first one); --overwrite starts anew, its checkpoints
    replacing the old one, and its results replacing the old results only when it has finished.
    """

    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on from the folder's checkpoint, with the settings of the run that wrote it."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start anew in a folder that holds a run."""
    settings: Annotated[Config, tyro.conf.arg(name="")]


def parse(argv: Sequence[str] | None) -> Arguments:
    """The settings of the file that `--config` names, overridden by the other options in `argv`.

    Raises:
      WrongInput: for a file or an option that cannot be used.
    """
    arguments = _config.parse(Arguments, argv, DEFAULT_CONFIG)
    if arguments.resume and arguments.overwrite:
        raise WrongInput("--resume and --overwrite contradict each other: pass one of them.")
    return arguments
