"""Blocks of samples: how many samples a block holds, the way through all of them, and through the rows of one."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from softjax._args.types import Array, Bool, Length, Shape
from softjax._mesh.axes import varying_like


def chunk_size(samples: Length, features: int, classes: int, itemsize: int, platform: str) -> int:
    """The samples of a block whose logits, of `itemsize` bytes, are held at a time.

    1. If the logits of all samples take no more than half the kernel, one block: the sum over blocks that it saves
       would take more.
    2. Else few enough for a block of 16 MiB (CPU), or of a quarter of all logits, of 512 MiB to 2 GiB (other
       platforms). But each block reads and writes the whole kernel gradient, 8 bytes for the 6 operations that a sample
       costs there: at least 512 samples, or 256 where 512 are more than half of them, and 1024 on other platforms.
    3. Evened out, so that the last block is not nearly empty, and rounded up to a multiple of 8 or 128.

    If the number of samples is open, as `jax.export` may leave it: as many as rule 2 gives for few.

    `examples/benchmark.py --part blocks` measures the choice on a CPU. There 512 samples took 0.95 to 1.01 of the plain
    way's time at 2048 × 512 × 32768, 1024 × 512 × 131072 and 2000 × 512 × 50257, 256 samples 0.99 to 1.08, 1024
    samples 1.00 to 1.07 with nearly twice the memory.
    `examples/mesh_cost.py --topology` compiles the choice for TPUs.
    """
    on_cpu, one = platform == "cpu", max(classes * itemsize, 1)
    many = isinstance(samples, int) and samples >= 1024
    least, multiple = (512 if many else 256, 8) if on_cpu else (1024, 128)
    quarter = samples * one // 4 if isinstance(samples, int) else 0
    rows = max(least, (2**24 if on_cpu else min(max(quarter, 2**29), 2**31)) // one)
    if not isinstance(samples, int):
        return rows // multiple * multiple
    if rows >= samples or 2 * samples <= features:
        return max(samples, 1)
    return min(samples, multiple * math.ceil(_even_chunk(samples, rows) / multiple))


def padding_for_tensor_cores(classes: Length, platform: str) -> int:
    """How many classes that do not exist fill up the logits of a block, so that a GPU takes its fast matrix products.

    They want every row to begin at a multiple of 16 bytes, and no tile half empty; a copy of the kernel is what it
    costs. For 8192 samples of 2048 features and the 50,257 classes of GPT-2, in bfloat16, an H200 then takes 9.4 ms,
    0.37 of its time for the three products alone: `examples/benchmark.py --part linear` with
    `--config configs/benchmark-gpu.toml`.
    """
    aligned = not isinstance(classes, int) or classes % 8 == 0
    return 0 if aligned or classes < 1024 or platform not in _GPUS else -classes % 64


_GPUS = ("gpu", "cuda", "rocm")


def _even_chunk(length: int, part: int) -> int:
    """At most `part`, so that the parts of the length are about the same."""
    return math.ceil(length / math.ceil(length / part))


def cap_chunk(rows: int, samples: Length) -> int:
    """A block is no larger than all samples, if their number is known."""
    return min(rows, max(samples, 1)) if isinstance(samples, int) else rows


def chunks_are_full(samples: Length, rows: int) -> bool:
    """Whether the samples are known to fill their blocks."""
    return isinstance(samples, int) and samples % rows == 0 and samples > 0


def split_into_chunks(arrays: Any, samples: Length, rows: int) -> Any:
    """Each `[samples, …]` as `[blocks, rows, …]`, filled up with the last sample, or with zeros if there is none."""
    known = isinstance(samples, int)
    blocks = max(1, -(-samples // rows)) if known else -(-samples // rows)

    def one(array: Array) -> Array:
        if not chunks_are_full(samples, rows):
            # what a caller's function takes of a sample it takes of the last one again, as it might not of zeros
            last = jnp.zeros((1, *array.shape[1:]), array.dtype) if known and samples == 0 else array[-1:]
            missing = jnp.broadcast_to(last, (blocks * rows - samples, *array.shape[1:]))
            array = jnp.concatenate([array, missing])
        return array.reshape((blocks, rows, *array.shape[1:]))

    return jax.tree.map(one, arrays)


def merge_chunks(arrays: Any, shape: Shape) -> Any:
    """Each `[blocks, rows, …]` as `[*shape, …]`, without what `split` filled in."""

    def one(array: Array) -> Array:
        flat = array.reshape((array.shape[0] * array.shape[1], *array.shape[2:]))
        return flat[: math.prod(shape)].reshape(shape + array.shape[2:])

    return jax.tree.map(one, arrays)


def scan_chunks(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, blocks: Any, active: Bool[Array, " blocks"] | None
) -> tuple[Any, Any]:
    """`lax.scan` of `step` over the blocks. One that is not `active` changes nothing and gives zeros."""
    if jax.tree.leaves(blocks)[0].shape[0] == 1:
        carry, out = step(carry, jax.tree.map(lambda array: array[0], blocks))
        return carry, jax.tree.map(lambda array: array[None], out)

    every = jax.tree.leaves(blocks)

    def skip(carry: Any, block: Any) -> tuple[Any, Any]:
        _, out = jax.eval_shape(step, carry, block)
        return carry, jax.tree.map(lambda to: varying_like(jnp.zeros(to.shape, to.dtype), *every), out)

    if active is None:
        return lax.scan(step, carry, blocks)

    # The derivative of a `cond` would keep what each block reads once for every block, as the kernel that all read.
    @partial(jax.checkpoint, prevent_cse=False)
    def at(carry: Any, here: tuple[Any, Any]) -> tuple[Any, Any]:
        block, taken = here
        return lax.cond(taken, step, skip, carry, block)

    return lax.scan(at, carry, (blocks, active))


def active_chunks(weights: Array) -> Bool[Array, " blocks"]:
    """Which blocks hold a sample whose weight is not 0. Where the weights are differentiated by, all of them:

    a sample of weight 0 adds nothing, but its loss is the derivative with respect to its weight.
    """
    return _max_weight(weights) > 0


@jax.custom_jvp
def _max_weight(weights: Array) -> Array:
    return _max_per_chunk(weights)


@jax.custom_batching.custom_vmap
def _max_per_chunk(weights: Array) -> Array:
    return jnp.max(jnp.abs(weights), axis=1, initial=0)


@_max_per_chunk.def_vmap
def _max_over_examples(_: int, __: list[bool], weights: Array) -> tuple[Array, bool]:
    # one answer for all examples, so that a block is left out or not, where `vmap` would compute both and select
    return _max_per_chunk(jnp.max(jnp.abs(weights), axis=0, initial=0)), False


@_max_weight.defjvp
def _max_weight_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    held = _max_weight(*primals)
    some = jnp.where(held > 0, held, 1)
    return some, jnp.zeros_like(some)
