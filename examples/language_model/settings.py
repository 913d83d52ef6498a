"""The settings and options of `train_lm.py`, and those that `distil.py` shares."""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jax.numpy as jnp
import tyro

from common import settings
from common.settings import WrongInput

Route = Literal["fused", "unlogged", "logits", "optax"]
ROUTES: tuple[Route, ...] = get_args(Route)

DEFAULT_CONFIG = settings.CONFIGS / "lm.toml"


@dataclasses.dataclass(frozen=True)
class Training:
    """The settings of all programs that train a language model. Those with `compare=False` do not change the result."""

    features: int
    """Width of the model."""
    layers: int
    """Number of transformer blocks."""
    heads: int
    """Attention heads; each has features/heads features, an even number."""
    tied: bool
    """Whether the last layer uses the embedding as its kernel."""
    compute: Literal["float32", "bfloat16"]
    """Dtype of the model's arithmetic; the parameters and the optimiser stay float32."""
    steps: int
    """Training steps."""
    batch_size: int
    """Sequences per step."""
    microbatches: int
    """Parts of a batch that are computed one after another, to save memory. The gradients are added."""
    learning_rate: float
    """Peak learning rate, after the warm-up; a cosine then takes it to 0 at the last step."""
    warmup_steps: int
    """Steps in which the learning rate rises from 0."""
    weight_decay: float
    """Weight decay of AdamW, for matrices only."""
    clip_norm: float
    """The gradient is clipped to this global norm."""
    seed: int
    """Seed of the initial parameters, the order of the sequences and the sample of text."""
    mesh: str = dataclasses.field(compare=False)
    """Devices that share each step: data=4,classes=2 shards the sequences over 4 and the vocabulary over 2; empty for
    one device. The result is the same up to rounding, and a run may be resumed on another mesh."""
    evaluate_every: int
    """Steps between evaluations on the held-out files."""
    checkpoint_every: int = dataclasses.field(compare=False)
    """Steps between checkpoints; the last two are kept."""
    cache: Path = dataclasses.field(compare=False)
    """Folder that keeps the tokenised text for later runs."""
    output: Path = dataclasses.field(compare=False)
    """Folder of the run's files."""

    def __post_init__(self) -> None:
        settings.check(self, _TRAINING)
        for name, divisor, each in (
            ("features", "heads", "an even number of features for each"),
            ("batch_size", "microbatches", "as many sequences in each"),
        ):
            size, parts = getattr(self, name), getattr(self, divisor)
            if size % (parts * (2 if name == "features" else 1)):
                raise WrongInput(f"`{divisor}` {parts} must leave {each}, got `{name}` {size}.")


_TRAINING: settings.Wanted = {
    "features": settings.COUNT,
    "layers": settings.COUNT,
    "heads": settings.COUNT,
    "steps": settings.COUNT,
    "batch_size": settings.COUNT,
    "microbatches": settings.COUNT,
    "learning_rate": settings.POSITIVE,
    "warmup_steps": (lambda v: v >= 0, "at least 0"),
    "weight_decay": settings.NOT_NEGATIVE,
    "clip_norm": settings.POSITIVE,
    "seed": settings.SEED,
    "mesh": settings.MESH,
    "evaluate_every": settings.COUNT,
    "checkpoint_every": settings.COUNT,
}


@dataclasses.dataclass(frozen=True)
class Config(Training):
    """The settings of a run of `train_lm.py`."""

    text: str
    """Folder of the text; empty for the source code of Python's standard library."""
    pattern: str
    """Pattern of the files in that folder."""
    test_fraction: float
    """Fraction of the files held out for testing, chosen by a hash of their names."""
    vocabulary: int
    """Size of the byte-pair vocabulary; its last token marks the end of a file."""
    sequence_length: int
    """Tokens per sequence."""
    loss: Route
    """fused: softjax.linear_loss, without logits, also logs accuracy and entropy; unlogged: linear_cross_entropy, also
    without logits, logs the loss alone; logits: softjax.cross_entropy of the logits; optax: optax's loss of them."""
    z_loss: float
    """Weight of the squared log-normaliser in the training loss, e.g. 1e-4."""
    prompt: str
    """Beginning of the sample of text that the trained model writes."""
    sample_tokens: int
    """Length of the sample in tokens."""
    temperature: float
    """Temperature of the sample: the logits are divided by it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.check(self, _WANTED)

    @property
    def end(self) -> int:
        """The token that marks the end of a file."""
        return self.vocabulary - 1

    @property
    def compute_dtype(self) -> Any:
        return jnp.dtype(self.compute)

    @property
    def axis_names(self) -> dict[str, Any]:
        """The arguments of a loss that name the mesh axes."""
        return {"axis_name": "classes", "batch_axis_name": "data"} if self.mesh else {}

    def on_mesh(self) -> AbstractContextManager[None]:
        samples = {"batch_size / microbatches": self.batch_size // self.microbatches}
        return settings.on_mesh(self.mesh, samples=samples, classes={"vocabulary": self.vocabulary})


_WANTED: settings.Wanted = {
    "pattern": (lambda v: Path(v).name and not Path(v).is_absolute(), "a pattern of file names such as **/*.py"),
    "test_fraction": settings.FRACTION,
    "vocabulary": (lambda v: 257 <= v <= 2**24, "from 257, the bytes and the end of a file, to 16777216"),
    "sequence_length": settings.COUNT,
    "z_loss": settings.NOT_NEGATIVE,
    "prompt": (bool, "some text"),
    "sample_tokens": (lambda v: v >= 0, "at least 0"),
    "temperature": settings.POSITIVE,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(settings.RunOptions):
    """Train a small language model on text, with a fused loss that never materialises the logits.

    A run keeps its last two checkpoints in its output folder. At the end it writes curves.png, positions.png,
    calibration.png, sample.txt and metrics.json. A folder that already holds any of these is refused unless you pass an
    option: --resume goes on from the last checkpoint, or begins if there is none; --overwrite starts anew, and replaces
    the old checkpoints when it saves its first. Ctrl-C saves a checkpoint and stops.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")]


def parse(argv: Sequence[str] | None) -> Options:
    return settings.parse(Options, argv, DEFAULT_CONFIG)
