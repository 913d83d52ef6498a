"""Table of `mesh_cost.py`."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.core_report import table_head, table_row

_BYTE_COLUMNS = {
    "gradient_all_reduce_bytes": "all-reduced gradients",
    "statistics_all_reduce_bytes": "all-reduced statistics",
    "argument_and_result_bytes": "arguments and results",
    "temporary_bytes": "temporary memory",
    "unfused_temporary_bytes": "temporary memory, unfused baseline",
}


def caption(settings: Mapping[str, Any]) -> str:
    dtype = "bfloat16" if settings.get("topology") else "float32"
    return f"{settings['samples']:,} samples, {settings['features']} features, {dtype}. Per device and step:\n"


def head() -> Iterator[str]:
    return table_head(
        "classes", "devices", "mesh (data × classes)", "chunks", *_BYTE_COLUMNS.values(), "matmuls", text_columns=0
    )


def line(row: Mapping[str, Any]) -> str:
    mesh = " × ".join(map(str, row["mesh_shape"]))
    sizes, matmuls = (_format_bytes(row[key]) for key in _BYTE_COLUMNS), f"{row['matmuls']:.2f}"
    return table_row(f"{row['classes']:,}", str(row["devices"]), mesh, str(row["chunks"]), *sizes, matmuls)


def table(results: Mapping[str, Any]) -> str:
    return "\n".join([caption(results["settings"]), *head(), *map(line, results["rows"])])


def _format_bytes(size: float | None) -> str:
    """Three significant digits."""
    if size is None:
        return "does not fit"
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
