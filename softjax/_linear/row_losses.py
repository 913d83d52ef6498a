"""The loss of a row, as the runs over a linear layer take it: our own losses, and a caller's function.

Each is static. `row_loss(shared, values, row_args)` gives `(loss, aux)`, where `shared` are arrays that all rows use.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import core

from softjax._args import arrays
from softjax._args.types import Array
from softjax._linear.layer import Parameters
from softjax._linear.samples import ChunkConfig, Samples, guard_ignored, zero_of_rows
from softjax._mesh.axes import cast_to_varying
from softjax._rows.statistics import RowValues, Statistics
from softjax._xla.barrier import varying_axes


class ElementwiseLoss(NamedTuple):
    """Arithmetic on row values of any shape: the cross-entropy and the divergences."""

    function: Callable[..., Array]
    """`(shared, values, base, *row_args)` to the loss."""
    base: float

    def __call__(self, shared: Any, values: Any, row_args: Any = ()) -> tuple[Array, None]:
        return self.function(shared, values, self.base, *row_args), None

    def hoist(
        self, config: ChunkConfig, parameters: Parameters, samples: Samples, shared: Any
    ) -> tuple["ElementwiseLoss", Any]:
        """Itself: it closes over no array."""
        return self, shared

    def without_chunks(self, shared: Any, values: Any, row_args: Any, weights: Array | None) -> tuple[Array, None]:
        """The loss of each sample, `[*samples]`."""
        return self(shared, values, row_args)


class CallerLoss(NamedTuple):
    """A caller's `row_loss(statistics, *row_args)`, written for one sample."""

    function: Callable[..., Any]
    tree: Any
    """The structure of the row arguments, which are passed as a list of leaves."""
    has_aux: bool

    def one_sample(self, statistics: Statistics, leaves: list[Array]) -> tuple[Array, Any]:
        try:
            result = self.function(statistics, *jax.tree.unflatten(self.tree, leaves))
        except (IndexError, ValueError) as error:
            if isinstance(error, ValueError) and "out of bounds" not in str(error):
                raise
            raise ValueError(
                "`row_loss` is called for one sample: each of its statistics is a scalar, without an axis to reduce or "
                "index. `reduction` sums over the samples."
            ) from error
        return arrays.row_loss_result(result, self.has_aux)

    def hoist(
        self, config: ChunkConfig, parameters: Parameters, samples: Samples, shared: Any
    ) -> tuple["HoistedLoss", tuple[Array, ...]]:
        """The loss of a chunk, and the arrays it closes over; traced with arrays that vary over the mesh as rows do."""
        zeros = jnp.broadcast_to(zero_of_rows(config, parameters, samples), samples.chunk_size)
        statistics = Statistics.fill(zeros, zeros.astype(jnp.int32))
        row_args = jax.eval_shape(lambda: samples.chunk(jax.tree.map(lambda a: a[0], samples.scanned())).row_args)
        leaves = [cast_to_varying(varying_axes(a), jnp.zeros(a.shape, a.dtype)) for a in row_args]
        function, closed_over = hoist_closure(jax.vmap(self.one_sample), statistics, leaves)
        return HoistedLoss(function), closed_over

    def without_chunks(self, shared: Any, values: RowValues, row_args: Any, weights: Array | None) -> tuple[Array, Any]:
        """The loss of each sample and its aux, `[*samples, …]`."""
        shape = values.statistics.entropy.shape

        def flatten(array: Array) -> Array:
            return array.reshape((math.prod(shape), *array.shape[len(shape) :]))

        flat = jax.tree.map(flatten, (values.statistics, row_args))
        active = None if weights is None else weights.reshape(-1, 1) != 0
        if active is not None:
            flat = guard_ignored(flat, active)
        loss, aux = jax.vmap(self.one_sample)(*flat)
        if active is not None:
            loss = guard_ignored(loss, active)  # statistics of a skipped chunk are 1, where the loss may be infinite
        return jax.tree.map(lambda a: a.reshape((*shape, *a.shape[1:])), (loss, aux))


class HoistedLoss(NamedTuple):
    """A caller's loss of a chunk, which closes over no array."""

    function: "Hoisted"

    def __call__(self, closed_over: tuple[Array, ...], values: RowValues, leaves: list[Array]) -> tuple[Array, Any]:
        return self.function(closed_over, values.statistics, leaves)


class Hoisted(NamedTuple):
    """A traced function whose closed-over arrays became arguments, so it can be static in a custom derivative."""

    jaxpr: Any
    out: Any
    """The structure of its result."""

    def __call__(self, closed_over: tuple[Array, ...], *args: Any) -> Any:
        flat = core.eval_jaxpr(self.jaxpr, closed_over, *jax.tree.leaves(args))
        return jax.tree.unflatten(self.out, flat)


def hoist_closure(function: Callable[..., Any], *example: Any) -> tuple[Hoisted, tuple[Array, ...]]:
    """Traces the function for arguments like the example; also returns the arrays, or tracers, it closes over."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*example)
    return Hoisted(closed.jaxpr, jax.tree.structure(out)), tuple(closed.consts)
