"""Renders examples/results/README.md from the results files in that folder: `benchmark.py --markdown examples/results`.

Every measured value in the text is computed from those files. After a new measurement, render the page again.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import (
    core_report,
    distil_report,
    divergence_cases,
    divergence_report,
    linear_report,
    mesh_report,
    packing_report,
    routes_report,
    targets,
)
from benchmarks.core_report import Case, describe_machine
from benchmarks.linear_contenders import MATMULS, SOFTJAX, UNFUSED
from benchmarks.linear_report import timings_by_name
from benchmarks.packing_cases import KEPT

Results = dict[str, Any]

_HOW_TO_READ = """\
**How to read the tables**

- Each section gives its command, the machine and its load at the start, and the results file.
- Times are medians of interleaved rounds: each round times every contender once, in a random order.
- "÷ X" is softjax's time divided by the time of X. Below 1, softjax is faster.
- The *unfused baseline* materialises the logits, [samples, classes], and applies a loss to them.
- *Three matmuls* are the logits and the gradients of hidden states and kernel, without a loss: the lower bound.
- *Temporary memory* is what the compiled call needs in addition to its arguments and results. For softjax, this is an \
accumulator of the kernel gradient, [classes, features], plus the logits of one chunk of samples. For the unfused \
baseline, it is the logits of all samples, and often their gradient as well. If one chunk holds all samples, both need \
about the same.

To compare with your machine, run the command while no other program runs. \
`python examples/benchmark.py --markdown examples/results` renders this page from the results files."""


def render(folder: Path) -> str:
    """The page, with one section per results file in the folder."""
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    sections = ["# Benchmark results", "\n".join(_summary(files)), _HOW_TO_READ]
    for name, section in _SECTIONS.items():
        if name in files:
            sections += section(files[name])
    return "\n\n".join(filter(None, map(str.strip, sections)))


def _summary(files: dict[str, Results]) -> Iterator[str]:
    """One line per command: softjax's time and memory divided by the reference's."""
    against_unfused = "time and temporary memory ÷ unfused baseline"
    parts = {
        "core": (
            "**Cross-entropy of given logits**, value and gradient, from 1,000 classes: time ÷ optax",
            lambda results: [_core_ratios(results, "value and gradient")],
            "python examples/benchmark.py",
        ),
        "linear": (
            f"**Last layer fused with its loss**: {against_unfused}",
            lambda results: [_linear_ratios(results, key, UNFUSED) for key in ("median", "temporary_bytes")],
            "python examples/benchmark.py --part linear",
        ),
        "distil": (
            f"**Fused divergence from a teacher**: {against_unfused}",
            _distil_ratios,
            "python examples/benchmark.py --part distil",
        ),
    }
    for part, (title, ratios, command) in parts.items():
        measured = [files[f"{part}-{platform}"] for platform in ("cpu", "gpu") if f"{part}-{platform}" in files]
        if measured:
            ranges = (" and ".join(map(_range, ratios(results))) + f" on {_device(results)}" for results in measured)
            yield f"- {title} = {', '.join(ranges)} (`{command}`)."


def _core_ratios(results: Results, quantity: str) -> list[float]:
    cases = map(Case, results["cases"])
    return [case.ratio("optax", quantity) for case in cases if case.classes >= 1000]


def _linear_ratios(results: Results, quantity: str, reference: str) -> list[float]:
    timings = map(timings_by_name, results["cases"])
    return [by_name[SOFTJAX][quantity] / by_name[reference][quantity] for by_name in timings]


def _distil_ratios(results: Results) -> list[list[float]]:
    """softjax divided by the unfused baseline: time and temporary memory, one value per problem and kind."""
    pairs = [
        (timings[f"{divergence_cases.SOFTJAX}, {kind}"], timings[f"{divergence_cases.UNFUSED}, {kind}"])
        for timings in map(timings_by_name, results["cases"])
        for kind in divergence_cases.KINDS
    ]
    return [[ours[key] / unfused[key] for ours, unfused in pairs] for key in ("median", "temporary_bytes")]


def _core(results: Results) -> Iterator[str]:
    cases = map(Case, results["cases"])
    eager = [case.ratio("optax", quantity) for case in cases for quantity in core_report.QUANTITIES[2:]]
    values, gradients = (_core_ratios(results, quantity) for quantity in core_report.QUANTITIES[:2])
    yield f"## Softmax and cross-entropy{_heading_suffix(results)}"
    yield f"{_source(results)} It times the mean cross-entropy of integer labels, called as users call it."
    yield core_report.markdown(results)
    page_faults = " Page faults of that new array take most of the time of a float32 gradient."
    yield (
        f"From 1,000 classes, softjax takes {_range(values)}× the time of optax for the value, and "
        f"{_range(gradients)}× for value and gradient. Without `jax.jit`, it takes {_range(eager)}×. "
        '"One read and write" is `x * 2` into a new array, the lower bound of a gradient.'
        + (page_faults if _on_cpu(results) else "")
        + " With few classes, the exact formula costs one more sum and one more logarithm per row. "
        "At 64 × 5, JAX's dispatch dominates."
    )
    yield f"![time of softjax and torch divided by the time of optax]({_file_stem(results)}.png)"


def _linear(results: Results) -> Iterator[str]:
    time, memory = (_range(_linear_ratios(results, quantity, UNFUSED)) for quantity in ("median", "temporary_bytes"))
    matmuls = _range(_linear_ratios(results, "median", MATMULS))
    by_case = [*map(timings_by_name, results["cases"])]
    compile_times = (_range([case[name]["compile_seconds"] for case in by_case], 1) for name in (SOFTJAX, UNFUSED))
    yield f"## The last layer{_heading_suffix(results)}"
    yield _source(results)
    yield (
        "Contenders: the unfused baseline (optax on materialised logits), a hand-written chunked loss (`lax.map` over "
        "`jax.checkpoint`), and jax-cce, tokamax and torch if they are installed and run. `none` is "
        f'softjax with `reduction="none"`. `--markdown examples/results/{_file_stem(results)}.json` prints all '
        "measurements of each problem."
    )
    yield linear_report.compare(results)
    softjax_compiles, unfused_compiles = compile_times
    yield (
        f"softjax takes {time}× the time of the unfused baseline and {matmuls}× the time of its three matmuls. It "
        f"needs {memory}× the temporary memory of the unfused baseline. It compiles in {softjax_compiles} s, the "
        f"unfused baseline in {unfused_compiles} s."
    )


def _growth(results: Results) -> Iterator[str]:
    yield f"![time and temporary memory by number of samples and classes]({_file_stem(results)}.png)"
    yield f"{_source(results)} {core_report.describe_run(results)}"


def _chunks(results: Results) -> Iterator[str]:
    yield f"## Chunk size{_heading_suffix(results)}"
    yield _source(results)
    yield (
        "Each table times every `block_size`, the number of samples per chunk, beside the unfused baseline. "
        "`block_size=None` is the default: softjax chooses the size. Small chunks usually take "
        "longer, large ones usually need more memory."
    )
    yield linear_report.markdown(results)


def _packing(results: Results) -> Iterator[str]:
    yield f"## Samples of weight 0{_heading_suffix(results)}"
    yield _source(results)
    yield (
        "A random mask keeps a part of the samples. Each column divides the time with this mask as `weights` by the "
        "time without weights. The samples that are kept are packed together, and only their chunks are computed."
    )
    yield packing_report.markdown(results)
    at_least, at_most = (_range(packing_report.ratios(results, kept)) for kept in (KEPT[0], KEPT[-1]))
    yield f"With {KEPT[0]:.0%} kept, a step takes {at_least}× the time without weights; with all kept, {at_most}×."


def _distil(results: Results) -> Iterator[str]:
    time, memory = _distil_ratios(results)
    yield f"## The divergence from a teacher{_heading_suffix(results)}"
    yield _source(results)
    yield (
        "Contenders: `linear_divergence`, the unfused baseline (`jax.nn` on the logits of student and teacher), and "
        "torch if it is installed. The lower bound is four matmuls: both logits and the student's two gradients."
    )
    yield divergence_report.markdown(results)
    yield (
        f"softjax takes {_range(time)}× the time of the unfused baseline and {_range(memory, 3)}× its temporary memory."
    )


def _mesh(results: Results) -> Iterator[str]:
    yield "## Device meshes"
    yield (
        "Command: `python examples/mesh_cost.py`. Data: [`mesh-cost.json`](mesh-cost.json). It compiles one training "
        "step of the last layer for simulated devices. Nothing runs: the values come from the compiled program. "
        f"Machine: {describe_machine(results)}."
    )
    yield (
        "All-reduced gradients and statistics are the bytes that a device contributes to all-reduces. Matmuls are the "
        "floating-point operations of a device, divided by those of one matmul of its shard."
    )
    yield mesh_report.table(results)
    yield (
        "The all-reduced statistics and the unfused baseline's temporary memory shrink with the number of samples per "
        "device. On 64 × 8 devices, one chunk holds all samples of a device. Both programs then need the same memory."
    )
    yield mesh_report.names_table(results)
    yield (
        "Auto axes do not show in the types of the arrays, so without names XLA's partitioner decides. With "
        "data parallelism, every device computes all samples. "
        "With FSDP, it all-reduces each chunk of logits, 512 × 8192."
    )


def _chips(compiler: targets.Compiler, fusion: str, results: Results) -> Iterator[str]:
    settings, rows = results["settings"], results["rows"]
    command = f"--topology {' '.join(settings['topology'])} --samples {settings['samples']}"
    ratios = [row["temporary_bytes"] / unfused for row in rows if (unfused := row["unfused_temporary_bytes"])]
    samples_per_chunk = [settings["samples"] / row["mesh_shape"][0] / row["chunks"] for row in rows]
    file = f"mesh-cost-{compiler.extra}.json"
    yield f"## {compiler.extra.upper()} meshes"
    yield (
        f"Command: `python examples/mesh_cost.py {command}`. Data: [`{file}`]({file}). It compiles the same step for "
        f"{compiler.extra.upper()}s with {compiler.package} {results['machine']['versions'][compiler.package]}. No "
        f"such device is needed. Machine: {describe_machine(results)}."
    )
    yield mesh_report.table(results)
    # Per element of the accumulator, a chunk of n samples costs 3 matmuls of 2n operations, and moves 2 × 4 bytes.
    intensity = f"{min(samples_per_chunk) * 6 / 8:,.0f}–{max(samples_per_chunk) * 6 / 8:,.0f}"
    yield (
        f"softjax needs {_range(ratios)}× the temporary memory of the unfused baseline. {fusion} The accumulator is "
        f"read and written once per chunk: {intensity} floating-point operations per byte."
    )


_TPU_FUSION = (
    "XLA fuses the gradient of a chunk's logits into both of its matmuls. "
    "It fuses the addition to the kernel-gradient accumulator into the second matmul."
)
_GPU_FUSION = (
    "XLA writes the gradient of a chunk's logits once, for both of its matmuls. "
    "It fuses the addition to the kernel-gradient accumulator into the second matmul."
)


def _routes(results: Results) -> Iterator[str]:
    difference = max(map(routes_report.largest_difference, results["cases"]))
    yield "## A language model with four losses"
    yield (
        f"Command: `python examples/compare_lm_routes.py --rounds {results['rounds']}`. "
        "Data: [`lm-routes-cpu.json`](lm-routes-cpu.json). It trains the model of `configs/lm.toml` and of "
        "`configs/lm-large.toml` with each route of the loss, on the same batches. The case with prompts ignores most "
        "tokens, as in fine-tuning:"
    )
    yield (
        "- `fused`: `linear_loss`, which also returns z-loss, accuracy, top-5 accuracy and entropy of each token.\n"
        "- `unlogged`: `linear_cross_entropy`, fused without these metrics.\n"
        "- `logits`: `cross_entropy` on materialised logits.\n"
        "- `optax`: optax on materialised logits, the unfused baseline."
    )
    yield routes_report.table(results["cases"])
    yield (
        f"Median of {results['rounds']} interleaved steps. Machine: {describe_machine(results)}. "
        f"The loss curves differ by at most {difference:.1e}, relative to the fused route."
    )
    yield "![loss curves, time and temporary memory of the four routes](lm-routes-cpu.png)"
    yield "`python examples/train_lm.py` drew the loss of its whole run, with the fused route:"
    yield "![cross-entropy by training tokens](lm-curves.png)"


def _students(results: Results) -> Iterator[str]:
    students, teacher, size = results["students"], results["teacher"], results["bytes_per_token"]
    parameters = students["text"]["parameters"] / teacher["parameters"]
    losses = {distil_report.STUDENTS[name]: student["nats_per_token"] for name, student in students.items()}
    yield "## Learning from a teacher"
    yield (
        "Command: `python examples/distil.py`. Data: [`distil.json`](distil.json). Machine: "
        f"{describe_machine(results)}. Three students have {parameters:.2f}× the parameters of their teacher. They "
        f"train for {results['evaluated'][-1]} steps each: on sparse labels (the teacher's "
        f"top-{results['settings']['k']} tokens), on its hidden states, or on the text alone."
    )
    yield distil_report.table(results)
    yield (
        f"Training on {min(losses, key=losses.__getitem__)} gives the lowest loss, training on "
        f"{max(losses, key=losses.__getitem__)} the highest. Per token, sparse labels take {size['sparse']} bytes, "
        f"hidden states {size['hidden']:,} bytes and logits {size['logits']:,} bytes."
    )
    yield "![loss, calibration and cost of three students](distil.png)"


def _margins(results: Results) -> Iterator[str]:
    runs = {(run["library"], run["dtype"]): run for run in results["runs"]}
    ours, optax, optax_float64 = runs["softjax", "float32"], runs["optax", "float32"], runs["optax", "float64"]

    def gap_at_largest_margin(run: dict[str, Any]) -> float:
        return run["gap"][max(range(len(run["margin"])), key=run["margin"].__getitem__)]

    yield "## Margins"
    yield (
        "Command: `python examples/max_margin.py`. Data: [`max-margin.json`](max-margin.json). "
        f"Machine: {describe_machine(results)}. Normalised gradient descent trains a linear classifier on "
        f"{results['images']} digits, with the gradients of softjax, optax and torch. The largest possible margin is "
        f"{results['hard_margin']:.3f}."
    )
    yield (
        f"- softjax in float32 reaches a margin of {max(ours['margin']):.3f} and ends at {ours['margin'][-1]:.3f}.\n"
        f"- optax in float32 reaches {max(optax['margin']):.3f}, where the smallest logit gap is "
        f"{gap_at_largest_margin(optax):.0f} nats. Then its margin falls to {optax['margin'][-1]:.3f}.\n"
        f"- optax in float64 reaches {max(optax_float64['margin']):.3f}, where the gap is "
        f"{gap_at_largest_margin(optax_float64):.0f} nats. Then its margin falls, too."
    )
    yield "![margin, loss and gradient norm by step](max-margin.png)"


def _source(results: Results) -> str:
    stem = _file_stem(results)
    return f"Command: `{_command(results)}`. Data: [`{stem}.json`]({stem}.json)."


def _command(results: Results) -> str:
    words = ["python examples/benchmark.py"]
    if results["part"] != "core":
        words.append(f"--part {results['part']}")
    if not _on_cpu(results):
        words.append("--config configs/benchmark-gpu.toml")
    return " ".join([*words, f"--rounds {results['settings']['rounds']}"])


def _file_stem(results: Results) -> str:
    return f"{results['part']}-{results['machine']['platform']}"


def _heading_suffix(results: Results) -> str:
    return "" if _on_cpu(results) else " on a GPU"


def _device(results: Results) -> str:
    return "a CPU" if _on_cpu(results) else f"an {results['machine']['device']}"


def _on_cpu(results: Results) -> bool:
    return results["machine"]["platform"] == "cpu"


def _range(values: list[float], decimals: int = 2) -> str:
    low, high = (f"{value:.{decimals}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


_SECTIONS: dict[str, Callable[[Results], Iterator[str]]] = {
    "core-cpu": _core,
    "linear-cpu": _linear,
    "growth-cpu": _growth,
    "chunks-cpu": _chunks,
    "packing-cpu": _packing,
    "distil-cpu": _distil,
    "core-gpu": _core,
    "linear-gpu": _linear,
    "growth-gpu": _growth,
    "chunks-gpu": _chunks,
    "packing-gpu": _packing,
    "distil-gpu": _distil,
    "mesh-cost": _mesh,
    "mesh-cost-tpu": partial(_chips, targets.TPU, _TPU_FUSION),
    "mesh-cost-gpu": partial(_chips, targets.GPU, _GPU_FUSION),
    "lm-routes-cpu": _routes,
    "distil": _students,
    "max-margin": _margins,
}
