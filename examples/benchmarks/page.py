"""examples/results/README.md, written whole from the results files beside it by `benchmark.py --markdown`.

Every number in its text is computed from those files, so that a run made anew is a page made anew.
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
    routes_report,
    targets,
)
from benchmarks.core_report import Case, where
from benchmarks.linear_contenders import FLOOR, OURS, PLAIN
from benchmarks.linear_report import by_name

Results = dict[str, Any]
_OPENING = (
    "# What was measured",
    "Each section names its command, and this page is `python examples/benchmark.py --markdown examples/results`. "
    "Times are medians of interleaved rounds on a machine with nothing else running; its load when it began stands "
    "beside them where it is known. Run a command again and compare on a quiet machine of your own.",
)


def page(folder: Path) -> str:
    """A section for each file that is there."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    sections = [*_OPENING]
    for name, section in _SECTIONS.items():
        if name in found:
            sections += section(found[name])
    return "\n\n".join(section.strip() for section in sections)


def _core(results: Results) -> Iterator[str]:
    on_cpu = results["machine"]["platform"] == "cpu"
    cases = [case for case in map(Case, results["cases"]) if case.classes >= 1000]
    eager = [case.share("optax", quantity) for case in map(Case, results["cases"]) for quantity in _EAGER]
    gradients, values = ([case.share("optax", q) for case in cases] for q in core_report.QUANTITIES[1::-1])
    yield f"## Softmax and cross-entropy{'' if on_cpu else ' on a GPU'}"
    yield f"`{_command('core', results)}` writes [`{_name(results)}.json`]({_name(results)}.json) and its picture."
    yield core_report.markdown(results)
    yield (
        f"From 1,000 classes the value takes {_range(values)} of optax's time, value and gradient {_range(gradients)}; "
        f"without `jax.jit` all takes {_range(eager)}."
        + ' "One read and write" is `x * 2` into a fresh array, the floor of a gradient'
        + (", whose page faults are most of the float32 gradients' time" if on_cpu else "")
        + ". At few "
        "classes the exact rows show, one more sum and logarithm a row; at 64 × 5 the time is JAX's own dispatch."
    )
    yield f"![time as a share of optax's]({_name(results)}.png)"


def _linear(results: Results) -> Iterator[str]:
    on_cpu = results["machine"]["platform"] == "cpu"
    cases = [by_name(case) for case in results["cases"]]
    times, products, memory = (
        [case[OURS][key] / case[other][key] for case in cases]
        for key, other in (("median", PLAIN), ("median", FLOOR), ("temporary_bytes", PLAIN))
    )
    compiling = {name: [case[name]["compile_seconds"] for case in cases] for name in (OURS, PLAIN)}
    yield f"## The last layer{'' if on_cpu else ' on a GPU'}"
    yield (
        f"`{_command('linear', results)}` times it against the plain way (optax on the logits), what is written by "
        "hand (`lax.map` over `jax.checkpoint` chunks) and, where they are installed and run, jax-cce, tokamax and "
        f"torch. The floor is the three matrix products alone. `--markdown examples/results/{_name(results)}.json` "
        "prints all that was measured, case by case."
    )
    yield linear_report.compared(results)
    yield (
        f"It takes {_range(times)} of the plain way's time, {_range(products)} of the products', for {_range(memory)} "
        f"of the plain way's memory. It compiles in {_range(compiling[OURS], 1)} s, the plain way in "
        f"{_range(compiling[PLAIN], 1)} s."
    )


def _growth(results: Results) -> Iterator[str]:
    yield f"![time and memory as samples and classes grow]({_name(results)}.png)"
    yield f"`{_command('growth', results)}` measured and drew this picture. {where(results)}."


def _blocks(results: Results) -> Iterator[str]:
    yield f"## The size of a block{'' if results['machine']['platform'] == 'cpu' else ' on a GPU'}"
    yield f"`{_command('blocks', results)}` measures each `block_size`, and None, the one that is chosen."
    yield linear_report.markdown(results)


def _distil(results: Results) -> Iterator[str]:
    ours, plain = divergence_cases.OURS, divergence_cases.PLAIN
    pairs = [
        (case[f"{ours}, {kind}"], case[f"{plain}, {kind}"])
        for case in map(by_name, results["cases"])
        for kind in divergence_cases.KINDS
    ]
    times, memory = ([one[key] / other[key] for one, other in pairs] for key in ("median", "temporary_bytes"))
    yield f"## A student and its teacher{'' if results['machine']['platform'] == 'cpu' else ' on a GPU'}"
    yield (
        f"`{_command('distil', results)}` times `linear_divergence` against the plain way, by hand with `jax.nn` on "
        "the logits of both, and where it is installed torch. The floor is the four matrix products alone."
    )
    yield divergence_report.markdown(results)
    yield f"It takes {_range(times)} of the plain way's time, for {_range(memory, 3)} of its memory."


def _mesh(results: Results) -> Iterator[str]:
    yield "## Many devices"
    yield "`python examples/mesh_cost.py` compiles a step for that many simulated devices; what each sends and holds:"
    yield mesh_report.table(results)
    yield (
        "The statistics summed and the temporaries of the plain way shrink with the samples of a device; with 64 × 8 a "
        "single block holds them all, and the two ways weigh the same."
    )


def _chips(compiler: targets.Compiler, how: str, results: Results) -> Iterator[str]:
    settings, rows = results["settings"], results["rows"]
    command = f"--topology {' '.join(settings['topology'])} --samples {settings['samples']}"
    saved = [row["temporaries"] / plain for row in rows if (plain := row["temporaries_of_the_plain_way"])]
    rows_of_block = [settings["samples"] / row["shares"][0] / row["blocks"] for row in rows]
    yield f"## {compiler.extra.upper()}s, by their compiler"
    yield (
        f"`python examples/mesh_cost.py {command}` compiles the same step for real chips, of which none is needed "
        f"({compiler.package} {results['machine']['versions'][compiler.package]}):"
    )
    yield mesh_report.table(results)
    yield (
        f"The blocks take {_range(saved)} of the plain way's temporaries. XLA {how} into "
        "the second. That sum is read and written once a block, a byte for "
        f"{min(rows_of_block) * 6 / 8:,.0f} to {max(rows_of_block) * 6 / 8:,.0f} operations."
    )


_INTO_BOTH = "takes the gradient of a block's logits into both of its products, and the sum of the kernel's gradient"
_WRITTEN = "writes the gradient of a block's logits once for both of its products, and takes the sum of the kernel's"


def _routes(results: Results) -> Iterator[str]:
    apart = max(map(routes_report.largest_difference, results["cases"]))
    yield "## A language model by four routes"
    yield (
        f"`python examples/compare_lm_routes.py --rounds {results['rounds']}` trains by each on the same batches, with "
        f"`configs/lm.toml` and with `configs/lm-large.toml`; the curves lie at most {apart:.1e} apart:"
    )
    yield routes_report.table(results["cases"])
    yield (
        f"Medians of {results['rounds']} interleaved steps, and the memory that the compiled step needs beside its "
        f"arguments. {where(results)}. The fused route also measures z-loss, accuracy, top-5 accuracy and entropy of "
        "each token; `unlogged` is the same without them."
    )
    yield "![the four routes](lm-routes-cpu.png)"
    yield "`python examples/train_lm.py` drew its whole run by the fused route:"
    yield "![nats a token by tokens of training](lm-curves.png)"


def _students(results: Results) -> Iterator[str]:
    students, teacher, size = results["students"], results["teacher"], results["bytes_per_token"]
    share = students["text"]["parameters"] / teacher["parameters"]
    nats = {distil_report.STUDENTS[name]: student["nats_per_token"] for name, student in students.items()}
    yield "## Learning from a teacher"
    yield (
        f"`python examples/distil.py` has three students, of {share:.2f} of the teacher's parameters, "
        f"learn in {results['evaluated'][-1]} steps each from its "
        f"{results['settings']['k']} likeliest tokens, from its hidden vectors, and from the text alone:"
    )
    yield distil_report.table(results)
    yield (
        f"Least nats a token came of {min(nats, key=nats.__getitem__)}, most of {max(nats, key=nats.__getitem__)}. "
        f"For each token sparse labels take {size['sparse']} bytes, hidden vectors would take {size['hidden']:,} and "
        f"logits {size['logits']:,}. {where(results)}."
    )
    yield "![three students and their teacher](distil.png)"


def _margins(results: Results) -> Iterator[str]:
    runs = {(run["library"], run["dtype"]): run for run in results["runs"]}
    ours, theirs, wide = runs["softjax", "float32"], runs["optax", "float32"], runs["optax", "float64"]
    turns = {id(run): max(range(len(run["margin"])), key=run["margin"].__getitem__) for run in runs.values()}
    yield "## Margins"
    yield (
        "`python examples/max_margin.py` writes [`max-margin.json`](max-margin.json) and its picture: normalised "
        f"gradient descent on {results['images']} digits by the gradients of softjax, optax and torch. softjax's in "
        f"float32 reaches {max(ours['margin']):.3f} of the hard margin {results['hard_margin']:.3f} and ends at "
        f"{ours['margin'][-1]:.3f}. By optax's it turns at {max(theirs['margin']):.3f}, with the nearest image at a "
        f"gap of {theirs['gap'][turns[id(theirs)]]:.0f} nats, and ends at {theirs['margin'][-1]:.3f}; in float64 it "
        f"turns at {max(wide['margin']):.3f} and a gap of {wide['gap'][turns[id(wide)]]:.0f}."
    )
    yield "![margins by step](max-margin.png)"


def _command(part: str, results: Results) -> str:
    words = ["python examples/benchmark.py", "" if part == "core" else f"--part {part}"]
    words += ["" if results["machine"]["platform"] == "cpu" else "--config configs/benchmark-gpu.toml"]
    return " ".join(filter(None, [*words, f"--rounds {results['settings']['rounds']}"]))


def _name(results: Results) -> str:
    return f"{results['part']}-{results['machine']['platform']}"


def _range(numbers: list[float], decimals: int = 2) -> str:
    low, high = (f"{number:.{decimals}f}" for number in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


_EAGER = core_report.QUANTITIES[2:]
_SECTIONS: dict[str, Callable[[Results], Iterator[str]]] = {
    "core-cpu": _core,
    "linear-cpu": _linear,
    "growth-cpu": _growth,
    "blocks-cpu": _blocks,
    "distil-cpu": _distil,
    "core-gpu": _core,
    "linear-gpu": _linear,
    "growth-gpu": _growth,
    "blocks-gpu": _blocks,
    "distil-gpu": _distil,
    "mesh-cost": _mesh,
    "mesh-cost-tpu": partial(_chips, targets.TPU, _INTO_BOTH),
    "mesh-cost-gpu": partial(_chips, targets.GPU, _WRITTEN),
    "lm-routes-cpu": _routes,
    "distil": _students,
    "max-margin": _margins,
}
