"""`benchmark.py --part linear`, `growth` and `chunks`: time and memory of the last layer and its loss."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent process reports Ctrl-C

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import softjax
from benchmarks import timing
from benchmarks.linear_contenders import (
    IN_JAX,
    MATMULS,
    SOFTJAX,
    UNFUSED,
    Contender,
    compile_contender,
    jax_contenders,
    random_layer,
    torch_contenders,
)
from benchmarks.settings import Config

AfterRound = Callable[[], Any]
ARGUMENTS = "arguments only"


def linear_case(shape: tuple[int, int, int], dtype: str, config: Config, after_round: AfterRound) -> dict[str, Any]:
    layer = random_layer(*shape, dtype, config.seed)
    contenders = [*jax_contenders(layer), *torch_contenders(layer, config.torch_threads)]
    timings = time_contenders(contenders, config, after_round)
    losses = {c.name: float(c.call()[0]) for c in contenders if "matmuls" not in c.name}
    return {**describe_problem(shape, dtype), "losses_in_nats": losses, "timings": timings}


def growth_case(shape: tuple[int, int, int], dtype: str, config: Config, after_round: AfterRound) -> dict[str, Any]:
    contenders = list(jax_contenders(random_layer(*shape, dtype, config.seed), (SOFTJAX, UNFUSED, MATMULS)))
    return {**describe_problem(shape, dtype), "timings": time_contenders(contenders, config, after_round)}


def chunks_case(shape: tuple[int, int, int], dtype: str, config: Config, after_round: AfterRound) -> dict[str, Any]:
    """softjax with each `block_size` and with the default, None, beside the unfused baseline."""
    layer = random_layer(*shape, dtype, config.seed)

    def loss(hidden: Any, kernel: Any, labels: Any, *, block_size: int | None) -> Any:
        return softjax.linear_cross_entropy(hidden, kernel, labels, block_size=block_size)

    contenders = [*jax_contenders(layer, (UNFUSED, MATMULS))]
    for size in (None, *(size for size in config.block_sizes if size <= shape[0])):
        program = jax.value_and_grad(functools.partial(loss, block_size=size), (0, 1))
        contenders.append(compile_contender(f"block_size={size}", program, *layer))
    return {**describe_problem(shape, dtype), "timings": time_contenders(contenders, config, after_round)}


def describe_problem(shape: tuple[int, int, int], dtype: str) -> dict[str, Any]:
    return dict(zip(("samples", "features", "classes"), shape, strict=True)) | {"dtype": dtype}


def time_contenders(contenders: list[Contender], config: Config, after_round: AfterRound) -> list[dict[str, Any]]:
    calls = {c.name: c.call for c in contenders}
    timings = timing.interleaved(
        calls, rounds=config.rounds, at_least=config.at_least_ms / 1e3, seed=config.seed, after_round=after_round
    )
    return [
        {
            "name": c.name,
            "median": timings[c.name].median,
            "quartiles": timings[c.name].quartiles,
            "seconds": timings[c.name].seconds,
            "temporary_bytes": c.temporary_bytes,
            "compile_seconds": c.compile_seconds,
        }
        for c in contenders
    ]


def problems(part: str, config: Config) -> list[tuple[tuple[int, int, int], str]]:
    """Shapes and dtypes of one part of the benchmark."""
    if part == "growth":
        features, samples, classes = config.growth_features, config.growth_samples, config.growth_classes
        growing = [(n, features, classes[len(classes) // 2]) for n in samples]
        growing += [(samples[0], features, c) for c in classes]
        return [(shape, "float32") for shape in dict.fromkeys(growing)]
    if part in ("distil", "packing"):
        shapes = config.distil_shapes if part == "distil" else config.packing_shapes
        return [(shape, "float32") for shape in shapes]
    shapes = [(shape, "float32") for shape in config.linear_shapes]
    return shapes + [(shape, "bfloat16") for shape in config.linear_bfloat16_shapes]


CASES = {"linear": linear_case, "growth": growth_case, "chunks": chunks_case}


def peak_resident_bytes(config: Config) -> dict[str, int]:
    """Peak memory of a fresh process that calls one contender once on the first shape, by contender.

    Only Linux on a CPU reports it. Elsewhere, the result is empty.
    """
    peaks: dict[str, int] = {}
    if jax.default_backend() != "cpu" or not Path("/proc/self/status").exists():
        return peaks
    for name in (*IN_JAX, ARGUMENTS):
        command = [sys.executable, "-m", "benchmarks.linear_cases", name, *map(str, config.linear_shapes[0])]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], check=True)
        peak = process.stdout.split()[-1]
        if peak != "None":
            peaks[name] = int(peak)
    return peaks


def measure_peak(name: str, shape: tuple[int, int, int]) -> int | None:
    """Peak memory of this process after one call of a contender. None if the contender is not installed."""
    layer = jax.block_until_ready(random_layer(*shape, "float32", 0))
    if name != ARGUMENTS:
        contender = next(jax_contenders(layer, (name,)), None)
        if contender is None:
            return None
        contender.call()
    # `ru_maxrss` would include the memory of the parent at the time of the fork.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    _, contender_name, *sizes = sys.argv
    samples_, features_, classes_ = map(int, sizes)
    print(measure_peak(contender_name, (samples_, features_, classes_)))
