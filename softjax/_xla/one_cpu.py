"""Code that only XLA on a single CPU device needs.

Each function equals the plain line that its docstring names; an accelerator runs that line. The costs are those of
jaxlib 0.10.2.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from softjax._args import arrays
from softjax._xla.barrier import barrier

# Is it one CPU device?


def on_one_cpu(x: Array) -> bool:
    """Whether `x` is unsharded on the only device of the process, a CPU, and no mesh is in context.

    Under a mesh, even of one device, the answer is False: there the types hold shardings (Explicit axes), or shardings
    cannot be seen while tracing (Auto axes).
    """
    return _on_one_device(x, "cpu")


def on_one_gpu(x: Array) -> bool:
    """The same for a GPU."""
    return _on_one_device(x, "gpu")


def _on_one_device(x: Array, platform: str) -> bool:
    meshless = jax.typeof(x).sharding.mesh.empty and jax.sharding.get_abstract_mesh().empty
    return meshless and jax.default_backend() == platform and jax.device_count() == 1


def has_static_shape(x: Array) -> bool:
    """Whether every length is known while tracing: `jax.export` may leave some symbolic."""
    return all(isinstance(length, int) for length in x.shape)


# Wider dtypes


@jax.custom_jvp
def widen(x: Array) -> Array:
    """`x` in the dtype in which it is accumulated: float32 or wider.

    Equals: `x.astype(arrays.accumulation_dtype(x))`.

    On a CPU without bfloat16 instructions, XLA converts a whole bfloat16 array to float32 before it computes with it,
    even if a loop reads it in slices. This costs 4 bytes for each logit. But bfloat16 is the upper half of float32: an
    integer shift of its bits widens it, and XLA fuses the shift into the loop that reads it.
    """
    if x.dtype == jnp.bfloat16 and on_one_cpu(x):
        return _from_bits(_bits(x))
    return x.astype(arrays.accumulation_dtype(x))


@widen.defjvp
def _widen_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return widen(*primals), tangents[0].astype(arrays.accumulation_dtype(*primals))


def _bits(x: Array) -> Array:
    """The bits of bfloat16 numbers, as uint16."""
    return lax.bitcast_convert_type(x, jnp.uint16)


def _from_bits(bits: Array) -> Array:
    """The float32 numbers with these upper 16 bits."""
    return lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)


# Reductions


def count_true(condition: Bool[Array, "..."], axis: int) -> Integer[Array, "..."]:
    """How many entries along the axis are True; the axis stays, at length 1.

    Equals: `jnp.sum(condition, axis, keepdims=True, dtype=jnp.int32)`.

    XLA on a CPU takes twice as long to add int32 as to add float32. Sums of float32 ones are exact up to 2²⁴.
    """
    length = condition.shape[axis]
    exact_in_float32 = isinstance(length, int) and length <= 2**24 and on_one_cpu(condition)
    dtype = jnp.float32 if exact_in_float32 else jnp.int32
    return jnp.sum(condition, axis, keepdims=True, dtype=dtype).astype(jnp.int32)


_REDUCE_BYTES = 2**20
"""The bytes of logits in one step of `reduce_in_steps`. Widened to float32, they still stay in cache."""


def rows_per_reduction(x: Array, axis: int) -> int | None:
    """How many rows of `x` `reduce_in_steps` should reduce at a time; None to reduce all rows at once.

    XLA on a CPU converts a whole 16-bit array to float32 before it reduces it. In rows of more than 32768 classes,
    the reduction takes five times as long. Steps of a few rows avoid both; `examples/benchmark.py` measures the gain.
    """
    if not (has_static_shape(x) and axis == -1 and on_one_cpu(x)):
        return None
    rows = max(1, _REDUCE_BYTES // max(x.shape[-1] * x.dtype.itemsize, 1))
    slow = x.dtype.itemsize <= 2 or x.shape[-1] > 32768
    return rows if slow and x.size >= max(4 * rows * x.shape[-1], 1) else None


def reduce_in_steps(function: Callable[..., Any], rows: int, x: Array, *row_arrays: Array) -> Any:
    """`function(x, *row_arrays)`, values of each row, for `rows` rows at a time.

    Equals: `function(x, *row_arrays)`.

    Arrays and results are `[*samples, n]`, with any length n. `rows_per_reduction` says when to use this function.
    """
    shape, samples = x.shape, x.size // x.shape[-1]
    flat = [a.reshape(samples, a.shape[-1]) for a in (x, *row_arrays)]
    bfloat16 = x.dtype == jnp.bfloat16
    flat[0] = _bits(flat[0]) if bfloat16 else flat[0]

    def values_from(start: Array) -> Any:
        # Without the barrier XLA moves the conversion to float32 out of the loop, and converts the whole array.
        x, *rest = lax.optimization_barrier([lax.dynamic_slice_in_dim(a, start, rows) for a in flat])
        return function(_from_bits(x) if bfloat16 else x, *rest)

    def step(values: Any, start: Array) -> tuple[Any, None]:
        start = jnp.minimum(start, samples - rows)  # the last step starts earlier, and repeats rows already done
        write = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(write, values, values_from(start)), None

    step_shapes = jax.eval_shape(values_from, jax.ShapeDtypeStruct((), jnp.int32))
    zeros = jax.tree.map(lambda a: jnp.zeros((samples, *a.shape[1:]), a.dtype), step_shapes)
    values, _ = lax.scan(step, zeros, jnp.arange(0, samples, rows, dtype=jnp.int32))
    return jax.tree.map(lambda a: a.reshape((*shape[:-1], *a.shape[1:])), values)


def cond_any(condition: Bool[Array, "*rows"], function: Callable[[], Array], otherwise: Array, work: Any) -> Array:
    """`function()`, or `otherwise` if the condition holds in no row.

    Equals: `function()`. It must equal `otherwise` in each row where the condition does not hold.

    XLA runs both branches of a `where`. A `cond` skips the function's work if no row needs it. The test pays only on a
    CPU, and for a function of many numbers.

    Args:
        work: how many numbers the function reads.
    """
    if not isinstance(work, int) or work < 2**18 or not on_one_cpu(otherwise):  # `jax.export` may leave it symbolic
        return function()
    return lax.cond(jnp.any(condition), function, lambda: otherwise)


# Rows in cache

_CACHE_BYTES = 2**21
"""The bytes of logits in one step of `scan_rows`: enough work for two cores, and they stay in cache."""


def scan_rows(function: Callable[..., Any], block: Any, *row_arrays: Any) -> tuple[Any, Any]:
    """`function(logits, block, *row_arrays)`, for a few rows at a time.

    Equals: `function(block.logits, block._replace(logits=None), *row_arrays)`.

    A function that passes several times over a block's logits makes XLA on a CPU write intermediate arrays of the
    block's size to memory. The arrays of a few rows stay in cache.

    Args:
        function: returns what replaces the logits (None for nothing), and a pytree of values of each row.
        block: the `Block`. If its classes are not the last axis, all rows are taken at once.
        row_arrays: pytrees of arrays `[rows, …]`, or `[1, …]` for all rows.
    """
    x, row_inputs = block.logits, (block._replace(logits=None), *row_arrays)
    step_rows = _rows_per_step(block)
    if step_rows is None:
        return function(x, *row_inputs)
    rows, (leaves, structure) = x.shape[0], jax.tree.flatten(row_inputs)
    steps = rows // step_rows
    sliced = {i: a.reshape((steps, step_rows, *a.shape[1:])) for i, a in enumerate(leaves) if a.shape[0] == rows}

    def step(x: Array, inputs: tuple[Array, dict[int, Array]]) -> tuple[Array, Any]:
        i, slices = inputs
        logits = barrier(lax.dynamic_index_in_dim(x, i, keepdims=False))  # else XLA may copy them for each pass
        new, values = function(logits, *jax.tree.unflatten(structure, (dict(enumerate(leaves)) | slices).values()))
        return x if new is None else lax.dynamic_update_index_in_dim(x, new, i, 0), values

    x, values = lax.scan(step, x.reshape((steps, step_rows, -1)), (jnp.arange(steps), sliced))
    return x.reshape((rows, -1)), jax.tree.map(lambda a: a.reshape((rows, *a.shape[2:])), values)


def in_cache(forward: Callable[[Any], Any], block: Any) -> Any:
    """`forward(block)`, a pytree of values of each row, for a few rows at a time (`scan_rows`).

    Equals: `forward(block)`.
    """
    if _rows_per_step(block) is None:
        return forward(block)

    def without_new_logits(x: Array, block: Any) -> tuple[None, Any]:
        return None, forward(block._replace(logits=x))

    return scan_rows(without_new_logits, block)[1]


def _rows_per_step(block: Any) -> int | None:
    """How many rows `scan_rows` takes at a time, a divisor of all rows; None to take all at once.

    At least two: for an axis of one row XLA may choose another layout, and copy the block.
    """
    x, is_last = block.logits, block.classes.axis == -1
    if not (is_last and has_static_shape(x) and x.ndim == 2 and x.dtype.itemsize >= 4 and on_one_cpu(x)):
        return None
    most = max(2, _CACHE_BYTES // max(x.shape[1] * x.dtype.itemsize, 1))
    divisors = (n for n in range(2, min(most, x.shape[0]) + 1) if x.shape[0] % n == 0)
    step_rows = max(divisors, default=0)
    return step_rows if x.shape[0] >= 4 * most and 4 * step_rows >= most else None


def barrier_unless_one_cpu(tree: Any, x: Array) -> Any:
    """Row values `tree` of the logits `x`, behind a barrier except on one CPU.

    Equals: `tree`.

    Without a barrier XLA keeps the exponentials of `x` for the next pass. An accelerator writes them to memory and
    reads them again. On one CPU XLA may keep them: `x` is in cache there, and the exponentials take most of the time.
    """
    return tree if on_one_cpu(x) else barrier(tree)


# Tiles of a sum

_TILE_BYTES = 2**23
"""The bytes of a sum that `add_in_tiles` updates at a time: they stay in cache."""


def add_in_tiles(total: Array, function: Callable[[Array], Array], x: Array) -> Array:
    """`total + function(x)`, for a function (a matmul) whose result has a row for each column of `x`.

    Equals: `total + function(x)`.

    XLA on a CPU writes a matmul of the size of `total` to memory, and reads it again to add it. Here the columns of `x`
    are taken a few at a time, so that each tile of the result is added while it is in cache.
    """
    rows, columns = total.shape
    tile = max(1, _TILE_BYTES // max(columns * total.dtype.itemsize, 1))
    if not on_one_cpu(x) or tile >= rows:
        return total + function(x)

    def add_tile(total: Array, begin: Array) -> tuple[Array, None]:
        start = jnp.minimum(begin, rows - tile)  # the last tile starts earlier
        x_tile = lax.dynamic_slice_in_dim(x, start, tile, 1)
        if rows % tile:  # zero the columns that the tile before has added
            x_tile = jnp.where(jnp.arange(tile, dtype=begin.dtype)[None] + start >= begin, x_tile, 0)
        old = lax.dynamic_slice_in_dim(total, start, tile)
        return lax.dynamic_update_slice_in_dim(total, old + function(x_tile), start, 0), None

    return lax.scan(add_tile, total, jnp.arange(0, rows, tile, dtype=jnp.int32))[0]


# Unit weights


def unit_weights(loss: Float[Array, " rows"]) -> Float[Array, " rows"] | None:
    """The weight 1 of each row: None, or on one CPU an array.

    Equals: `None`, which `reduce` takes for 1.

    Without weights the cotangent of each row's loss is a constant. XLA on a CPU broadcasts it, hoists it out of the
    loop over the chunks, and keeps an array of the size of a chunk's logits. So the weights depend on the loss: 1, or
    1 + eps in a row whose loss is NaN.
    """
    one = jnp.ones(len(loss), loss.dtype)
    ones = jnp.where(jnp.isnan(loss), one + jnp.finfo(loss.dtype).eps, one)
    return lax.stop_gradient(ones) if on_one_cpu(loss) else None
