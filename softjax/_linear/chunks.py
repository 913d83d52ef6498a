"""Chunks of samples: how many samples a chunk holds, cutting and merging, and the scan over all chunks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softjax._args.types import Array, Bool, Integer, Length, Shape
from softjax._mesh.axes import AxisNames, cast_to_varying
from softjax._xla.barrier import varying_axes


def default_chunk_size(
    samples: Length, features: int, classes: int, itemsize: int, platform: str, packed: bool = False
) -> int:
    """The samples of a chunk, for logits of `itemsize` bytes; `packed` if chunks of ignored samples are skipped.

    1. A single chunk, if the logits of all samples are at most half as large as the kernel. More chunks would cost more
       than they save, since each adds to the kernel gradient.
    2. Otherwise chunks of 16 MiB on a CPU. On other platforms a quarter of all logits, but 512 MiB to 2 GiB. For each
       kernel entry a chunk reads and writes 8 bytes of the accumulator, and each of its samples takes 6 operations. So
       a chunk has at least 512 samples on a CPU (256 below 1024 samples), and 1024 on other platforms.
    3. All chunks are about equal, and a multiple of 8 samples (CPU) or 128.
    4. Packed samples make at least 10 chunks, if these have 256 samples each. The last chunk that is computed is half
       empty on average, and with 10 chunks that is 1/20 of all samples. More and smaller chunks take longer where all
       samples are active.

    If the number of samples is symbolic, as in `jax.export`, rule 2 for few samples applies.

    `examples/benchmark.py --part chunks` measures the choice on a CPU: 512 samples took 0.95–1.01× the time of the
    unfused baseline at 2048 × 512 × 32768, 1024 × 512 × 131072 and 2000 × 512 × 50257, 256 samples 0.99–1.08×, and 1024
    samples 1.00–1.07× with nearly twice the memory. `examples/mesh_cost.py --topology` compiles the choice for TPUs.
    """
    on_cpu, row_bytes = platform == "cpu", max(classes * itemsize, 1)
    many = isinstance(samples, int) and samples >= 1024
    minimum, multiple = (512 if many else 256, 8) if on_cpu else (1024, 128)
    quarter = samples * row_bytes // 4 if isinstance(samples, int) else 0
    chunk_bytes = 2**24 if on_cpu else min(max(quarter, 2**29), 2**31)
    rows = max(minimum, chunk_bytes // row_bytes)
    if not isinstance(samples, int):
        return rows // multiple * multiple
    single = rows >= samples or 2 * samples <= features
    chunks = 1 if single else math.ceil(samples / rows)
    if packed:
        chunks = max(chunks, min(10, samples // 256))
    if chunks == 1:
        return max(samples, 1)
    return min(samples, multiple * math.ceil(math.ceil(samples / chunks) / multiple))


def padding_for_tensor_cores(classes: Length, platform: str) -> int:
    """How many masked classes to append to the logits of a chunk, so that a GPU uses its fast matmuls.

    Tensor cores need rows that start at a multiple of 16 bytes, and full tiles. The padding costs a copy of the kernel.
    For 8192 samples, 2048 features and the 50,257 classes of GPT-2 in bfloat16, an H200 then takes 9.4 ms, 0.37× the
    time of the three matmuls alone: `examples/benchmark.py --part linear --config configs/benchmark-gpu.toml`.
    """
    aligned = not isinstance(classes, int) or classes % 8 == 0
    return 0 if aligned or classes < 1024 or platform not in _GPUS else -classes % 64


_GPUS = ("gpu", "cuda", "rocm")


def cap_chunk_size(rows: int, samples: Length) -> int:
    """A chunk holds at most all samples, if their number is known."""
    return min(rows, max(samples, 1)) if isinstance(samples, int) else rows


def chunks_are_full(samples: Length, rows: int) -> bool:
    """Whether the samples are known to fill all chunks."""
    return isinstance(samples, int) and samples % rows == 0 and samples > 0


def num_chunks(samples: Length, rows: int) -> Length:
    """The number of chunks; at least 1."""
    return max(1, -(-samples // rows)) if isinstance(samples, int) else -(-samples // rows)


def split_into_chunks(arrays: Any, samples: Length, rows: int) -> Any:
    """Each `[samples, …]` as `[chunks, rows, …]`, padded with the last sample, or with zeros if there is none."""
    known, chunks = isinstance(samples, int), num_chunks(samples, rows)

    def split(array: Array) -> Array:
        if not chunks_are_full(samples, rows):
            # A caller's row loss also sees the padding: the last sample is safer for it than zeros.
            last = jnp.zeros((1, *array.shape[1:]), array.dtype) if known and samples == 0 else array[-1:]
            padding = jnp.broadcast_to(last, (chunks * rows - samples, *array.shape[1:]))
            array = jnp.concatenate([array, padding])
        return array.reshape((chunks, rows, *array.shape[1:]))

    return jax.tree.map(split, arrays)


def merge_chunks(arrays: Any, shape: Shape) -> Any:
    """Each `[chunks, rows, …]` as `[*shape, …]`, without the padding of `split_into_chunks`."""

    def merge(array: Array) -> Array:
        flat = array.reshape((array.shape[0] * array.shape[1], *array.shape[2:]))
        return flat[: math.prod(shape)].reshape(shape + array.shape[2:])

    return jax.tree.map(merge, arrays)


class Packing(NamedTuple):
    """Samples in the order of the rows of all chunks: the active ones first, each group in the caller's order."""

    sample: Integer[Array, "chunks rows"]
    """The sample of each row. Rows that pad the last chunk repeat a sample."""
    row: Integer[Array, " samples"] | None
    """The row of each sample, counted over all chunks."""

    def take(self, arrays: Any) -> Any:
        """Each `[samples, …]` at the sample of each row."""
        return jax.tree.map(lambda array: array.at[self.sample].get(mode="promise_in_bounds"), arrays)

    def restore(self, arrays: Any) -> Any:
        """Each `[chunks, rows, …]` as `[samples, …]`, in the caller's order."""

        def restore(array: Array) -> Array:
            flat = array.reshape((array.shape[0] * array.shape[1], *array.shape[2:]))
            return flat.at[self.row].get(mode="promise_in_bounds", unique_indices=True)

        return jax.tree.map(restore, arrays)


def pack(active: Bool[Array, " samples"], rows: int) -> Packing:
    """The packing into chunks of `rows` that puts active samples first."""
    order = jnp.argsort(~active, stable=True)
    return Packing(split_into_chunks(order, active.shape[0], rows), jnp.argsort(order))


def scan_chunks(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    chunks: Any,
    active: Bool[Array, " chunks"] | None,
    fill: int = 0,
) -> tuple[Any, Any]:
    """`lax.scan` of `step` over the chunks. A chunk that is not `active` keeps the carry and gives arrays of `fill`."""
    if jax.tree.leaves(chunks)[0].shape[0] == 1:
        carry, out = step(carry, jax.tree.map(lambda array: array[0], chunks))
        return carry, jax.tree.map(lambda array: array[None], out)
    if active is None:
        return lax.scan(step, carry, chunks)

    # Without the checkpoint, the derivative of `cond` would save what each chunk reads, such as the kernel, per chunk.
    @partial(jax.checkpoint, prevent_cse=False)
    def step_if_active(carry: Any, chunk_and_flag: tuple[Any, Any]) -> tuple[Any, Any]:
        chunk, is_active = chunk_and_flag
        _, out = jax.eval_shape(step, carry, chunk)
        return lax.cond(is_active, step, lambda carry, _: (carry, _filled(out, fill)), carry, chunk)

    return lax.scan(step_if_active, carry, (chunks, active))


def compute_if(active: Bool[Array, ""] | None, function: Callable[[], Any]) -> Any:
    """`function()`, and zeros in its place if the chunk is not `active`; None for active."""
    if active is None:
        return function()
    out = jax.eval_shape(function)
    return lax.cond(active, function, lambda: _filled(out, 0))


def _filled(shapes: Any, fill: int) -> Any:
    """Arrays of these shapes and types, filled with a number."""
    return jax.tree.map(lambda a: cast_to_varying(varying_axes(a), jnp.full(a.shape, fill, a.dtype)), shapes)


def active_chunks(weights: Array, names: AxisNames = ()) -> Bool[Array, " chunks"]:
    """Which chunks of `[chunks, rows]` weights hold a weight ≠ 0; all of them where the weights are differentiated.

    A sample of weight 0 adds nothing to the sum, but its loss is the derivative with respect to its weight. A chunk is
    active on all devices along the mesh axes `names` if it is on one: they meet in the collectives of a chunk.
    """
    active = _largest_weight(weights) != 0  # NaN is active, too
    return lax.pmax(active.astype(jnp.int32), names) > 0 if names else active


@jax.custom_jvp
def _largest_weight(weights: Array) -> Array:
    return _largest_of_chunk(weights)


@_largest_weight.defjvp
def _largest_weight_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    largest = _largest_weight(*primals)
    positive = jnp.where(largest > 0, largest, 1)
    return positive, jnp.zeros_like(positive)


@jax.custom_batching.custom_vmap
def _largest_of_chunk(weights: Array) -> Array:
    return jnp.max(jnp.abs(weights), axis=1, initial=0)


@_largest_of_chunk.def_vmap
def _largest_of_all_examples(_: int, __: list[bool], weights: Array) -> tuple[Array, bool]:
    # One answer for all examples: with one each, `vmap` would turn the `cond` into a `select` that computes both.
    return _largest_of_chunk(jnp.max(jnp.abs(weights), axis=0, initial=0)), False
