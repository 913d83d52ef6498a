"""The results of `benchmark.py --part linear`, `growth` and `blocks` as tables and as a picture."""

import textwrap
from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.core_report import duration, heading, line, size, where
from benchmarks.linear_cases import ARGUMENTS
from benchmarks.linear_contenders import FLOOR, JAX_CCE, MAPPED, NONE, OURS, PLAIN, TOKAMAX
from common.program import PICTURES, png

_MARKS = {
    OURS: {"color": "C0", "marker": "o", "markersize": 5, "zorder": 4},
    PLAIN: {"color": "#444444", "marker": "D", "markersize": 4, "zorder": 3},
    FLOOR: {"color": "C2", "marker": "|", "markersize": 10, "linestyle": "--", "zorder": 2},
}


def shape(case: dict[str, Any]) -> str:
    return f"{case['samples']} × {case['features']} × {case['classes']}"


def by_name(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {timing["name"]: timing for timing in case["timings"]}


def markdown(results: dict[str, Any]) -> str:
    """`compared`; then a table for each case, of all that was measured there."""
    return "\n".join([compared(results), "", *(row for case in results["cases"] for row in _table(case))])


def compared(results: dict[str, Any]) -> str:
    """softjax beside each of the others."""
    rounds = results["settings"]["rounds"]
    rows = [f"Medians of {rounds} interleaved rounds, loss and gradients of hidden and kernel. {where(results)}.", ""]
    if results["part"] == "linear":
        rows += [*_summary(results["cases"]), "", *_beside_torch(results["cases"]), ""]
    if results.get("peak_resident_bytes"):
        first = shape(results["cases"][0])
        rows.append(
            f"Peak resident memory of a fresh process at {first} (and without the arguments): {_peaks(results)}."
        )
    return "\n".join(rows)


def _summary(cases: list[dict[str, Any]]) -> Iterator[str]:
    others = {
        FLOOR: "÷ three products",
        PLAIN: "÷ plain",
        MAPPED: "÷ by hand",
        JAX_CCE: "÷ jax-cce",
        TOKAMAX: "÷ tokamax",
    }
    yield from heading(
        "samples × features × classes", "dtype", "softjax", *others.values(), '"none" ÷ plain', "memory", "plain's",
        words=2,
    )  # fmt: skip
    for case in cases:
        found = by_name(case)
        yield line(
            shape(case),
            case["dtype"],
            duration(found[OURS]["median"]),
            *(ratio(found, OURS, other) for other in others),
            ratio(found, NONE, PLAIN),
            *(size(found[name]["temporary_bytes"]) for name in (OURS, PLAIN)),
        )


def _beside_torch(cases: list[dict[str, Any]]) -> Iterator[str]:
    """torch's products are not XLA's: each library also beside its own."""
    pairs = [(OURS, "torch on logits"), (OURS, "torch, linear"), (OURS, FLOOR)]
    pairs += [("torch on logits", "torch, three products"), ("torch, linear", "torch, three products")]
    yield from heading(
        "samples × features × classes", "dtype", "softjax ÷ torch on logits", "÷ torch, linear",
        "softjax ÷ its products", "torch on logits ÷ its products", "torch, linear ÷ its products", words=2,
    )  # fmt: skip
    for case in cases:
        yield line(shape(case), case["dtype"], *(ratio(by_name(case), *pair) for pair in pairs))


def ratio(found: dict[str, dict[str, Any]], one: str, other: str) -> str:
    return f"{found[one]['median'] / found[other]['median']:.2f}" if one in found and other in found else ""


def _table(case: dict[str, Any]) -> Iterator[str]:
    timings = by_name(case)
    floor, plain = timings[FLOOR]["median"], timings.get(PLAIN, {}).get("median")
    yield from heading(
        f"{shape(case)}, {case['dtype']}", "time", "spread", "÷ products", "÷ plain", "memory", "compile", words=1
    )
    for name, t in timings.items():
        low, high = t["quartiles"]
        yield line(
            name,
            duration(t["median"]),
            f"±{(high - low) / t['median'] / 2:.0%}",
            f"{t['median'] / floor:.2f}",
            f"{t['median'] / plain:.2f}" if plain else "",
            "" if t["temporary_bytes"] is None else size(t["temporary_bytes"]),
            "" if t["compile_seconds"] is None else f"{t['compile_seconds']:.2f} s",
        )
    yield ""


def _peaks(results: dict[str, Any]) -> str:
    peaks = results["peak_resident_bytes"]
    alone = peaks[ARGUMENTS]
    return "; ".join(f"{name} {size(peak)} ({size(max(peak - alone, 0))})" for name, peak in peaks.items())


def draw(results: dict[str, Any]) -> bytes:
    """Time and memory against samples and against classes, on log axes."""
    cases = results["cases"]
    classes, samples = (max({c[k] for c in cases}, key=lambda n, k=k: sum(c[k] == n for c in cases))
                        for k in ("classes", "samples"))  # fmt: skip
    grown = {
        "samples": [c for c in cases if c["classes"] == classes],
        "classes": sorted((c for c in cases if c["samples"] == samples), key=lambda c: c["classes"]),
    }
    fixed = {"samples": f"{classes} classes", "classes": f"{samples} samples"}
    with matplotlib.rc_context(fname=PICTURES):
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        grid = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, (along, found) in enumerate(grown.items()):
            found = sorted(found, key=lambda c: c[along])
            _panel(grid[0][column], found, along, "median", 1)
            _panel(grid[1][column], found, along, "temporary_bytes", 1e-6)
            grid[0][column].set_title(f"{fixed[along]}, {cases[0]['features']} features, {cases[0]['dtype']}")
            grid[1][column].set_xlabel(along)
        grid[0][0].set_ylabel("loss and gradients, s")
        grid[1][0].set_ylabel("temporary memory, MB")
        grid[0][0].legend()
        figure.supxlabel(textwrap.fill(where(results), 130), fontsize=7, color="#444444")
        return png(figure)


def _panel(axes: Axes, cases: list[dict[str, Any]], along: str, key: str, unit: float) -> None:
    for name, mark in _MARKS.items():
        points = [(c[along], by_name(c)[name][key] * unit) for c in cases]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.3, **mark)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([c[along] for c in cases])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:g}k" if x >= 1024 else f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
