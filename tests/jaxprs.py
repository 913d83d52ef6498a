"""Walking a jaxpr: every equation, also inside calls, loops and custom derivatives; and the products of a program."""

import re

import jax
from jax.extend import core


def equations(jaxpr):
    """Every equation of a closed or open jaxpr, and of the jaxprs in its parameters."""
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
    """How many equations of this primitive have an output of at least `size` elements."""
    closed = jax.make_jaxpr(function)(*args)
    return sum(e.primitive.name == primitive and any(v.aval.size >= size for v in e.outvars) for e in equations(closed))


def products(function, *args):
    """The types of the operands and of the result of each matrix product of the program that XLA is given."""
    text = jax.jit(function).lower(*args).as_text()
    return re.findall(r"stablehlo.dot_general.*: \(tensor<\w*x(\w+)>, tensor<\w*x(\w+)>\) -> tensor<\w*x(\w+)>", text)
