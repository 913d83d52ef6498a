"""Recompute every figure of the DeepLibs softmax document with softjax, and print it beside the document's figure.

    python examples/document.py

The first tables show the figures that agree. The errata follow. There, the document contradicts its own definitions:
each table shows the document's figure, or the value of its printed formula, beside the value of the definition.
"""

from common import program

if __name__ == "__main__":
    program.end_in_one_line(program.NOTHING_WRITTEN)

import io
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import softjax

SCORES = (0.0, 10.0, 15.0, 18.0, 20.0)
RAISED = (0.0, 10.0, 15.0, 19.0, 20.0)
LABELS = (4, 2)  # labels of the document's two examples, which share the same scores
ROUNDED = (0.0, 0.0, 0.0059, 0.1185, 0.8756)  # the document continues with these rounded probabilities
LOGARITHMS = ("-20.1329", "-10.1329", "-5.1329", "-2.1329", "-0.1329")
LOSSES = ("0.13288", "5.13288")


class Row(NamedTuple):
    """One quantity: the document's figure and softjax's."""

    quantity: str
    document: str  # with the document's number of digits
    softjax: float


def probabilities() -> list[Row]:
    q = softjax.softmax(jnp.array(SCORES))
    printed = ("0.0000", "0.0000", "0.0059", "0.1185", "0.8756")
    rows = [Row(f"q_{i}, score {SCORES[i]:g}", printed[i], float(q[i])) for i in range(len(SCORES))]
    return [*rows, Row("sum", "1", float(q.sum())), Row("most likely class", "4", float(q.argmax()))]


def raised_score() -> list[Row]:
    before, after = (100 * float(softjax.softmax(jnp.array(scores))[4]) for scores in (SCORES, RAISED))
    return [Row("q_4 in %, fourth score 18", "87.56", before), Row("q_4 in %, fourth score 19", "72.75", after)]


def natural_logarithms() -> list[Row]:
    logs = softjax.log_softmax(jnp.array(SCORES), base=math.e)
    return [Row(f"ln q_{i}", LOGARITHMS[i], float(logs[i])) for i in range(len(SCORES))]


def natural_losses() -> list[Row]:
    q = softjax.softmax(jnp.array(SCORES))
    rows = []
    for printed, label, loss in zip(LOSSES, LABELS, _losses(base=math.e), strict=True):
        by_definition = softjax.distribution_cross_entropy(jax.nn.one_hot(label, len(SCORES)), q, base=math.e)
        rows += [
            Row(f"label {label}: −Σ p_i ln q_i", printed, float(by_definition)),
            Row(f"label {label}: −ln q_{label}", printed, loss),
        ]
    mean = softjax.cross_entropy(_batch(LABELS), jnp.array(LABELS), base=math.e)
    # The document prints the formula of the mean but no value. This row uses the mean of its two printed losses.
    printed_mean = np.mean([float(loss) for loss in LOSSES])
    return [*rows, Row("mean of the two losses", f"{printed_mean:.5f}", float(mean))]


def base_ten() -> list[Row]:
    logs = softjax.log_softmax(jnp.array(SCORES))
    rows = [Row(f"log10 q_{i}", LOGARITHMS[i], float(logs[i])) for i in range(len(SCORES))]
    for printed, label, loss in zip(LOSSES, LABELS, _losses(base=10.0), strict=True):
        rows.append(Row(f"label {label}: −log10 q_{label}", printed, loss))
    return rows


def softmax_derivative() -> list[Row]:
    """∂q_4/∂x_k. A row of the Jacobian sums to 0, because adding a constant to all scores does not change q."""
    q = _probabilities()
    derivative = np.asarray(jax.jacobian(softjax.softmax)(jnp.array(SCORES)), np.float64)[4]
    printed = [q[4] * ((k == 4) - q[4]) for k in range(len(q))]
    return _entry_rows("∂q_4/∂x_{}", printed, derivative)


def gradient() -> list[Row]:
    """∂L/∂x_k for the first example: label 4, N = 1."""
    return _entry_rows("∂L/∂x_{}", printed_gradient(LABELS[:1]), softjax_gradient(LABELS[:1])[0])


def gradient_sums() -> list[Row]:
    """Σ_k ∂L/∂x_k. It is 0 for a softmax. The printed formula gives the mean of (C q_c − 1) / ln 10.

    The document does not say which label and which N its formula is for. Its examples allow these three readings.
    """
    readings = {"label 4, N = 1": (4,), "label 2, N = 1": (2,), "labels 4 and 2, N = 2": LABELS}
    return [
        Row(f"Σ_k, {reading}", f"{printed_gradient(labels).sum():.3f}", float(softjax_gradient(labels).sum()))
        for reading, labels in readings.items()
    ]


def logarithm_of_zero() -> list[Row]:
    """The document treats 0 · log 0 as a small value. softjax returns exactly 0, and never takes log of a rounded q."""
    one_hot = jax.nn.one_hot(4, len(SCORES))
    zero_term = softjax.distribution_cross_entropy(jnp.zeros(1), jnp.zeros(1), base=math.e)
    rounded_loss = softjax.distribution_cross_entropy(one_hot, jnp.array(ROUNDED), base=math.e)
    distant = jnp.array([0.0, 200.0])  # e^-200 is 0 in float32
    return [
        Row("0 · ln 0", "≈ 0", float(zero_term)),
        Row("−Σ p_i ln q_i from the rounded q", "0.13288", float(rounded_loss)),
        Row("−ln q_4 from the scores", "0.13288", _losses(base=math.e)[0]),
        Row("q_0 for the scores 0 and 200", "—", float(softjax.softmax(distant)[0])),
        Row("ln q_0 for the scores 0 and 200", "—", float(softjax.log_softmax(distant, base=math.e)[0])),
    ]


def printed_gradient(labels: Sequence[int]) -> np.ndarray:
    """The document's last formula. Entry k is −(1/(N ln 10)) Σ_i (δ_ck − q_ic), where c is the label of sample i."""
    q = _probabilities()
    terms = [[(k == label) - q[label] for k in range(len(q))] for label in labels]
    return -np.sum(terms, axis=0) / (len(labels) * math.log(10))


def softjax_gradient(labels: Sequence[int]) -> np.ndarray:
    """The gradient by definition. Entry i, k is (q_ik − p_ik) / (N ln 10)."""
    return np.asarray(jax.grad(softjax.cross_entropy)(_batch(labels), jnp.array(labels)), np.float64)


def _batch(labels: Sequence[int]) -> jax.Array:
    return jnp.array([SCORES] * len(labels))


def _losses(base: float) -> list[float]:
    return softjax.cross_entropy(_batch(LABELS), jnp.array(LABELS), base=base, reduction="none").tolist()


def _probabilities() -> np.ndarray:
    return np.asarray(softjax.softmax(jnp.array(SCORES)), np.float64)


def _entry_rows(name: str, printed: Sequence[float] | np.ndarray, computed: np.ndarray) -> list[Row]:
    rows = [Row(name.format(k), f"{printed[k]:.5f}", float(computed[k])) for k in range(len(computed))]
    return [*rows, Row("sum over k", f"{np.sum(printed):.5f}", float(np.sum(computed)))]


AGREEING = {
    "Probabilities": probabilities,
    "Raising the fourth score": raised_score,
    "Natural logarithms": natural_logarithms,
    "Losses in nats": natural_losses,
}
ERRATA = {
    "1. The document says base 10, but its logarithms are natural": (base_ten, "as printed", "base 10"),
    "2. The softmax derivative is −q_j·q_k for j ≠ k, not −q_j·q_j": (softmax_derivative, "as printed", "softjax"),
    "3. The gradient is (q − p) / (N ln 10). Here label 4, N = 1": (gradient, "as printed", "softjax"),
    "   Its entries sum to 0, not to 1.467 (label 4, N = 1)": (
        gradient_sums,
        "as printed",
        "softjax",
    ),
    "4. 0 · log 0 is 0, and log q is x − ln Σ exp x": (logarithm_of_zero, "document", "softjax"),
}


def build_table(rows: Sequence[Row], document_title: str, softjax_title: str) -> Table:
    """softjax's figures have two decimals more than the document's. They show how the document rounded."""
    table = Table("")
    table.add_column(document_title, justify="right")
    table.add_column(softjax_title, justify="right")
    for row in rows:
        decimals = len(row.document.partition(".")[2])
        decimals += 2 if decimals else 0
        # adding 0.0 turns −0.0 into 0.0
        table.add_row(row.quantity, row.document, f"{round(row.softjax, decimals) + 0.0:.{decimals}f}")
    return table


@program.exit_status(program.NOTHING_WRITTEN)
def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console without Σ or ∂ prints a question mark
    console = Console()
    console.rule("Figures that agree with the definitions")
    for title, rows in AGREEING.items():
        console.print(f"\n[bold]{title}[/]", build_table(rows(), "document", "softjax"), sep="\n")
    console.rule("Errata: figures that contradict the definitions")
    for title, (rows, *titles) in ERRATA.items():
        console.print(f"\n[bold]{title}[/]", build_table(rows(), *titles), sep="\n")


if __name__ == "__main__":
    program.leave(main())
