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

from softjax import _blocks as blocks
from softjax import _classes as mesh
from softjax import _cpu as cpu
from softjax._block import harmless
from softjax._classes import like
from softjax._every_mode import in_every_mode, one_operation
from softjax._layer import Parameters
from softjax._reduce import reduce
from softjax._samples import Running, Samples, Static, added, as_kept, block_at, no_gradients, number_like
from softjax._types import Array, Bool, Shape


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss_sum(static, parameters, samples, shared):
    logits, loss = partial(static.layer.logits, parameters=parameters), partial(_block_loss, static, parameters)

    def step(total: Running, block: Samples) -> tuple[Running, Any]:
        part, aux = loss(logits(block.harmless_hidden), block, shared)
        return total.plus(part), aux

    start = Running.of(number_like(static, parameters, samples))
    total, aux = blocks.walk(step, start, samples, samples.occupied)
    return mesh.total(total.total, static.samples), aux


def _forward(static, parameters, samples, shared):
    layer, loss = static.layer, partial(_block_loss, static, parameters)

    def step(carry: Any, block: Samples) -> tuple[Any, Any]:
        sums, dkernel, dshared = carry
        hidden = block.harmless_hidden
        x = layer.logits(hidden, parameters)
        moved, of, gradients = _floating((block._replace(hidden=None, teacher=None), shared))

        def of_moved(x: Array, moved: Any) -> tuple[Array, Any]:
            samples, shared = of(moved)
            return loss(x, samples._replace(teacher=block.teacher), shared)

        part, pull, aux = jax.vjp(of_moved, x, moved, has_aux=True)
        dx, dmoved = mesh.numbers_apart(pull, x.size)(static.classes.share(jnp.ones_like(part)))
        du = layer.uncapped(dx, x)
        dblock, dshared_part = gradients(dmoved)
        dhidden = layer.hidden_gradient(du, parameters.kernel)
        dhidden = dhidden if hidden.dtype == jnp.float16 else dhidden.astype(hidden.dtype)
        sums = sums.plus((part, None if parameters.bias is None else jnp.sum(du, 0)))
        dkernel, dshared = layer.add_kernel_gradient(dkernel, du, hidden), jax.tree.map(jnp.add, dshared, dshared_part)
        return (sums, dkernel, dshared), (dblock._replace(hidden=dhidden), aux)

    moved, _, in_place = _floating(shared)
    dshared = in_place({i: like(jnp.zeros(a.shape, a.dtype), a) for i, a in moved.items()})
    dkernel, dbias = no_gradients(layer, parameters, samples)
    carry = Running.of((number_like(static, parameters, samples), dbias)), dkernel, dshared
    (sums, dkernel, dshared), (dsamples, aux) = blocks.walk(step, carry, samples, samples.occupied)
    total, dbias = sums.total
    types = jax.tree.map(lambda a: jnp.zeros((0,), a.dtype), (parameters, samples, shared))
    return (mesh.total(total, static.samples), aux), (
        (as_kept(layer, dkernel, dbias), dsamples, dshared),
        types,
    )


def _backward(static, residuals, g):
    (gradients, types), (g, _) = residuals, g  # no derivative flows through what is measured beside the loss
    return _scaled(static.classes.whole(mesh.whole(g, static.samples)), gradients, types)


_loss_sum.defvjp(one_operation(_forward), _backward)
loss_sum = in_every_mode(_loss_sum)
"""`loss_sum(static, parameters, samples, shared)`: Σ weight · row_loss, in float32 or wider, and what each row's loss
measures beside it, `[blocks, rows, …]`.

`shared` are arrays that all rows use.
"""


def _block_loss(static: Static, parameters: Parameters, x: Array, block: Samples, shared: Any) -> tuple[Any, Any]:
    counted = block.counted
    row = static.page.numbers(static.classes, block_at(static, parameters, block, x))
    row_args = block.row_args
    if counted is not None:
        row, row_args = guarded((row, row_args), counted)
    loss, aux = static.row_loss(shared, row, row_args)
    loss = loss.astype(x.dtype)
    weights = cpu.weights_of_one(loss) if block.weights is None else block.weights[:, 0].astype(x.dtype)
    return reduce(loss, weights, "sum"), aux


def guarded(arrays: Any, counted: Bool[Array, "rows 1"]) -> Any:
    """Arrays, finite in rows that are not counted, as are their cotangents, which a caller's loss may make 0 · inf."""

    def one(array: Array) -> Array:
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            return array
        here = counted.reshape((-1, *(1,) * (array.ndim - 1)))
        return _guard(harmless(array, here), here)

    return jax.tree.map(one, arrays)


@jax.custom_jvp
def _guard(array, counted):
    return array


@_guard.defjvp
def _guard_jvp(primals, tangents):
    # The solution of t = step: JAX takes what it is given for it, and for its transpose.
    def finite(_: Any, step: Array) -> Array:
        return harmless(step, primals[1])

    return _guard(*primals), lax.custom_linear_solve(lambda t: t, tangents[0], finite, finite)


class _Floating(NamedTuple):
    """The floating leaves of a pytree by their number, and the pytree of others in their place, or of gradients."""

    leaves: dict[int, Array]
    of: Callable[[dict[int, Array]], Any]
    gradients: Callable[[dict[int, Array]], Any]


def _floating(tree: Any) -> _Floating:
    leaves, structure = jax.tree.flatten(tree)
    every = dict(enumerate(leaves))
    return _Floating(
        {i: leaf for i, leaf in every.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)},
        lambda moved: jax.tree.unflatten(structure, (every | moved).values()),
        lambda moved: jax.tree.unflatten(structure, [moved.get(i) for i in every]),
    )


def _scaled(g: Array, gradients: Any, types: Any) -> Any:
    """g · gradient in the type of the argument; the scalar comes before the cast, which might lose a small gradient."""

    def one(gradient: Any, kind: Any) -> Any:
        return None if gradient is None else (g * gradient.astype(g.dtype)).astype(kind.dtype)

    return jax.tree.map(one, gradients, types, is_leaf=lambda gradient: gradient is None)


# The numbers of each row, a block at a time. Their cotangents come later, so that the pull-back computes the logits
# again: four products in all, the logits twice.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows_of_blocks(static, parameters, samples):
    return _rows_forward(static, parameters, samples)[0]


def _rows_forward(static, parameters, samples):
    def step(carry: None, block: Samples) -> tuple[None, Any]:
        x = static.layer.logits(block.harmless_hidden, parameters)
        return carry, static.page.values(static.classes, block_at(static, parameters, block, x))

    _, (row, sums) = blocks.walk(step, None, samples, samples.occupied)
    return row, (parameters, samples, sums)


def _rows_backward(static, residuals, cotangents):
    parameters, samples, sums = residuals
    layer, classes = static.layer, static.classes
    cotangents = classes.whole(cotangents)

    @partial(jax.checkpoint, prevent_cse=False)  # its transpose, too, makes the slopes of a block where it needs them
    def step(gradients: Any, of_block: Any) -> tuple[Any, Any]:
        samples, sums, cotangents = of_block
        hidden = samples.harmless_hidden
        x = layer.logits(hidden, parameters)
        pulled = static.page.pulled_back(classes, block_at(static, parameters, samples, x), sums, cotangents)
        du = layer.uncapped(pulled.logits, x)
        dhidden = layer.hidden_gradient(du, parameters.kernel).astype(hidden.dtype)
        return added(layer, gradients, du, hidden), (dhidden, pulled.target)

    gradients = no_gradients(layer, parameters, samples)
    every = samples._replace(occupied=None), sums, cotangents
    gradients, (dhidden, dtarget) = blocks.walk(step, gradients, every, samples.occupied)
    gradients, floating = as_kept(layer, *gradients), parameters._replace(exists=None, teacher=None)
    dparameters = jax.tree.map(lambda d, a: d.astype(a.dtype), gradients, floating)
    return dparameters, Samples(dhidden, dtarget, None)


_rows_of_blocks.defvjp(one_operation(_rows_forward), _rows_backward)
rows_of_blocks = in_every_mode(_rows_of_blocks)
"""`rows_of_blocks(static, parameters, samples)`: the numbers of each row, `[blocks, rows]`."""


def rows_of(static: Static, of_blocks: tuple[Parameters, Samples], shape: Shape) -> Any:
    """The same in the shape of the samples."""
    return blocks.merge(rows_of_blocks(static, *of_blocks), shape)
