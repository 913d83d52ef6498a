"""Tables of `benchmark.py --part distil`."""

from typing import Any

from benchmarks.core_report import describe_run, format_bytes, format_duration, table_head, table_row
from benchmarks.divergence_cases import KINDS, MATMULS, SOFTJAX, UNFUSED, UNFUSED_TORCH
from benchmarks.linear_report import describe_shape, ratio_cell, timings_by_name


def markdown(results: dict[str, Any]) -> str:
    lines = [f"Time of the divergence and the student's gradients. {describe_run(results)}", ""]
    lines += table_head(
        "samples × features × classes", "dtype", "kind", "softjax", "÷ unfused baseline", "÷ unfused baseline (torch)",
        "÷ four matmuls", "temporary memory, softjax", "temporary memory, unfused baseline",
        "memory ÷ unfused baseline", text_columns=3,
    )  # fmt: skip
    for case in results["cases"]:
        timings = timings_by_name(case)
        for kind in KINDS:
            ours, unfused = f"{SOFTJAX}, {kind}", f"{UNFUSED}, {kind}"
            memory = [timings[name]["temporary_bytes"] for name in (ours, unfused)]
            lines.append(
                table_row(
                    describe_shape(case),
                    case["dtype"],
                    kind,
                    format_duration(timings[ours]["median"]),
                    *(ratio_cell(timings, ours, name) for name in (unfused, f"{UNFUSED_TORCH}, {kind}", MATMULS)),
                    *map(format_bytes, memory),
                    f"{memory[0] / memory[1]:.3f}",
                )
            )
    return "\n".join(lines)
