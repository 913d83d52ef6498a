"""Table of `benchmark.py --part packing`."""

from typing import Any

from benchmarks.core_report import describe_run, format_bytes, format_duration, table_head, table_row
from benchmarks.linear_report import describe_shape, ratio_cell, timings_by_name
from benchmarks.packing_cases import KEPT, contender, programs


def markdown(results: dict[str, Any]) -> str:
    lines = [f"Time of the loss and the gradients of hidden states and kernel. {describe_run(results)}", ""]
    lines += table_head(
        "samples × features × classes", "function", "without weights", *(f"{kept:.0%} kept" for kept in KEPT),
        "temporary memory, without weights", "temporary memory, with weights", text_columns=2,
    )  # fmt: skip
    for case in results["cases"]:
        timings = timings_by_name(case)
        for name in programs():
            without, *kept = (contender(name, fraction) for fraction in (None, *KEPT))
            lines.append(
                table_row(
                    describe_shape(case),
                    f"`{name}`" if " " not in name else name,
                    format_duration(timings[without]["median"]),
                    *(ratio_cell(timings, fraction, without) for fraction in kept),
                    *(format_bytes(timings[which]["temporary_bytes"]) for which in (without, kept[0])),
                )
            )
    return "\n".join(lines)


def ratios(results: dict[str, Any], kept: float) -> list[float]:
    """The time at this fraction divided by the time without weights, one value for each case and function."""
    pairs = [
        (timings[contender(name, kept)], timings[contender(name, None)])
        for timings in map(timings_by_name, results["cases"])
        for name in programs()
    ]
    return [packed["median"] / without["median"] for packed, without in pairs]
