"""What `distil.py` adds to the language model: its settings, the losses of a student, its distance from the teacher."""

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
from language_model.evaluation import sum_over_held_out
from language_model.model import Transformer, hidden_and_kernel, labels_and_weights
from language_model.settings import Config, Training

DEFAULT_CONFIG = settings.CONFIGS / "distil.toml"


@dataclasses.dataclass(frozen=True)
class Distillation(Training):
    """The settings of a run of `distil.py`: how the students are trained, and what they learn from."""

    teacher: Path = dataclasses.field(compare=False)
    """Folder of a finished run of `train_lm.py`; the students have its text and its vocabulary."""
    k: int
    """Most likely tokens in a sparse label."""
    rest: Literal["text", "label"]
    """Where a sparse label puts the probability that its k tokens lack: on the token of the text, or on the k tokens in
    proportion."""
    kind: Literal["forward_kl", "reverse_kl", "jensen_shannon"]
    """Divergence from the teacher's distribution, for the student that learns from hidden states."""
    beta: float
    """Weight of the teacher in the mixture of the Jensen-Shannon divergence."""
    temperature: float
    """Temperature of the divergence, which is multiplied by its square; sparse labels always have temperature 1."""
    text_share: float
    """Weight of the text's own tokens in the loss; the teacher has the rest."""
    rounds: int = dataclasses.field(compare=False)
    """Steps of each student that are timed at the end, after two that are not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted: settings.Wanted = {
            "k": settings.COUNT,
            "beta": settings.FRACTION,
            "temperature": settings.POSITIVE,
            "text_share": settings.PROBABILITY,
            "rounds": settings.COUNT,
        }
        settings.check(self, wanted)

    def student(self, teacher: Config) -> Config:
        """The settings of a student's training, on the text of the teacher."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Training)}
        return dataclasses.replace(teacher, **own, loss="fused", z_loss=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(settings.RunOptions):
    """Distil a language model into three students: from sparse labels, from hidden states, and from the text alone.

    The teacher is the model of a finished run of train_lm.py. Each student has its own folder in the output folder,
    with its last two checkpoints. At the end distil.json and distil.png compare them. Folders that already hold a run
    are refused unless you pass an option: --resume goes on from the last checkpoints, or only compares the students
    again if they have finished; --overwrite starts anew. Ctrl-C saves a checkpoint and stops.
    """

    settings: Annotated[Distillation, tyro.conf.arg(name="")]


class SparseLabelLoss(eqx.Module):
    """Cross-entropy with the teacher's most likely tokens and the token of the text, which share the probability 1."""

    rest: str = eqx.field(static=True)
    text_share: float = eqx.field(static=True)

    def __call__(self, model: Transformer, batch: dict[str, Any], config: Config) -> tuple[Array, dict[str, Array]]:
        hidden, kernel = hidden_and_kernel(model, batch["tokens"][:, :-1], config)
        own, weights = labels_and_weights(batch["tokens"], config)
        ids, log_probabilities = (batch[name].reshape(len(own), -1) for name in ("ids", "log_probabilities"))
        probabilities = jnp.exp(log_probabilities.astype(jnp.float32))
        if self.rest == "label":
            probabilities /= jnp.sum(probabilities, axis=-1, keepdims=True)
        probabilities *= 1 - self.text_share
        # The probabilities are rounded on the disk: they may sum to slightly more than 1.
        remainder = jnp.maximum(1 - jnp.sum(probabilities, axis=-1, keepdims=True), 0)
        labels = softjax.SparseLabels(
            jnp.concatenate([ids.astype(jnp.int32), own[:, None]], axis=-1),
            jnp.concatenate([probabilities, remainder], axis=-1),
        )
        options: dict[str, Any] = {"weights": weights, "reduction": "sum", **config.axis_names}
        return softjax.linear_cross_entropy(hidden, kernel, labels, base=math.e, **options), {}


class HiddenStateLoss(eqx.Module):
    """Divergence from the teacher's distribution, from its hidden states, which every step computes."""

    teacher: Transformer
    kind: Any = eqx.field(static=True)
    beta: float = eqx.field(static=True)
    temperature: float = eqx.field(static=True)
    text_share: float = eqx.field(static=True)

    def __call__(self, model: Transformer, batch: dict[str, Any], config: Config) -> tuple[Array, dict[str, Array]]:
        inputs = batch["tokens"][:, :-1]
        hidden, kernel = hidden_and_kernel(model, inputs, config)
        labels, weights = labels_and_weights(batch["tokens"], config)
        teacher_hidden, teacher_kernel = hidden_and_kernel(self.teacher, inputs, config)
        options: dict[str, Any] = {"base": math.e, "weights": weights, "reduction": "sum", **config.axis_names}
        divergence = softjax.linear_divergence(
            hidden,
            kernel,
            teacher_hidden,
            teacher_kernel,
            kind=self.kind,
            beta=self.beta,
            temperature=self.temperature,
            **options,
        )
        # A temperature T divides the gradient by about T².
        loss = divergence * ((1 - self.text_share) * self.temperature**2)
        if self.text_share:
            loss += self.text_share * softjax.linear_cross_entropy(hidden, kernel, labels, **options)
        return loss, {}


def distance(teacher: Transformer, model: Transformer, corpus: Corpus, config: Config) -> dict[str, float]:
    """On the held-out files, how often the model predicts the teacher's token, and its KL divergence in nats."""
    sums = sum_over_held_out(functools.partial(_distance_sums, teacher, model, config=config), corpus, config)
    return {name: float(sums[name] / sums["tokens"]) for name in ("agreement", "kl")}


@functools.partial(jax.jit, static_argnames="config")
def _distance_sums(
    teacher: Transformer, model: Transformer, rows: Int[Array, "sequences tokens"], config: Config
) -> dict[str, Array]:
    student = hidden_and_kernel(model, rows[:, :-1], config)
    taught = hidden_and_kernel(teacher, rows[:, :-1], config)
    labels, weights = labels_and_weights(rows, config)
    prediction = softjax.linear_statistics(*taught, labels, **config.axis_names).prediction
    rank = softjax.linear_statistics(*student, prediction, **config.axis_names).label_rank
    options: dict[str, Any] = {"base": math.e, "weights": weights, "reduction": "sum", **config.axis_names}
    return {
        "tokens": jnp.sum(weights),
        "agreement": jnp.sum(weights & (rank == 0)),
        "kl": softjax.linear_divergence(*student, *taught, **options),
    }
