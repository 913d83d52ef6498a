"""What the classifier is worth on some images: how often it is right, and how rightly it is sure."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.table import Table

import softjax
from softjax import metrics

BINS = 10  # of the confidences

_LOSSES = {"hartleys": 10.0, "bits": 2.0, "nats": math.e}
_PERPLEXITY = ("images", "accuracy", *_LOSSES, "perplexity")
_CALIBRATION = ("brier_score", "calibration_error", "temperature")


def unit(base: float) -> str:
    return {base: name for name, base in _LOSSES.items()}.get(base, f"to base {base:g}")


def of(logits: jax.Array, labels: jax.Array) -> dict[str, float]:
    """The numbers of some images by name, in the order of the tables; the temperature is fitted on them."""
    numbers = _numbers(logits, labels)
    scores = {name: numbers[name].item() for name in (*_PERPLEXITY[1:], *_CALIBRATION)}
    scores["perplexity"] = min(scores["perplexity"], sys.float_info.max)  # JSON has no infinity
    return {"images": len(labels), **scores}


@jax.jit
def _numbers(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    s = softjax.statistics(logits, labels)
    return {
        "accuracy": metrics.accuracy(s),
        **{name: softjax.cross_entropy(logits, labels, base=base) for name, base in _LOSSES.items()},
        "perplexity": metrics.perplexity(s),
        "brier_score": metrics.brier_score(s),
        "calibration_error": metrics.calibration(s, BINS).expected_error(),
        "temperature": metrics.fit_temperature(logits, labels),
    }


def tables(parts: Mapping[str, Mapping[str, Any]]) -> tuple[Table, Table]:
    """Of the numbers of each part of the data."""
    perplexity = _table(parts, _PERPLEXITY, "Mean loss of an image in three units, and its perplexity")
    calibration = _table(parts, _CALIBRATION, "How rightly it is sure")
    calibration.caption = "temperature: of the least loss of these images; below 1, it could be surer"
    return perplexity, calibration


def _table(parts: Mapping[str, Mapping[str, Any]], columns: Sequence[str], title: str) -> Table:
    table = Table("", *(name.replace("_", " ").replace("brier", "Brier") for name in columns), title=title)
    forms = {"images": "d", "accuracy": ".2%"}
    for part, row in parts.items():
        table.add_row(part, *(format(row[name], forms.get(name, ".4f")) for name in columns))
    return table
