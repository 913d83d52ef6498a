"""A function of arrays as data: what it closes over becomes arguments, and what it reads can be seen."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from softjax._types import Array


class Hoisted(NamedTuple):
    """A function with all that it closes over taken out of it: static, and so fit for a custom derivative."""

    jaxpr: core.Jaxpr
    out: Any

    def __call__(self, closed_over: tuple[Array, ...], *args: Any) -> Any:
        flat = core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, closed_over))(*jax.tree.leaves(args))
        return jax.tree.unflatten(self.out, flat)

    def reads(self) -> list[bool]:
        """Which leaves of the arguments the result depends on."""
        return _reads(self.jaxpr, [True] * len(self.jaxpr.outvars))


def hoist(function: Callable[..., Any], *like: Any) -> tuple[Hoisted, tuple[Array, ...]]:
    """The function, traced for arguments like these, and the arrays that it closes over, tracers among them."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*like)
    return Hoisted(closed.jaxpr, jax.tree.structure(out)), tuple(closed.consts)


def _reads(jaxpr: core.Jaxpr, wanted: list[bool]) -> list[bool]:
    live = {id(v) for v, w in zip(jaxpr.outvars, wanted, strict=True) if w}
    for equation in reversed(jaxpr.eqns):
        outs = [id(v) in live for v in equation.outvars]
        if any(outs) or equation.effects:
            inner = equation.params.get("jaxpr")
            reads = [True] * len(equation.invars)
            if equation.primitive.name in ("jit", "pjit") and isinstance(inner, core.ClosedJaxpr):
                reads = _reads(inner.jaxpr, outs)
            live |= {id(v) for v, read in zip(equation.invars, reads, strict=True) if read}
    return [id(v) in live for v in jaxpr.invars]
