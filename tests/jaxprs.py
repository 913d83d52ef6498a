"""Walking a jaxpr: every equation, also inside calls, loops and custom derivatives."""

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
