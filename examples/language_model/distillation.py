"""What `distil.py` adds to the language model: its settings, a student's losses, and its distance from the teacher."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Int

import softjax
from common import settings
from language_model.data import Corpus
from language_model.evaluation import over_held_out
from language_model.loss import hidden_and_kernel, last_layer
from language_model.model import Transformer
from language_model.settings import Config, Training

DEFAULT_CONFIG = settings.CONFIGS / "distil.toml"


@dataclasses.dataclass(frozen=True)
class Distillation(Training):
    """Every setting of a run: those of a student's training, and what it learns from."""

    teacher: Path = dataclasses.field(compare=False)
    """Folder of a finished run of `train_lm.py`, whose text and vocabulary are the students' too."""
    k: int
    """Likeliest tokens that a sparse label holds."""
    rest: Literal["text", "label"]
    """Where what a sparse label lacks of 1 goes: to the text's own token, or to the label's, in proportion."""
    kind: Literal["forward_kl", "reverse_kl", "jensen_shannon"]
    """The divergence from the teacher's hidden vectors."""
    beta: float
    """Weight of the teacher in the mean that the Jensen-Shannon divergence is taken from."""
    temperature: float
    """Of the divergence, which is multiplied by its square; the sparse labels are those of temperature 1."""
    text_share: float
    """Of the loss that is the text's own, where a teacher gives the other part."""
    rounds: int = dataclasses.field(compare=False)
    """Steps of each student that are timed at the end; two go before them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.check(self, _WANTED)

    def student(self, teacher: Config) -> Config:
        """The settings of a student's training: its own, and the teacher's text."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Training)}
        return dataclasses.replace(teacher, **own, loss="fused", z_loss=0.0)


_WANTED: settings.Wanted = {
    "k": settings.COUNT,
    "beta": settings.FRACTION,
    "temperature": settings.POSITIVE,
    "text_share": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "rounds": settings.COUNT,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(settings.Run):
    """Three small language models learn: from a teacher's sparse labels, from its hidden vectors, and from the text.

    The teacher is the model of a finished run of train_lm.py. Each student has a folder of its own in the output folder
    with its last two checkpoints; at the end distil.json and distil.png compare them. Folders that already hold a run
    are refused, unless you say what to do with them: --resume goes on from the last checkpoints (of a finished run, it
    only compares anew); --overwrite starts anew. Ctrl-C saves a checkpoint and stops.
    """

    settings: Annotated[Distillation, tyro.conf.arg(name="")]


class OfSparseLabels(eqx.Module):
    """Cross-entropy with the teacher's likeliest tokens and the text's own, which together have all the mass."""

    rest: str = eqx.field(static=True)
    text_share: float = eqx.field(static=True)

    def measured(self, config: Config) -> tuple[str, ...]:
        return ()

    def __call__(
        self, model: Transformer, rows: Int[Array, "sequences tokens"], beside: Any, config: Config
    ) -> tuple[Array, dict[str, Array]]:
        hidden, kernel, own, weights = last_layer(model, rows, config)
        ids, log_probabilities = (array.reshape(len(own), -1) for array in beside)
        taught = jnp.exp(log_probabilities.astype(jnp.float32))
        if self.rest == "label":
            taught /= jnp.sum(taught, axis=-1, keepdims=True)
        taught *= 1 - self.text_share
        # Rounded on the disk, the probabilities may sum to a little more than 1.
        others = jnp.maximum(1 - jnp.sum(taught, axis=-1, keepdims=True), 0)
        labels = softjax.SparseLabels(
            jnp.concatenate([ids.astype(jnp.int32), own[:, None]], axis=-1), jnp.concatenate([taught, others], axis=-1)
        )
        options: dict[str, Any] = {"weights": weights, "reduction": "sum", **config.axis_names}
        return softjax.linear_cross_entropy(hidden, kernel, labels, base=math.e, **options), {}


class OfHiddenVectors(eqx.Module):
    """Divergence from the distribution of the teacher's last layer, whose hidden vectors it makes in the step."""

    teacher: Transformer
    kind: Any = eqx.field(static=True)
    beta: float = eqx.field(static=True)
    temperature: float = eqx.field(static=True)
    text_share: float = eqx.field(static=True)

    def measured(self, config: Config) -> tuple[str, ...]:
        return ()

    def __call__(
        self, model: Transformer, rows: Int[Array, "sequences tokens"], beside: Any, config: Config
    ) -> tuple[Array, dict[str, Array]]:
        hidden, kernel, own, weights = last_layer(model, rows, config)
        taught = hidden_and_kernel(self.teacher, rows[:, :-1], config)
        options: dict[str, Any] = {"base": math.e, "weights": weights, "reduction": "sum", **config.axis_names}
        shape = {"kind": self.kind, "beta": self.beta, "temperature": self.temperature}
        total = softjax.linear_divergence(hidden, kernel, *taught, **shape, **options)
        # A temperature T divides the gradient by T², near enough.
        total *= (1 - self.text_share) * self.temperature**2
        if self.text_share:
            total += self.text_share * softjax.linear_cross_entropy(hidden, kernel, own, **options)
        return total, {}


def nearness(teacher: Transformer, model: Transformer, corpus: Corpus, config: Config) -> dict[str, float]:
    """Of the model to the teacher, means over the tokens of the held-out files."""
    sums = over_held_out(functools.partial(_nearness, teacher, model, config=config), corpus, config)
    return {name: float(sums[name] / sums["tokens"]) for name in ("agreement", "kl")}


@functools.partial(jax.jit, static_argnames="config")
def _nearness(
    teacher: Transformer, model: Transformer, rows: Int[Array, "sequences tokens"], config: Config
) -> dict[str, Array]:
    hidden, kernel, _, weights = last_layer(model, rows, config)
    taught, teaching, own, _ = last_layer(teacher, rows, config)
    prediction = softjax.linear_statistics(taught, teaching, own, **config.axis_names).prediction
    rank = softjax.linear_statistics(hidden, kernel, prediction, **config.axis_names).label_rank
    options: dict[str, Any] = {"base": math.e, "weights": weights, "reduction": "sum", **config.axis_names}
    return {
        "tokens": jnp.sum(weights),
        "agreement": jnp.sum(weights & (rank == 0)),
        "kl": softjax.linear_divergence(hidden, kernel, taught, teaching, **options),
    }
