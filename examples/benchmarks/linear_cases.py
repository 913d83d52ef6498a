"""`benchmark.py --part linear`, `growth` and `blocks`: the last layer and its loss, timed and weighed."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what Ctrl-C means, the program tells that has started this one

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
    FLOOR,
    IN_JAX,
    OURS,
    PLAIN,
    Contender,
    compiled,
    jax_contenders,
    problem,
    torch_contenders,
)
from benchmarks.settings import Config

AfterRound = Callable[[], Any]
ARGUMENTS = "arguments alone"


def linear_case(shape: tuple[int, int, int], dtype: str, config: Config, after_round: AfterRound) -> dict[str, Any]:
    layer = problem(*shape, dtype, config.seed)
    contenders = [*jax_contenders(layer), *torch_contenders(layer, config.torch_threads)]
    timings = timed(contenders, config, after_round)
    losses = {c.name: float(c.call()[0]) for c in contenders if "products" not in c.name}
    return {**described(shape, dtype), "losses_in_nats": losses, "timings": timings}


def growth_case(shape: tuple[int, int, int], dtype: str, config: Config, after_round: AfterRound) -> dict[str, Any]:
    contenders = list(jax_contenders(problem(*shape, dtype, config.seed), (OURS, PLAIN, FLOOR)))
    return {**described(shape, dtype), "timings": timed(contenders, config, after_round)}


def blocks_case(shape: tuple[int, int, int], dtype: str, config: Config, after_round: AfterRound) -> dict[str, Any]:
    """Ours at each block size, and at the one that it chooses, beside the plain way."""
    layer = problem(*shape, dtype, config.seed)

    def loss(hidden: Any, kernel: Any, labels: Any, *, block_size: int | None) -> Any:
        return softjax.linear_cross_entropy(hidden, kernel, labels, block_size=block_size)

    contenders = [*jax_contenders(layer, (PLAIN, FLOOR))]
    for size in (None, *(size for size in config.block_sizes if size <= shape[0])):
        program = jax.value_and_grad(functools.partial(loss, block_size=size), (0, 1))
        contenders.append(compiled(f"block_size={size}", program, *layer))
    return {**described(shape, dtype), "timings": timed(contenders, config, after_round)}


def described(shape: tuple[int, int, int], dtype: str) -> dict[str, Any]:
    return dict(zip(("samples", "features", "classes"), shape, strict=True)) | {"dtype": dtype}


def timed(contenders: list[Contender], config: Config, after_round: AfterRound) -> list[dict[str, Any]]:
    calls = {c.name: c.call for c in contenders}
    times = timing.interleaved(
        calls, rounds=config.rounds, at_least=config.at_least_ms / 1e3, seed=config.seed, after_round=after_round
    )
    return [
        {
            "name": c.name,
            "median": times[c.name].median,
            "quartiles": times[c.name].quartiles,
            "seconds": times[c.name].seconds,
            "temporary_bytes": c.temporary_bytes,
            "compile_seconds": c.compile_seconds,
        }
        for c in contenders
    ]


def problems(part: str, config: Config) -> list[tuple[tuple[int, int, int], str]]:
    """The shapes and dtypes of a part of the benchmark."""
    if part == "growth":
        features, samples, classes = config.growth_features, config.growth_samples, config.growth_classes
        grown = [(n, features, classes[len(classes) // 2]) for n in samples]
        grown += [(samples[0], features, c) for c in classes]
        return [(shape, "float32") for shape in dict.fromkeys(grown)]
    if part == "distil":
        return [(shape, "float32") for shape in config.distil_shapes]
    shapes = [(shape, "float32") for shape in config.linear_shapes]
    return shapes + [(shape, "bfloat16") for shape in config.linear_bfloat16_shapes]


CASES = {"linear": linear_case, "growth": growth_case, "blocks": blocks_case}


def peak_resident(config: Config) -> dict[str, int]:
    """Bytes that a fresh process takes at its peak for one call of each contender at the first of the shapes."""
    peaks: dict[str, int] = {}
    if jax.default_backend() != "cpu" or not Path("/proc/self/status").exists():  # Linux alone tells
        return peaks
    for name in (*IN_JAX, ARGUMENTS):
        command = [sys.executable, "-m", "benchmarks.linear_cases", name, *map(str, config.linear_shapes[0])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], check=True)
        peak = done.stdout.split()[-1]
        if peak != "None":  # it is installed
            peaks[name] = int(peak)
    return peaks


def one_call(name: str, shape: tuple[int, int, int]) -> int | None:
    """The peak of this process after a call of the contender of this name, if it is installed."""
    layer = jax.block_until_ready(problem(*shape, "float32", 0))
    if name != ARGUMENTS:
        contender = next(jax_contenders(layer, (name,)), None)
        if contender is None:
            return None
        contender.call()
    # ru_maxrss would count what the parent had mapped when it started this process
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    _, contender_name, *sizes = sys.argv
    samples_, features_, classes_ = map(int, sizes)
    print(one_call(contender_name, (samples_, features_, classes_)))
