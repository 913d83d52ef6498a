"""Selects the cases of a test that always run, and those that only `-m slow` runs."""

import itertools

import pytest

ROUTES = ["one CPU", "elsewhere"]  # parameters of the fixture `route`; pass them with `indirect`


def slow(*cases):
    """Marks cases as slow, such as the same law at other sizes. A tuple is a case of several arguments."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


ON_ONE_CPU = pytest.mark.parametrize("route", [ROUTES[0], *slow(ROUTES[1])], indirect=True)
"""Runs a test on the route of one CPU; on the other, which all tests in on_mesh take, only with `-m slow`."""


def covering(*axes, quick=None):
    """All-pairs testing: cases that contain each pair of values of two axes at least once.

    An axis is a list of values. A tuple among the values stands for several arguments. A few cases are quick, the
    others slow. Quick case i takes value i of each axis, modulo its length. By default i counts up to the length of the
    longest axis, so that the quick cases contain each value of each axis. `quick` lists other i.
    """
    axes = [[value if isinstance(value, tuple) else (value,) for value in axis] for axis in axes]
    quick = range(max(map(len, axes))) if quick is None else quick
    quick = [tuple(i % len(axis) for axis in axes) for i in quick]
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
