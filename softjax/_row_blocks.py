"""The numbers of each row of hidden @ kernel, a block of samples at a time; the pull-back computes the logits again.

Four matrix products in all: the logits twice, and the gradients of the hidden vectors and of the kernel.
"""

from functools import partial
from typing import Any

import jax

from softjax import _blocks as blocks
from softjax._block import block_of
from softjax._every_mode import in_every_mode, one_operation
from softjax._layer import Parameters
from softjax._rows import pulled_back, values
from softjax._samples import Samples, added, as_kept, no_gradients


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows_of_blocks(static, parameters, samples):
    return _rows_forward(static, parameters, samples)[0]


def _rows_forward(static, parameters, samples):
    def step(carry: None, block: Samples) -> tuple[None, Any]:
        x = static.layer.logits(block.harmless_hidden, parameters)
        return carry, values(static.classes, block_of(static.classes, x, block.target, parameters.where, block.counted))

    _, (row, sums) = blocks.walk(step, None, samples, samples.occupied)
    return row, (parameters, samples, sums)


def _rows_backward(static, residuals, cotangents):
    parameters, samples, sums = residuals
    layer, classes = static.layer, static.classes
    cotangents = jax.tree.map(lambda ds: ds[..., None], classes.whole(cotangents))

    @partial(jax.checkpoint, prevent_cse=False)  # its transpose, too, makes the slopes of a block where it needs them
    def step(gradients: Parameters, of_block: Any) -> tuple[Parameters, Any]:
        samples, sums, cotangents = of_block
        hidden = samples.harmless_hidden
        x = layer.logits(hidden, parameters)
        block = block_of(classes, x, samples.target, parameters.where, samples.counted)
        pulled = pulled_back(classes, block, sums, cotangents)
        du = layer.uncapped(pulled.logits, x)
        dhidden = layer.hidden_gradient(du, parameters.kernel).astype(hidden.dtype)
        return added(layer, gradients, du, hidden), (dhidden, pulled.target)

    gradients = no_gradients(layer, parameters, samples)
    every = samples._replace(occupied=None), sums, cotangents
    gradients, (dhidden, dtarget) = blocks.walk(step, gradients, every, samples.occupied)
    gradients, floating = as_kept(layer, gradients), parameters._replace(exists=None)
    dparameters = jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, floating)
    return dparameters, Samples(dhidden, dtarget, None)


_rows_of_blocks.defvjp(one_operation(_rows_forward), _rows_backward)
rows_of_blocks = in_every_mode(_rows_of_blocks)
"""`rows_of_blocks(static, parameters, samples)`: the numbers of each row, `[blocks, rows]`."""
