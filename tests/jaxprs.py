"""Reads a traced program: the equations of its jaxpr, and its matmuls."""

import re

import jax
from jax.extend import core


def equations(jaxpr):
    """The equations of a jaxpr. A call, loop or custom derivative is replaced by the equations inside of it."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for eqn in jaxpr.eqns:
        inner = [sub for value in eqn.params.values() for sub in _jaxprs(value)]
        if inner:
            for sub in inner:
                yield from equations(sub)
        else:
            yield eqn


def _jaxprs(value):
    if isinstance(value, (core.ClosedJaxpr, core.Jaxpr)):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)


def count(function, *args, primitive, size):
    """The number of equations of this primitive with an output of at least `size` elements."""
    closed = jax.make_jaxpr(function)(*args)
    return sum(e.primitive.name == primitive and any(v.aval.size >= size for v in e.outvars) for e in equations(closed))


def matmuls(function, *args):
    """The dtypes of the operands and of the result of each matmul in the StableHLO program."""
    text = jax.jit(function).lower(*args).as_text()
    return re.findall(r"stablehlo.dot_general.*: \(tensor<\w*x(\w+)>, tensor<\w*x(\w+)>\) -> tensor<\w*x(\w+)>", text)
