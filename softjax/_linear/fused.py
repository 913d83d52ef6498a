"""Σ weight · row_loss over the rows of hidden @ kernel, with its gradients taken while a block's logits are at hand.

The weights are known, so that the gradient of a block of logits is, up to the one scalar that comes from outside.
Three matrix products in all, the least possible; the value alone takes one. Below, the rows themselves, for four.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax._args.types import Array, Bool
from softjax._linear import chunks
from softjax._linear.layer import Parameters
from softjax._linear.samples import (
    ChunkConfig,
    CompensatedSum,
    Samples,
    chunk_block,
    in_kernel_layout,
    zero_gradients,
    zero_of_rows,
)
from softjax._mesh.axes import psum, psum_cotangents, varying_like
from softjax._rows.edges import zero_ignored
from softjax._rows.reduction import reduce
from softjax._xla import one_cpu
from softjax._xla.barrier import barrier_small
from softjax._xla.every_mode import opaque_to_remat, with_forward_mode


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused_loss_sum(static, parameters, samples, shared):
    logits, loss = partial(static.layer.logits, parameters=parameters), partial(_chunk_loss, static, parameters)

    def step(total: CompensatedSum, block: Samples) -> tuple[CompensatedSum, Any]:
        part, aux = loss(logits(block.safe_hidden), block, shared)
        return total.add(part), aux

    start = CompensatedSum.start(zero_of_rows(static, parameters, samples))
    total, aux = chunks.scan_chunks(step, start, samples, samples.active_chunks)
    return psum(total.total, static.samples), aux


def _forward(static, parameters, samples, shared):
    layer, loss = static.layer, partial(_chunk_loss, static, parameters)

    def step(carry: Any, block: Samples) -> tuple[Any, Any]:
        sums, dkernel, dshared = carry
        hidden = block.safe_hidden
        x = layer.logits(hidden, parameters)
        moved, of, gradients = _partition_floating((block._replace(hidden=None, teacher=None), shared))

        def of_moved(x: Array, moved: Any) -> tuple[Array, Any]:
            samples, shared = of(moved)
            return loss(x, samples._replace(teacher=block.teacher), shared)

        part, pull, aux = jax.vjp(of_moved, x, moved, has_aux=True)
        dx, dmoved = barrier_small(pull, x.size)(static.classes.divide_cotangent(jnp.ones_like(part)))
        du = layer.softcap_vjp(dx, x)
        dblock, dshared_part = gradients(dmoved)
        dhidden = layer.hidden_gradient(du, parameters.kernel)
        dhidden = dhidden if hidden.dtype == jnp.float16 else dhidden.astype(hidden.dtype)
        sums = sums.add((part, None if parameters.bias is None else jnp.sum(du, 0)))
        dkernel, dshared = layer.add_kernel_gradient(dkernel, du, hidden), jax.tree.map(jnp.add, dshared, dshared_part)
        return (sums, dkernel, dshared), (dblock._replace(hidden=dhidden), aux)

    moved, _, in_place = _partition_floating(shared)
    dshared = in_place({i: varying_like(jnp.zeros(a.shape, a.dtype), a) for i, a in moved.items()})
    dkernel, dbias = zero_gradients(layer, parameters, samples)
    carry = CompensatedSum.start((zero_of_rows(static, parameters, samples), dbias)), dkernel, dshared
    (sums, dkernel, dshared), (dsamples, aux) = chunks.scan_chunks(step, carry, samples, samples.active_chunks)
    total, dbias = sums.total
    types = jax.tree.map(lambda a: jnp.zeros((0,), a.dtype), (parameters, samples, shared))
    return (psum(total, static.samples), aux), (
        (in_kernel_layout(layer, dkernel, dbias), dsamples, dshared),
        types,
    )


def _backward(static, residuals, g):
    (gradients, types), (g, _) = residuals, g  # no derivative flows through what is measured beside the loss
    return _scale_gradients(static.classes.psum_cotangents(psum_cotangents(g, static.samples)), gradients, types)


_fused_loss_sum.defvjp(opaque_to_remat(_forward), _backward)


fused_loss_sum = with_forward_mode(_fused_loss_sum)
"""`loss_sum(static, parameters, samples, shared)`: Σ weight · row_loss, in float32 or wider, and what each row's loss
measures beside it, `[blocks, rows, …]`.

`shared` are arrays that all rows use.
"""


def _chunk_loss(static: ChunkConfig, parameters: Parameters, x: Array, block: Samples, shared: Any) -> tuple[Any, Any]:
    counted = block.active
    row = static.rule.apply(static.classes, chunk_block(static, parameters, block, x))
    row_args = block.row_args
    if counted is not None:
        row, row_args = guard_ignored((row, row_args), counted)
    loss, aux = static.row_loss(shared, row, row_args)
    loss = loss.astype(x.dtype)
    weights = one_cpu.unit_weights(loss) if block.weights is None else block.weights[:, 0].astype(x.dtype)
    return reduce(loss, weights, "sum"), aux


def guard_ignored(arrays: Any, counted: Bool[Array, "rows 1"]) -> Any:
    """Arrays, finite in rows that are not counted, as are their cotangents, which a caller's loss may make 0 · inf."""

    def one(array: Array) -> Array:
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            return array
        here = counted.reshape((-1, *(1,) * (array.ndim - 1)))
        return _guard_tangent(zero_ignored(array, here), here)

    return jax.tree.map(one, arrays)


@jax.custom_jvp
def _guard_tangent(array, counted):
    return array


@_guard_tangent.defjvp
def _guard_tangent_jvp(primals, tangents):
    # The solution of t = step: JAX takes what it is given for it, and for its transpose.
    def finite(_: Any, step: Array) -> Array:
        return zero_ignored(step, primals[1])

    return _guard_tangent(*primals), lax.custom_linear_solve(lambda t: t, tangents[0], finite, finite)


class _FloatingLeaves(NamedTuple):
    """The floating leaves of a pytree by their number, and the pytree of others in their place, or of gradients."""

    leaves: dict[int, Array]
    of: Callable[[dict[int, Array]], Any]
    gradients: Callable[[dict[int, Array]], Any]


def _partition_floating(tree: Any) -> _FloatingLeaves:
    leaves, structure = jax.tree.flatten(tree)
    every = dict(enumerate(leaves))
    return _FloatingLeaves(
        {i: leaf for i, leaf in every.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)},
        lambda moved: jax.tree.unflatten(structure, (every | moved).values()),
        lambda moved: jax.tree.unflatten(structure, [moved.get(i) for i in every]),
    )


def _scale_gradients(g: Array, gradients: Any, types: Any) -> Any:
    """g · gradient in the type of the argument; the scalar comes before the cast, which might lose a small gradient."""

    def one(gradient: Any, kind: Any) -> Any:
        return None if gradient is None else (g * gradient.astype(g.dtype)).astype(kind.dtype)

    return jax.tree.map(one, gradients, types, is_leaf=lambda gradient: gradient is None)
