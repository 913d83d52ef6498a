"""Which cases of a law run always, and which `-m slow` adds."""

import itertools

import pytest

ROUTES = ["one CPU", "elsewhere"]  # of the fixture `route`, to be given with `indirect`


def slow(*cases):
    """The same law at other sizes."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def covering(*axes):
    """The product of the axes: few cases, which have each value of each axis among them, are quick, the others slow.

    A tuple among the values stands for several arguments.
    """
    axes = [[value if isinstance(value, tuple) else (value,) for value in axis] for axis in axes]
    quick = {tuple(i % len(axis) for axis in axes) for i in range(max(map(len, axes)))}
    places = itertools.product(*(range(len(axis)) for axis in axes))
    return [_case(axes, place, () if place in quick else pytest.mark.slow) for place in places]


def _case(axes, place, marks):
    values = (axis[i] for axis, i in zip(axes, place, strict=True))
    return pytest.param(*itertools.chain.from_iterable(values), marks=marks)
