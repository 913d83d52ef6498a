"""Tables of `mesh_cost.py`."""

from collections.abc import Iterator, Mapping, Sequence
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


def names_caption(shape: Sequence[int]) -> str:
    samples, features, classes = shape
    return (
        "The same call under Auto axes, with and without `axis_name` and `batch_axis_name`, on four devices: "
        f"{samples:,} samples, {features} features, {classes:,} classes, float32. Per device and step:\n"
    )


def names_head() -> Iterator[str]:
    return table_head(
        "layout", "axis names", "chunks", "largest collective per chunk", "all collectives", "matmuls", text_columns=2
    )


def names_line(row: Mapping[str, Any]) -> str:
    largest = f"{row['collective']}, {_format_bytes(row['collective_bytes'])}" if row["collective"] else "none"
    sizes = str(row["chunks"]), largest, _format_bytes(row["exchanged_bytes"]), f"{row['matmuls']:.2f}"
    return table_row(row["layout"], "given" if row["named"] else "none", *sizes)


def names_table(results: Mapping[str, Any]) -> str:
    names = results["axis_names"]
    return "\n".join([names_caption(names["shape"]), *names_head(), *map(names_line, names["rows"])])


def _format_bytes(size: float | None) -> str:
    """Three significant digits."""
    if size is None:
        return "does not fit"
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
