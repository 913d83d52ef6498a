"""The values of each row of hidden @ kernel, a chunk at a time.

Their cotangents are known only in the backward pass, which computes the logits again: four matmuls in all.
"""

from functools import partial
from typing import Any

import jax

from softjax._args.types import Shape
from softjax._linear.chunks import compute_if, scan_chunks
from softjax._linear.layer import Parameters
from softjax._linear.samples import (
    ChunkConfig,
    Samples,
    add_gradients,
    chunk_block,
    in_kernel_layout,
    zero_gradients,
)
from softjax._rows.edges import zero_nonfinite
from softjax._xla.every_mode import opaque_to_remat, with_forward_mode


def rows_in_shape(config: ChunkConfig, chunked: tuple[Parameters, Samples], shape: Shape) -> Any:
    """The values of each row, `[*samples]`."""
    _, samples = chunked
    return samples.merge(recomputed_rows(config, *chunked), shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed_rows(config, parameters, samples):
    return _forward(config, parameters, samples)[0]


def _forward(config, parameters, samples):
    def step(carry: None, scanned: Samples) -> tuple[None, Any]:
        chunk = samples.chunk(scanned)
        x = config.layer.logits(chunk.safe_hidden, parameters, chunk.safe_temperature)
        return carry, config.rule.forward(chunk_block(config, parameters, chunk, x))

    _, (values, residuals) = scan_chunks(step, None, samples.scanned(), samples.active_chunks, fill=1)
    return values, (parameters, samples, residuals)


def _backward(config, residuals, cotangents):
    parameters, samples, row_residuals = residuals
    layer = config.layer
    cotangents = config.classes.psum_cotangents(cotangents)

    # Forward mode transposes this scan, and reverse mode transposes it twice. A `cond` around the whole step would then
    # copy what it reads, such as the kernel, in each chunk. So each matmul has a `cond` of its own.
    @partial(jax.checkpoint, prevent_cse=False)  # so that its own transpose keeps no array of a chunk either
    def step(gradients: Any, chunk_and_cotangents: Any) -> tuple[Any, Any]:
        scanned, row_residuals, cotangents = chunk_and_cotangents
        chunk, active = samples.chunk(scanned), scanned.active_chunks
        hidden, temperature = chunk.safe_hidden, chunk.safe_temperature
        x = compute_if(active, lambda: layer.logits(hidden, parameters, temperature))
        dblock = config.rule.backward(chunk_block(config, parameters, chunk, x), row_residuals, cotangents)
        du, dtemperature = layer.logits_vjp(dblock.logits, x, temperature, config.classes)
        dhidden = layer.hidden_gradient(du, parameters.kernel, active).astype(hidden.dtype)
        dsamples = Samples(dhidden, dblock.target, None, temperature=dtemperature)
        # A row that is not finite shows in du, unless its cotangents are 0. In dkernel, NaN times 0 would be NaN.
        return add_gradients(layer, gradients, du, zero_nonfinite(hidden), active), dsamples

    gradients = zero_gradients(layer, parameters, samples)
    scanned = samples.scanned(), row_residuals, cotangents
    gradients, dsamples = scan_chunks(step, gradients, scanned, None)
    gradients = in_kernel_layout(layer, *gradients)
    floating = parameters._replace(exists=None, teacher=None, class_weights=None)
    dparameters = jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, floating)
    return dparameters, samples.restore(dsamples)


_recomputed_rows.defvjp(opaque_to_remat(_forward), _backward)
recomputed_rows = with_forward_mode(_recomputed_rows)
"""`recomputed_rows(config, parameters, samples)`: the values of each row, `[chunks, rows]`."""
