"""Interleaved timing: each round times every call once, in a random order.

The speed of a machine drifts with heat and with other programs. Interleaving spreads the drift over all calls. The
median ignores disturbed rounds, and the quartiles show how reliable it is.
"""

import contextlib
import dataclasses
import gc
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

Call = Callable[[], Any]  # returns when its result is ready, not when its work is queued
Name = TypeVar("Name", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Measured times of one call."""

    seconds: tuple[float, ...]
    """Seconds per call, one value per round."""
    calls_per_round: int
    """Each value of `seconds` is the mean of this many calls."""

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        return _quartiles(self.seconds)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Time of one call divided by the time of another."""

    median_ratio: float
    """Ratio of the two medians."""
    quartiles: tuple[float, float]
    """Quartiles of the ratios within each round. Drift between rounds does not widen them."""


def interleaved(
    calls: Mapping[Name, Call],
    *,
    rounds: int,
    at_least: float,
    seed: int,
    after_round: Callable[[], Any] = lambda: None,
) -> dict[Name, Timing]:
    """Times every call once per round.

    Args:
      calls: the calls to time. Each runs once before its first measurement, so that it is compiled and its memory is
        mapped.
      rounds: number of measurements of each call.
      at_least: seconds. A faster call is repeated within each round until it takes this long.
      seed: seed of the order within each round.
      after_round: a function that is called after each round.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(seed).shuffle
    order = list(calls)
    with _paused_garbage_collection() as collect:
        repeats = {name: _count_repeats(call, at_least) for name, call in calls.items()}
        for _ in range(rounds):
            collect()
            shuffle(order)
            for name in order:
                _warm_up(calls[name], repeats[name])
                seconds[name].append(_measure_seconds(calls[name], repeats[name]) / repeats[name])
            after_round()
    return {name: Timing(tuple(seconds[name]), repeats[name]) for name in calls}


def ratio(numerator: Timing, denominator: Timing) -> Ratio:
    ratios = np.divide(numerator.seconds, denominator.seconds)
    return Ratio(numerator.median / denominator.median, _quartiles(ratios))


def _quartiles(values: Any) -> tuple[float, float]:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


def _count_repeats(call: Call, at_least: float) -> int:
    call()
    repeats = 1
    while _measure_seconds(call, repeats) < at_least:
        repeats *= 2
    return repeats


def _warm_up(call: Call, repeats: int) -> None:
    # The threads of the previous library spin for a few milliseconds on cores that this call needs. Then its own
    # threads have to wake up.
    time.sleep(0.01)
    if repeats > 1:
        call()


def _measure_seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


@contextlib.contextmanager
def _paused_garbage_collection() -> Iterator[Callable[[], int]]:
    """Yields `gc.collect` and disables automatic collection, which would add its time to the call that triggers it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield gc.collect
    finally:
        if was_enabled:
            gc.enable()
