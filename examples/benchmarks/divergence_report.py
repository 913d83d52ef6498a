"""The results of `benchmark.py --part distil` as tables."""

from typing import Any

from benchmarks.core_report import duration, heading, line, size, where
from benchmarks.divergence_cases import FLOOR, KINDS, OURS, PLAIN, TORCH
from benchmarks.linear_report import by_name, ratio, shape


def markdown(results: dict[str, Any]) -> str:
    rounds = results["settings"]["rounds"]
    rows = [f"Medians of {rounds} interleaved rounds, divergence and the student's gradients. {where(results)}.", ""]
    rows += heading(
        "samples × features × classes", "dtype", "kind", "softjax", "÷ plain", "÷ torch", "÷ four products", "memory",
        "plain's", "÷ plain's", words=3,
    )  # fmt: skip
    for case in results["cases"]:
        found = by_name(case)
        for kind in KINDS:
            ours, plain = f"{OURS}, {kind}", f"{PLAIN}, {kind}"
            memory = [found[name]["temporary_bytes"] for name in (ours, plain)]
            rows.append(
                line(
                    shape(case),
                    case["dtype"],
                    kind,
                    duration(found[ours]["median"]),
                    *(ratio(found, ours, other) for other in (plain, f"{TORCH}, {kind}", FLOOR)),
                    *map(size, memory),
                    f"{memory[0] / memory[1]:.3f}",
                )
            )
    return "\n".join(rows)
