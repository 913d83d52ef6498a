"""The three plots of `train_lm.py`, each as the content of a PNG file."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from common.program import PICTURES, png
from language_model.evaluation import Evaluation
from softjax import metrics

NAMES = ("curves.png", "positions.png", "calibration.png")


def draw(
    curves: Mapping[str, np.ndarray], evaluated: Sequence[int], test: Evaluation, tokens_per_step: int
) -> dict[str, bytes]:
    """The plots by file name.

    Args:
      curves: `loss`, one value per step, and `test_loss`, one value per evaluation, in nats per token.
      evaluated: the steps of the evaluations.
      test: evaluation of the trained model.
      tokens_per_step: tokens of a batch.
    """
    with matplotlib.rc_context(fname=PICTURES):
        figures = (_curves(curves, evaluated, tokens_per_step), _positions(test), _calibration(test.calibration))
        return {name: png(figure) for name, figure in zip(NAMES, figures, strict=True)}


def _curves(curves: Mapping[str, np.ndarray], evaluated: Sequence[int], tokens_per_step: int) -> Figure:
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    axes = figure.subplots()
    loss = curves["loss"]
    tokens = np.arange(1, len(loss) + 1) * tokens_per_step
    window = max(len(loss) // 50, 1)
    if window > 1:
        axes.plot(tokens, loss, color="C0", alpha=0.25, linewidth=0.8)
    smooth = np.convolve(loss, np.ones(window) / window, "valid")
    label = f"training, mean of {window} steps" if window > 1 else "training"
    axes.plot(tokens[window - 1 :], smooth, color="C0", label=label)
    test_tokens = np.asarray(evaluated) * tokens_per_step
    held_out = {"color": "C1", "markersize": 3.5, "linewidth": 1.1, "label": "held-out files"}
    axes.plot(test_tokens, curves["test_loss"], "o-", **held_out)
    last = curves["test_loss"][-1]
    axes.annotate(f"{last:.2f}", (test_tokens[-1], last), (4, 0), textcoords="offset points", color="C1", va="center")
    axes.set(title="Cross-entropy", xlabel="training tokens", ylabel="nats per token", xlim=(0, tokens[-1] * 1.1))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.grid(alpha=0.25)
    axes.legend()
    return figure


def _short(number: float, _: object) -> str:
    return f"{number / 1e6:g} M" if number >= 1e6 else f"{number / 1e3:g} k" if number >= 1e3 else f"{number:g}"


def _positions(test: Evaluation) -> Figure:
    """The mean loss at each position, and over octaves of positions: 1, 2 to 3, 4 to 7 and so on."""
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    axes = figure.subplots()
    seen = np.arange(1, len(test.nats) + 1)  # tokens before the predicted one
    active = test.tokens > 0
    axes.plot(
        seen[active],
        test.nats[active] / test.tokens[active],
        ".",
        color="C3",
        alpha=0.4,
        markersize=3,
        label="one position",
    )
    # A last, incomplete octave joins the one before it.
    octave = np.minimum(np.log2(seen).astype(int), max(len(seen).bit_length() - 2, 0))
    nats, tokens = (np.bincount(octave, weights=sums) for sums in (test.nats, test.tokens))
    edges = np.append(2.0 ** np.arange(len(nats)), len(seen) + 1)
    some = tokens > 0
    axes.plot(
        np.sqrt(edges[:-1] * (edges[1:] - 1))[some],
        (nats / np.maximum(tokens, 1))[some],
        "o-",
        color="C0",
        markersize=4,
        label="mean over an octave of positions",
    )
    axes.set(
        title="Cross-entropy on the held-out files, by position",
        xlabel="context length (tokens, logarithmic scale)",
        ylabel="nats per token",
        xscale="log",
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: f"{position:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.legend()
    return figure


def _calibration(measured: metrics.Calibration) -> Figure:
    """The accuracy in each bin of confidences, above the fraction of the tokens in the bin."""
    confidence, accuracy, fraction = map(np.asarray, measured.curve())
    bins = len(fraction)
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], ":", color="C3", label="perfect calibration")
    some = fraction > 0
    above.plot(confidence[some], accuracy[some], "o-", color="C0", markersize=4, linewidth=1.1, label="bin of tokens")
    title = f"Calibration on the held-out files\n(expected calibration error {float(measured.expected_error()):.1%})"
    above.set(title=title, ylabel="accuracy", ylim=(-0.03, 1.03))
    above.legend(loc="upper left")
    below.bar((np.arange(bins) + 0.5) / bins, fraction, width=0.9 / bins, color="C0")
    below.set(xlabel="probability of the most likely token", ylabel="fraction of tokens", xlim=(0, 1.02))
    for axes in (above, below):
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_axisbelow(True)
        axes.grid(alpha=0.25)
    return figure
