"""A caller's row loss as a static function, with the arrays that it closes over taken out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import core

from softjax._args.types import Array
from softjax._linear.layer import Parameters
from softjax._linear.samples import ChunkConfig, Samples, zero_of_rows
from softjax._rows.statistics import RowValues, Statistics


class Hoisted(NamedTuple):
    """A function with all that it closes over taken out of it: static, and so fit for a custom derivative."""

    jaxpr: Any
    out: Any
    """The tree of what it gives."""

    def __call__(self, closed_over: tuple[Array, ...], *args: Any) -> Any:
        flat = core.eval_jaxpr(self.jaxpr, closed_over, *jax.tree.leaves(args))
        return jax.tree.unflatten(self.out, flat)


def hoist_closure(function: Callable[..., Any], *like: Any) -> tuple[Hoisted, tuple[Array, ...]]:
    """The function, traced for arguments like these, and the arrays that it closes over, tracers among them."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*like)
    return Hoisted(closed.jaxpr, jax.tree.structure(out)), tuple(closed.consts)


class RowLoss(NamedTuple):
    """A caller's loss of the statistics of rows and of their arguments, as `loss_sum` takes it."""

    function: Hoisted

    def __call__(self, closed_over: tuple[Array, ...], row: RowValues, row_args: list[Array]) -> tuple[Array, Any]:
        return self.function(closed_over, row.statistics, row_args)


def hoist_row_loss(
    static: ChunkConfig, of_row: Callable[..., Any], parameters: Parameters, samples: Samples
) -> tuple[RowLoss, tuple[Array, ...]]:
    """The row loss of a block, traced with arrays that vary over the mesh as the numbers and the arguments will."""
    number = jnp.broadcast_to(zero_of_rows(static, parameters, samples), samples.hidden.shape[1])
    integer = number.astype(jnp.int32)
    row = Statistics.fill(number, integer)
    function, closed_over = hoist_closure(jax.vmap(of_row), row, [jnp.zeros_like(a[0]) for a in samples.row_args])
    return RowLoss(function), closed_over
