"""A function as data: what it closes over becomes arguments, so that it may stand in a custom derivative."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from softjax._layer import Parameters
from softjax._rows import Row, Statistics
from softjax._samples import Samples, Static, number_like
from softjax._types import Array


class Hoisted(NamedTuple):
    """A function with all that it closes over taken out of it: static, and so fit for a custom derivative."""

    jaxpr: core.Jaxpr
    out: Any

    def __call__(self, closed_over: tuple[Array, ...], *args: Any) -> Any:
        flat = core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, closed_over))(*jax.tree.leaves(args))
        return jax.tree.unflatten(self.out, flat)


def hoist(function: Callable[..., Any], *like: Any) -> tuple[Hoisted, tuple[Array, ...]]:
    """The function, traced for arguments like these, and the arrays that it closes over, tracers among them."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*like)
    return Hoisted(closed.jaxpr, jax.tree.structure(out)), tuple(closed.consts)


class RowLoss(NamedTuple):
    """A caller's loss of the statistics of rows and of their arguments, as `loss_sum` takes it."""

    function: Hoisted

    def __call__(self, closed_over: tuple[Array, ...], row: Row, row_args: list[Array]) -> tuple[Array, Any]:
        return self.function(closed_over, row.statistics, row_args)


def hoisted_row_loss(
    static: Static, of_row: Callable[..., Any], parameters: Parameters, samples: Samples
) -> tuple[RowLoss, tuple[Array, ...]]:
    """The row loss of a block, traced with arrays that vary over the mesh as the numbers and the arguments will."""
    number = jnp.broadcast_to(number_like(static, parameters, samples), samples.hidden.shape[1])
    integer = number.astype(jnp.int32)
    row = Statistics._make([number] * 8 + [integer] * 2)
    function, closed_over = hoist(jax.vmap(of_row), row, [jnp.zeros_like(a[0]) for a in samples.row_args])
    return RowLoss(function), closed_over
