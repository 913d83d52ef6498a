"""Timing of several calls against each other: rounds that time each of them once, in an order drawn anew.

A machine's speed drifts with heat and neighbours. Interleaved, the drift falls on all calls alike; a median leaves out
the rounds that something disturbed, and the quartiles say how far to trust it.
"""

import contextlib
import dataclasses
import gc
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

Call = Callable[[], Any]  # returns when its result is there, not when its work has been queued
Name = TypeVar("Name", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Timing:
    seconds: tuple[float, ...]
    """Of one call, a number for each round."""
    calls: int
    """That each of these numbers is the mean of."""

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        return _quartiles(self.seconds)


@dataclasses.dataclass(frozen=True)
class Ratio:
    of_medians: float
    quartiles: tuple[float, float]
    """Of the rounds' own ratios, which the drift from round to round does not widen."""


def interleaved(
    calls: Mapping[Name, Call],
    *,
    rounds: int,
    at_least: float,
    seed: int,
    after_round: Callable[[], Any] = lambda: None,
) -> dict[Name, Timing]:
    """Times each call once a round.

    Args:
      calls: what to time; each is called before its time counts, so that it is compiled and its memory is mapped.
      rounds: how many times to time each.
      at_least: seconds. A call that is faster is repeated within each round until it takes as long.
      seed: of the order within each round.
      after_round: called after each round.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(seed).shuffle
    order = list(calls)
    with _collecting_between_rounds_only() as collect:
        repeats = {name: _repeats(call, at_least) for name, call in calls.items()}
        for _ in range(rounds):
            collect()
            shuffle(order)
            for name in order:
                _settle(calls[name], repeats[name])
                seconds[name].append(_time(calls[name], repeats[name]) / repeats[name])
            after_round()
    return {name: Timing(tuple(seconds[name]), repeats[name]) for name in calls}


def ratio(ours: Timing, theirs: Timing) -> Ratio:
    rounds = np.divide(ours.seconds, theirs.seconds)
    return Ratio(ours.median / theirs.median, _quartiles(rounds))


def _quartiles(numbers: Any) -> tuple[float, float]:
    low, high = np.quantile(numbers, (0.25, 0.75))
    return float(low), float(high)


def _repeats(call: Call, at_least: float) -> int:
    call()
    repeats = 1
    while _time(call, repeats) < at_least:
        repeats *= 2
    return repeats


def _settle(call: Call, repeats: int) -> None:
    # The threads of the library before this one go on spinning for some milliseconds, on cores that this one needs;
    # then its own threads have to be woken.
    time.sleep(0.01)
    if repeats > 1:
        call()


def _time(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


@contextlib.contextmanager
def _collecting_between_rounds_only() -> Iterator[Callable[[], int]]:
    """Else garbage would be collected in the time of whichever call is running."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield gc.collect
    finally:
        if collecting:
            gc.enable()
