"""Σ weight · row_loss over the rows of hidden @ kernel: gradients are taken while a chunk's logits are in memory.

The weights are known in the forward pass. So the gradient of a chunk's logits is known there too, up to one scalar
cotangent. That makes three matmuls in all, as many as the unfused baseline; the value alone takes one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax._args.types import Array
from softjax._linear.chunks import scan_chunks
from softjax._linear.layer import Parameters
from softjax._linear.samples import (
    ChunkConfig,
    CompensatedSum,
    Samples,
    chunk_block,
    guard_ignored,
    in_kernel_layout,
    zero_gradients,
    zero_of_rows,
)
from softjax._mesh.axes import psum, psum_cotangents, varying_like
from softjax._rows.block import apply_rule
from softjax._rows.reduction import reduce
from softjax._xla import one_cpu
from softjax._xla.barrier import barrier_small
from softjax._xla.every_mode import opaque_to_remat, with_forward_mode


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused_loss_sum(config, parameters, samples, shared):
    def step(total: CompensatedSum, scanned: Samples) -> tuple[CompensatedSum, Any]:
        chunk = samples.chunk(scanned)
        x = config.layer.logits(chunk.safe_hidden, parameters, chunk.safe_temperature)
        loss, aux = _chunk_loss(config, parameters, x, chunk, shared)
        return total.add(loss), aux

    start = CompensatedSum.start(zero_of_rows(config, parameters, samples))
    total, aux = scan_chunks(step, start, samples.scanned(), samples.active_chunks)
    return psum(total.total, config.sample_mesh_axes), aux


def _forward(config, parameters, samples, shared):
    layer = config.layer

    def step(carry: Any, scanned: Samples) -> tuple[Any, Any]:
        (sums, dkernel, dshared), chunk = carry, samples.chunk(scanned)
        hidden, temperature = chunk.safe_hidden, chunk.safe_temperature
        x = layer.logits(hidden, parameters, temperature)
        without_layer = chunk._replace(hidden=None, teacher_hidden=None, temperature=None)
        floating, rebuild, gradients = _partition_floating((without_layer, shared))

        def loss_of(x: Array, floating: Any) -> tuple[Array, Any]:
            samples, shared = rebuild(floating)
            samples = samples._replace(teacher_hidden=chunk.teacher_hidden)
            return _chunk_loss(config, parameters, x, samples, shared)

        loss, vjp, aux = jax.vjp(loss_of, x, floating, has_aux=True)
        dx, dfloating = barrier_small(vjp, x.size)(config.classes.divide_cotangent(jnp.ones_like(loss)))
        du, dtemperature = layer.logits_vjp(dx, x, temperature, config.classes)
        dchunk, dshared_here = gradients(dfloating)
        dhidden = layer.hidden_gradient(du, parameters.kernel)
        dhidden = dhidden if hidden.dtype == jnp.float16 else dhidden.astype(hidden.dtype)
        sums = sums.add((loss, None if parameters.bias is None else jnp.sum(du, 0)))
        dkernel, dshared = layer.add_kernel_gradient(dkernel, du, hidden), jax.tree.map(jnp.add, dshared, dshared_here)
        return (sums, dkernel, dshared), (dchunk._replace(hidden=dhidden, temperature=dtemperature), aux)

    floating, _, gradients = _partition_floating(shared)
    dshared = gradients({i: varying_like(jnp.zeros(a.shape, a.dtype), a) for i, a in floating.items()})
    dkernel, dbias = zero_gradients(layer, parameters, samples)
    carry = CompensatedSum.start((zero_of_rows(config, parameters, samples), dbias)), dkernel, dshared
    (sums, dkernel, dshared), (dsamples, aux) = scan_chunks(step, carry, samples.scanned(), samples.active_chunks)
    total, dbias = sums.total
    dtypes = jax.tree.map(lambda a: jnp.zeros((0,), a.dtype), (parameters, samples, shared))
    residuals = (in_kernel_layout(layer, dkernel, dbias), samples.restore(dsamples), dshared), dtypes
    return (psum(total, config.sample_mesh_axes), aux), residuals


def _backward(config, residuals, cotangents):
    (gradients, dtypes), (g, _) = residuals, cotangents  # no derivative flows through aux
    return _scale_gradients(
        config.classes.psum_cotangents(psum_cotangents(g, config.sample_mesh_axes)), gradients, dtypes
    )


_fused_loss_sum.defvjp(opaque_to_remat(_forward), _backward)
fused_loss_sum = with_forward_mode(_fused_loss_sum)
"""`fused_loss_sum(config, parameters, samples, shared)`: Σ weight · row_loss in float32 or wider, and aux
`[chunks, rows, …]`. `shared` are arrays that all rows use.
"""


def _chunk_loss(config: ChunkConfig, parameters: Parameters, x: Array, chunk: Samples, shared: Any) -> tuple[Any, Any]:
    """Σ weight · row_loss over a chunk with logits x, and its aux."""
    active, row_args = chunk.active, chunk.row_args
    values = apply_rule(config.rule, chunk_block(config, parameters, chunk, x))
    if active is not None:
        values, row_args = guard_ignored((values, row_args), active)
    loss, aux = config.row_loss(shared, values, row_args)
    loss = loss.astype(x.dtype)
    weights = one_cpu.unit_weights(loss) if chunk.weights is None else chunk.weights[:, 0].astype(x.dtype)
    return reduce(loss, weights, "sum"), aux


class _FloatingLeaves(NamedTuple):
    """The floating leaves of a pytree by index, and two ways to rebuild it."""

    leaves: dict[int, Array]
    rebuild: Callable[[dict[int, Array]], Any]
    """With other floating leaves in their place."""
    gradients: Callable[[dict[int, Array]], Any]
    """With gradients in their place, and None for the other leaves."""


def _partition_floating(tree: Any) -> _FloatingLeaves:
    leaves, structure = jax.tree.flatten(tree)
    by_index = dict(enumerate(leaves))
    return _FloatingLeaves(
        {i: leaf for i, leaf in by_index.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)},
        lambda floating: jax.tree.unflatten(structure, (by_index | floating).values()),
        lambda floating: jax.tree.unflatten(structure, [floating.get(i) for i in by_index]),
    )


def _scale_gradients(g: Array, gradients: Any, dtypes: Any) -> Any:
    """g · gradient in the dtype of the argument. It scales before it casts: a cast alone may round a gradient to 0."""

    def scale(gradient: Any, like_argument: Any) -> Any:
        return None if gradient is None else (g * gradient.astype(g.dtype)).astype(like_argument.dtype)

    return jax.tree.map(scale, gradients, dtypes, is_leaf=lambda gradient: gradient is None)
