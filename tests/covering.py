"""Which cases of a law run always, and which `-m slow` adds."""

import itertools

import pytest

ROUTES = ["one CPU", "elsewhere"]  # of the fixture `route`, to be given with `indirect`


def slow(*cases):
    """The same law at other sizes. A tuple stands for several arguments."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


def covering(*axes, quick=None):
    """Cases of the product of the axes that have each pair of values of two axes among them (all-pairs testing).

    Few of them, which have each value of each axis among them, are quick, the others slow; if `quick` is given, those
    of its numbers among the few. A tuple among the values stands for several arguments.
    """
    axes = [[value if isinstance(value, tuple) else (value,) for value in axis] for axis in axes]
    few = range(max(map(len, axes)))
    quick = [tuple(i % len(axis) for axis in axes) for i in (few if quick is None else quick)]
    pairs = {
        place: set(itertools.combinations(enumerate(place), 2))
        for place in itertools.product(*(range(len(axis)) for axis in axes))
    }
    chosen = set(quick)
    left = set().union(*pairs.values()).difference(*map(pairs.get, quick))
    while left:
        best = max(pairs, key=lambda place: len(pairs[place] & left))
        chosen.add(best)
        left -= pairs[best]
    return [_case(axes, place, () if place in quick else pytest.mark.slow) for place in sorted(chosen)]


def _case(axes, place, marks):
    values = (axis[i] for axis, i in zip(axes, place, strict=True))
    return pytest.param(*itertools.chain.from_iterable(values), marks=marks)
