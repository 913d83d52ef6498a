"""The settings of `train_lm.py`, and its options."""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import tyro

from common import settings
from common.program import WrongInput

DEFAULT_CONFIG = settings.CONFIGS / "lm.toml"


@dataclasses.dataclass(frozen=True)
class Training:
    """The settings that every program of the language model has: a model, its optimiser, and where a run is kept."""

    features: int
    """Width of the model."""
    layers: int
    """Blocks of attention and feedforward."""
    heads: int
    """Of the attention; each has features/heads features, an even number."""
    tied: bool
    """Whether the embedding is the last layer's kernel too."""
    compute: Literal["float32", "bfloat16"]
    """Type of the model's arithmetic; parameters and optimiser are float32."""
    steps: int
    """Updates of the parameters."""
    batch_size: int
    """Sequences a step."""
    microbatches: int
    """Parts of a batch that take their turn; their gradients are added. Only memory and rounding depend on it."""
    learning_rate: float
    """At its peak, after the warm-up; from there a cosine takes it to 0 at the last step."""
    warmup_steps: int
    """Steps in which the learning rate rises from 0."""
    weight_decay: float
    """AdamW's, of matrices only."""
    clip_norm: float
    """The gradient's global norm is clipped to it."""
    seed: int
    """Of the initial parameters, the order of the sequences, and what is sampled."""
    mesh: str = dataclasses.field(compare=False)
    """Devices that share each step: data=4,classes=2 splits the sequences in 4 and the vocabulary in 2; empty for one
    device. The result is the same to rounding, and a run may be resumed on another mesh."""
    evaluate_every: int
    """Steps between evaluations on the held-out files."""
    checkpoint_every: int = dataclasses.field(compare=False)
    """Steps between checkpoints; the last two are kept."""
    cache: Path = dataclasses.field(compare=False)
    """Folder of the tokenised text, kept until the text or the vocabulary's size changes."""
    output: Path = dataclasses.field(compare=False)
    """Folder of the run's files."""

    def __post_init__(self) -> None:
        settings.check(self, _WANTED_OF_TRAINING)
        for name, divisor, each in (
            ("features", "heads", "an even number of features for each"),
            ("batch_size", "microbatches", "as many sequences in each"),
        ):
            whole, parts = getattr(self, name), getattr(self, divisor)
            if whole % (parts * (2 if name == "features" else 1)):
                raise WrongInput(f"`{divisor}` {parts} must leave {each}, got `{name}` {whole}.")


_WANTED_OF_TRAINING: settings.Wanted = {
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
    """Every setting of a run. One that exists has passed its checks.

    Two are equal if they lead to the same result: then `jit` compiles once for both, and one resumes the other's run.
    """

    text: str
    """Folder of the text; empty for the sources of Python's own standard library."""
    pattern: str
    """Of the files in it."""
    test_fraction: float
    """Share of the files held out, by a hash of their names."""
    vocabulary: int
    """Entries of the byte-pair vocabulary; the last of them ends a file."""
    sequence_length: int
    """Tokens that the model sees at once."""
    loss: Literal["fused", "unlogged", "logits", "optax"]
    """fused: softjax.linear_loss, no logits, and measures more than the loss; unlogged: softjax.linear_cross_entropy,
    the loss alone; logits: softjax.cross_entropy on them; optax: optax on them."""
    z_loss: float
    """Weight of the squared log-normaliser in the loss, e.g. 1e-4; the curve of the training loss shows it too."""
    prompt: str
    """What the sample of text at the end begins with."""
    sample_tokens: int
    """Length of the sample."""
    temperature: float
    """Of the sample: the logits are divided by it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.check(self, _WANTED)

    @property
    def end(self) -> int:
        """The token after each file."""
        return self.vocabulary - 1

    @property
    def compute_dtype(self) -> Any:
        return jnp.dtype(self.compute)

    @property
    def axis_names(self) -> dict[str, Any]:
        """What the losses must be told where the mesh shares the vocabulary and the sequences."""
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
class Options(settings.Run):
    """Train a small language model on text, with a loss that never holds its logits.

    A run keeps its last two checkpoints in its output folder, and at the end writes curves.png, positions.png,
    calibration.png, sample.txt and metrics.json. A folder that already holds any of these is refused, unless you say
    what to do with them: --resume goes on from the last checkpoint (or begins, where a run was killed before its first
    one); --overwrite starts anew, its first checkpoint replacing the old ones. Ctrl-C saves a checkpoint and stops.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")]


def parse(argv: Sequence[str] | None) -> Options:
    return settings.parse(Options, argv, DEFAULT_CONFIG)
