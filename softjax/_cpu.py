"""What is done only for XLA on one CPU, or one GPU: speed depends on it, meaning never. Each beside the plain line."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Integer


def on_one_cpu(x: Array) -> bool:
    """Whether `x` lies as a whole on the only device, a CPU.

    Under a mesh, even of one device, shardings are types (Explicit axes) or out of sight (Auto axes): never there.
    """
    return _on_one(x, "cpu")


def on_one_gpu(x: Array) -> bool:
    """The same of a GPU."""
    return _on_one(x, "gpu")


def _on_one(x: Array, platform: str) -> bool:
    meshless = jax.typeof(x).sharding.mesh.empty and jax.sharding.get_abstract_mesh().empty
    return meshless and jax.default_backend() == platform and jax.device_count() == 1


def wide(*arrays: Array) -> Any:
    """The type that numbers are accumulated in: float64 if any of the arrays is, else float32."""
    return jnp.float64 if any(a.dtype == jnp.float64 for a in arrays) else jnp.float32


@jax.custom_jvp
def widen(x: Array) -> Array:
    """`x` in the type that it is accumulated in, exactly.

    bfloat16 is the upper half of float32. On a CPU without bfloat16 instructions XLA widens a bfloat16 array as a
    whole before it computes anything with it, also one that a loop reads piece by piece; bits shifted into place by
    integer arithmetic stay within the loop or fusion that needs them.
    """
    if x.dtype == jnp.bfloat16 and on_one_cpu(x):
        return _from_bits(_bits(x))
    return x.astype(wide(x))


@widen.defjvp
def _widen_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return widen(*primals), tangents[0].astype(wide(*primals))


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.uint16)


def _from_bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def picked(x: Float[Array, "..."], local: Integer[Array, "..."], axis: int) -> Array:
    """x at the classes `local` of each row, 0 where one lies elsewhere. A gather reads one entry of a row for each."""
    if _gathered(x, local, axis) or (on_one_gpu(x) and x.shape[axis] > 0):
        inside = (local >= 0) & (local < x.shape[axis])
        entry = jnp.take_along_axis(x, jnp.clip(local, 0, x.shape[axis] - 1), axis, mode="clip")
        return jnp.where(inside, entry, 0)
    return jnp.sum(jnp.where(_hits(x, local, axis), jnp.expand_dims(x, axis - 1), 0), axis)


def added_at(
    x: Float[Array, "..."], local: Integer[Array, "..."], axis: int, number: Float[Array, "..."]
) -> Float[Array, "..."]:
    """x, with `number` added at the classes `local` of each row, that of equal ones together."""
    if not _gathered(x, local, axis):
        return x + jnp.sum(jnp.where(_hits(x, local, axis), jnp.expand_dims(number, axis), 0), axis - 1)
    outside = x.shape[axis]  # where a negative index would count from the end
    ordered = [jnp.moveaxis(a, axis, -1) for a in (x, jnp.where(local < 0, outside, local), number)]
    rows = math.prod(ordered[0].shape[:-1])
    flat = [a.reshape((rows, a.shape[-1])) for a in ordered]
    added = jax.vmap(lambda row, ids, numbers: row.at[ids].add(numbers, mode="drop"))(*flat)
    return jnp.moveaxis(added.reshape(ordered[0].shape), -1, axis)


def count(condition: Bool[Array, "..."], axis: int) -> Integer[Array, "..."]:
    """How often it holds. XLA on a CPU adds float32 in half the time of int32, exactly to 2²⁴."""
    length = condition.shape[axis]
    exact = isinstance(length, int) and length <= 2**24 and on_one_cpu(condition)
    dtype = jnp.float32 if exact else jnp.int32
    return jnp.sum(condition, axis, keepdims=True, dtype=dtype).astype(jnp.int32)


_FEW = 8


def _gathered(x: Array, local: Array, axis: int) -> bool:
    """Whether to gather and scatter. Elsewhere classes are compared: it fuses, and stays local where they are split."""
    many = local.shape[axis] > _FEW and AxisType.Explicit not in jax.typeof(x).sharding.mesh.axis_types
    return x.shape[axis] > 0 and (on_one_cpu(x) or many)


def _hits(x: Array, local: Array, axis: int) -> Bool[Array, "..."]:
    """Which class is which of the `local` ones, these along an axis before that of the classes."""
    return jnp.expand_dims(class_ids(x, axis, local), axis - 1) == jnp.expand_dims(local, axis)


def class_ids(x: Array, axis: int, tied: Array) -> Integer[Array, "..."]:
    """0, 1, 2 … along `axis`, to be used beside `tied`; under Explicit axes in the sharding of `x`.

    XLA takes what is constant out of the loop that it stands in, and would keep an array of the size of the logits for
    it. So on one CPU it is a vector, which a barrier ties to `tied`.
    """
    if on_one_cpu(x):
        vector, _ = lax.optimization_barrier((jnp.arange(x.shape[axis], dtype=jnp.int32), tied))
        return jnp.expand_dims(vector, [i for i in range(x.ndim) if i != axis % x.ndim])
    sharding = jax.typeof(x).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim, out_sharding=sharding if explicit else None)


_BLOCK = 2**20  # bytes of logits taken at a time; widened they stay in cache


def rows_in_cache(x: Array, axis: int) -> int | None:
    """How many rows to sum at a time, or None to sum all at once.

    XLA on a CPU makes a float32 copy of a 16-bit array as a whole before it reduces it, and its reduction of a row of
    more than 32768 classes is five times slower. Blocks of a few rows have neither fault; `examples/benchmark.py`
    measures what is gained.
    """
    fixed = all(isinstance(length, int) for length in x.shape)  # jax.export may leave a length open
    if not (fixed and axis == -1 and on_one_cpu(x)):
        return None
    rows = max(1, _BLOCK // max(x.shape[-1] * x.dtype.itemsize, 1))
    long = x.dtype.itemsize <= 2 or x.shape[-1] > 32768
    return rows if long and x.size >= max(4 * rows * x.shape[-1], 1) else None


def over_rows(function: Callable[..., Any], rows: int, x: Array, *beside: Array) -> Any:
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


def if_any(condition: Bool[Array, "*rows"], function: Callable[[], Array], otherwise: Array, work: Any) -> Array:
    """`function()`, which is `otherwise` where the condition does not hold, at the price of asking if it holds at all.

    Asking is worth it on a CPU alone, and there for a function of many numbers: `work` of them.
    """
    if not isinstance(work, int) or work < 2**18 or not on_one_cpu(otherwise):  # jax.export may leave it open
        return function()
    return lax.cond(jnp.any(condition), function, lambda: otherwise)


def gradient_once(x: Float[Array, "..."]) -> Array:
    """`x`, whose gradient is computed once, where a program uses it more than once.

    For a product of [batch, positions, features] XLA on a CPU transposes the gradient of its result. It would rather
    compute that twice than copy it, from exponentials that it keeps for the second time; barriers are gone by then. It
    does not compute a scatter twice. This one adds −0, to two numbers, as that to one number does not stay a scatter. A
    bfloat16 array it would widen as a whole. In JAX a solver is what has a transpose of one's own under `vmap`, too.
    """
    fixed = all(isinstance(length, int) for length in x.shape)  # jax.export may leave a length open
    large = fixed and x.ndim > 2 and x.size >= 2**18 and x.dtype != jnp.bfloat16
    return lax.custom_linear_solve(lambda x: x, x, _left_alone, _scattered) if large and on_one_cpu(x) else x


def _left_alone(_: Any, x: Array) -> Array:
    return x


def _scattered(_: Any, gradient: Array) -> Array:
    return gradient.at[(jnp.zeros(2, jnp.int32),) * gradient.ndim].add(-0.0)


_TILE = 2**23  # bytes of a sum that is added to at a time: they stay in cache


def add_in_tiles(total: Array, function: Callable[[Array], Array], x: Array) -> Array:
    """`total + function(x)`, for a function whose result has a row for each column of `x`, a few of them at a time.

    A product of the size of `total` would go to memory and come back to be added.
    """
    rows, columns = total.shape
    tile = max(1, _TILE // max(columns * total.dtype.itemsize, 1))
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


def weights_of_one(loss: Float[Array, " rows"]) -> Float[Array, " rows"] | None:
    """None, which is a weight of 1 for each row. On one CPU ones that depend on the row, 1 + eps where its loss is NaN.

    Else the cotangent of a row's loss is a constant, and XLA would keep an array of the size of the logits for it.
    """
    one = jnp.ones(len(loss), loss.dtype)
    ones = jnp.where(jnp.isnan(loss), one + jnp.finfo(loss.dtype).eps, one)
    return lax.stop_gradient(ones) if on_one_cpu(loss) else None


def is_transpose(matrix: Array) -> bool:
    """Whether the program being traced makes `matrix` by transposing another, as in `embedding.T`.

    A loop in XLA wants its operands row by row: it would copy the transpose, but takes the other matrix as it is. JAX
    has no public word for where a tracer comes from. Where it does not tell, the answer is no, and the copy is made.
    """
    tracer: Any = matrix
    while isinstance(tracer, Tracer):
        equation = getattr(tracer, "parent", None)
        if equation is None:
            tracer = getattr(tracer, "primal", None)
        elif equation.primitive.name == "convert_element_type":
            tracer = equation.in_tracers[0]
        else:
            return equation.primitive.name == "transpose"
    return False
