"""Row values of a linear layer, a chunk at a time. The backward pass computes the logits again: four matmuls."""

from functools import partial
from typing import Any

import jax

from softjax._args.types import Shape
from softjax._linear import chunks
from softjax._linear.layer import Parameters
from softjax._linear.samples import ChunkConfig, Samples, add_gradients, chunk_block, in_kernel_layout, zero_gradients
from softjax._xla.every_mode import opaque_to_remat, with_forward_mode

# The numbers of each row, a block at a time. Their cotangents come later, so that the pull-back computes the logits
# again: four products in all, the logits twice.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed_rows(static, parameters, samples):
    return _forward(static, parameters, samples)[0]


def _forward(static, parameters, samples):
    def step(carry: None, block: Samples) -> tuple[None, Any]:
        x = static.layer.logits(block.safe_hidden, parameters)
        return carry, static.rule.forward(static.classes, chunk_block(static, parameters, block, x))

    _, (row, sums) = chunks.scan_chunks(step, None, samples, samples.active_chunks)
    return row, (parameters, samples, sums)


def _backward(static, residuals, cotangents):
    parameters, samples, sums = residuals
    layer, classes = static.layer, static.classes
    cotangents = classes.psum_cotangents(cotangents)

    @partial(jax.checkpoint, prevent_cse=False)  # its transpose, too, makes the slopes of a block where it needs them
    def step(gradients: Any, of_block: Any) -> tuple[Any, Any]:
        samples, sums, cotangents = of_block
        hidden = samples.safe_hidden
        x = layer.logits(hidden, parameters)
        pulled = static.rule.backward(classes, chunk_block(static, parameters, samples, x), sums, cotangents)
        du = layer.softcap_vjp(pulled.logits, x)
        dhidden = layer.hidden_gradient(du, parameters.kernel).astype(hidden.dtype)
        return add_gradients(layer, gradients, du, hidden), (dhidden, pulled.target)

    gradients = zero_gradients(layer, parameters, samples)
    every = samples._replace(active_chunks=None), sums, cotangents
    gradients, (dhidden, dtarget) = chunks.scan_chunks(step, gradients, every, samples.active_chunks)
    gradients, floating = in_kernel_layout(layer, *gradients), parameters._replace(exists=None, teacher=None)
    dparameters = jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, floating)
    return dparameters, Samples(dhidden, dtarget, None)


_recomputed_rows.defvjp(opaque_to_remat(_forward), _backward)


recomputed_rows = with_forward_mode(_recomputed_rows)
"""`rows_of_blocks(static, parameters, samples)`: the numbers of each row, `[blocks, rows]`."""


def rows_in_shape(static: ChunkConfig, of_blocks: tuple[Parameters, Samples], shape: Shape) -> Any:
    """The same in the shape of the samples."""
    return chunks.merge_chunks(recomputed_rows(static, *of_blocks), shape)
