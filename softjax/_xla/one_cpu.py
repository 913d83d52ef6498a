"""Code that only XLA on a single CPU device needs. Each function equals the plain line that its docstring names."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from softjax._args import arrays
from softjax._xla.barrier import barrier

# The rows of a block: on one CPU a few at a time, so that what is made of a row on the way stays in cache.


def scan_rows(classes: Any, function: Callable[..., Any], block: Any, *beside: Any) -> tuple[Any, Any]:
    """`function(logits, block, *beside)`, to what takes the place of the logits, or None, and to numbers of the rows.

    What stands beside is pytrees of `[rows, …]`, or of `[1, …]` for all rows.
    """
    x, beside = block.logits, (block._replace(logits=None), *beside)
    each = _rows_per_step(x) if classes.axis == -1 else None
    if each is None:
        return function(x, *beside)
    rows, (leaves, tree) = x.shape[0], jax.tree.flatten(beside)
    cut = {i: a.reshape((rows // each, each, *a.shape[1:])) for i, a in enumerate(leaves) if a.shape[0] == rows}

    def step(x: Array, part: tuple[Array, dict[int, Array]]) -> tuple[Array, Any]:
        i, here = part
        of = barrier(lax.dynamic_index_in_dim(x, i, keepdims=False))  # or each pass might copy them anew
        new, numbers = function(of, *jax.tree.unflatten(tree, (dict(enumerate(leaves)) | here).values()))
        return x if new is None else lax.dynamic_update_index_in_dim(x, new, i, 0), numbers

    x, numbers = lax.scan(step, x.reshape((rows // each, each, -1)), (jnp.arange(rows // each), cut))
    return x.reshape((rows, -1)), jax.tree.map(lambda a: a.reshape((rows, *a.shape[2:])), numbers)


def in_cache(values: Callable[[Any, Any], Any], classes: Any, block: Any) -> Any:
    """`values(classes, block)`, for one CPU and several passes over a block."""

    def of(x: Array, block: Any) -> tuple[None, Any]:
        return None, values(classes, block._replace(logits=x))

    return scan_rows(classes, of, block)[1]


_CACHE_BYTES = 2**21  # bytes of them, in which both cores find work


def _rows_per_step(x: Array) -> int | None:
    """How many rows of a matrix to take at a time, a divisor of their number, or None to take all at once."""
    fixed = all(isinstance(length, int) for length in x.shape)  # jax.export may leave a length open
    if not (fixed and x.ndim == 2 and x.dtype.itemsize >= 4 and on_one_cpu(x)):
        return None
    most = max(2, _CACHE_BYTES // max(x.shape[1] * x.dtype.itemsize, 1))
    # of two layouts of an axis of one row XLA might choose the other, and copy the block
    each = max((n for n in range(2, min(most, x.shape[0]) + 1) if x.shape[0] % n == 0), default=0)
    return each if x.shape[0] >= 4 * most and 4 * each >= most else None


def on_one_cpu(x: Array) -> bool:
    """Whether `x` lies as a whole on the only device, a CPU.

    Under a mesh, even of one device, shardings are types (Explicit axes) or out of sight (Auto axes): never there.
    """
    return _on_one_device(x, "cpu")


def on_one_gpu(x: Array) -> bool:
    """The same of a GPU."""
    return _on_one_device(x, "gpu")


def _on_one_device(x: Array, platform: str) -> bool:
    meshless = jax.typeof(x).sharding.mesh.empty and jax.sharding.get_abstract_mesh().empty
    return meshless and jax.default_backend() == platform and jax.device_count() == 1


@jax.custom_jvp
def widen(x: Array) -> Array:
    """`x` in the type that it is accumulated in, exactly.

    bfloat16 is the upper half of float32. On a CPU without bfloat16 instructions XLA widens a bfloat16 array as a
    whole before it computes anything with it, also one that a loop reads piece by piece; bits shifted into place by
    integer arithmetic stay within the loop or fusion that needs them.
    """
    if x.dtype == jnp.bfloat16 and on_one_cpu(x):
        return _from_bits(_bits(x))
    return x.astype(arrays.accumulation_dtype(x))


@widen.defjvp
def _widen_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return widen(*primals), tangents[0].astype(arrays.accumulation_dtype(*primals))


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.uint16)


def _from_bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def count_true(condition: Bool[Array, "..."], axis: int) -> Integer[Array, "..."]:
    """How often it holds. XLA on a CPU adds float32 in half the time of int32, exactly to 2²⁴."""
    length = condition.shape[axis]
    exact = isinstance(length, int) and length <= 2**24 and on_one_cpu(condition)
    dtype = jnp.float32 if exact else jnp.int32
    return jnp.sum(condition, axis, keepdims=True, dtype=dtype).astype(jnp.int32)


_REDUCE_BYTES = 2**20  # bytes of logits taken at a time; widened they stay in cache


def rows_per_reduction(x: Array, axis: int) -> int | None:
    """How many rows to sum at a time, or None to sum all at once.

    XLA on a CPU makes a float32 copy of a 16-bit array as a whole before it reduces it, and its reduction of a row of
    more than 32768 classes is five times slower. Blocks of a few rows have neither fault; `examples/benchmark.py`
    measures what is gained.
    """
    fixed = all(isinstance(length, int) for length in x.shape)  # jax.export may leave a length open
    if not (fixed and axis == -1 and on_one_cpu(x)):
        return None
    rows = max(1, _REDUCE_BYTES // max(x.shape[-1] * x.dtype.itemsize, 1))
    long = x.dtype.itemsize <= 2 or x.shape[-1] > 32768
    return rows if long and x.size >= max(4 * rows * x.shape[-1], 1) else None


def reduce_in_steps(function: Callable[..., Any], rows: int, x: Array, *beside: Array) -> Any:
    """`function(x, *beside)`, numbers of each row, taken a few rows at a time."""
    shape, samples = x.shape, x.size // x.shape[-1]
    flat = [a.reshape(samples, a.shape[-1]) for a in (x, *beside)]
    bfloat16 = x.dtype == jnp.bfloat16
    flat[0] = _bits(flat[0]) if bfloat16 else flat[0]

    def of(start: Array) -> Any:
        # The barrier keeps the conversion of the whole array from being moved out of the loop.
        block, *rest = lax.optimization_barrier([lax.dynamic_slice_in_dim(a, start, rows) for a in flat])
        return function(_from_bits(block) if bfloat16 else block, *rest)

    def step(numbers: Any, start: Array) -> tuple[Any, None]:
        start = jnp.minimum(start, samples - rows)  # the last block is shifted back over rows already done
        return jax.tree.map(
            partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0), numbers, of(start)
        ), None

    like = jax.eval_shape(of, jax.ShapeDtypeStruct((), jnp.int32))
    empty = jax.tree.map(lambda a: jnp.zeros((samples, *a.shape[1:]), a.dtype), like)
    numbers, _ = lax.scan(step, empty, jnp.arange(0, samples, rows, dtype=jnp.int32))
    return jax.tree.map(lambda a: a.reshape((*shape[:-1], *a.shape[1:])), numbers)


def cond_any(condition: Bool[Array, "*rows"], function: Callable[[], Array], otherwise: Array, work: Any) -> Array:
    """`function()`, which is `otherwise` where the condition does not hold, at the price of asking if it holds at all.

    Asking is worth it on a CPU alone, and there for a function of many numbers: `work` of them.
    """
    if not isinstance(work, int) or work < 2**18 or not on_one_cpu(otherwise):  # jax.export may leave it open
        return function()
    return lax.cond(jnp.any(condition), function, lambda: otherwise)


_TILE_BYTES = 2**23  # bytes of a sum that is added to at a time: they stay in cache


def add_in_tiles(total: Array, function: Callable[[Array], Array], x: Array) -> Array:
    """`total + function(x)`, for a function whose result has a row for each column of `x`, a few of them at a time.

    A product of the size of `total` would go to memory and come back to be added.
    """
    rows, columns = total.shape
    tile = max(1, _TILE_BYTES // max(columns * total.dtype.itemsize, 1))
    if not on_one_cpu(x) or tile >= rows:
        return total + function(x)

    def add(total: Array, begin: Array) -> tuple[Array, None]:
        start = jnp.minimum(begin, rows - tile)  # the last tile is shifted back over columns already done
        part = lax.dynamic_slice_in_dim(x, start, tile, 1)
        if rows % tile:
            part = jnp.where(jnp.arange(tile, dtype=begin.dtype)[None] + start >= begin, part, 0)
        old = lax.dynamic_slice_in_dim(total, start, tile)
        return lax.dynamic_update_slice_in_dim(total, old + function(part), start, 0), None

    return lax.scan(add, total, jnp.arange(0, rows, tile, dtype=jnp.int32))[0]


def unit_weights(loss: Float[Array, " rows"]) -> Float[Array, " rows"] | None:
    """None, which is a weight of 1 for each row. On one CPU ones that depend on the row, 1 + eps where its loss is NaN.

    Else the cotangent of a row's loss is a constant, and XLA would keep an array of the size of the logits for it.
    """
    one = jnp.ones(len(loss), loss.dtype)
    ones = jnp.where(jnp.isnan(loss), one + jnp.finfo(loss.dtype).eps, one)
    return lax.stop_gradient(ones) if on_one_cpu(loss) else None
