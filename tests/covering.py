"""Which cases of a law run always, and which `-m slow` adds."""

import itertools

import pytest

ROUTES = ["one CPU", "elsewhere"]  # of the fixture `route`, to be given with `indirect`


def slow(*cases):
    """The same law at other sizes."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def covering(*axes):
    """The product of the axes, of which a few cases with each value of each axis are quick and the others slow.

    A tuple among the values stands for several arguments.
    """
    axes = [list(axis) for axis in axes]
    quick = {tuple(i % len(axis) for axis in axes) for i in range(max(map(len, axes)))}
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[i] if isinstance(axis[i], tuple) else (axis[i],) for axis, i in zip(axes, places, strict=True)]
        yield pytest.param(*itertools.chain(*values), marks=() if places in quick else pytest.mark.slow)
