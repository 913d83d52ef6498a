"""A block of logits and what belongs to them: made, and asked for its classes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax._args import arrays
from softjax._args.labels import Distribution, Target, Teacher
from softjax._args.types import Array, Bool, Float, Integer
from softjax._mesh.axes import NO_CLASS, ClassAxis, existing_logits, psum, with_same_varying_axes
from softjax._rows.edges import to_float64, zero_ignored
from softjax._xla import one_cpu
from softjax._xla.every_mode import opaque_to_remat, with_forward_mode
from softjax._xla.gather import take_classes
from softjax._xla.transpose import compute_gradient_once


class Block(NamedTuple):
    """Logits and what belongs to them. Numbers of a row keep the class axis at length 1."""

    logits: Float[Array, "..."]
    target: Target | Teacher
    exists: Bool[Array, "..."] | None
    """The classes that exist, None for all."""
    active: Bool[Array, "*rows"] | None
    """The rows that are counted, None for all. The others may hold anything."""
    first_id: Integer[Array, ""] | None
    """The id of the first class here, None for 0."""

    def wide_logits(self, dropped: Bool[Array, "*rows"] | None = None) -> Float[Array, "..."]:
        """The logits in the type that they are accumulated in, −inf where no class is, 0 in the dropped rows."""
        x = existing_logits(self.logits, self.exists)
        if dropped is None:
            return x
        # by way of a number of each row: of a constant, XLA makes an array outside of the loop that it stands in
        return jnp.where(dropped, jnp.where(dropped, 0, jnp.ones_like(dropped, x.dtype)), x)

    def wide_probabilities(self) -> Float[Array, "..."]:
        """The target distribution likewise, 0 where no class is, and finite in rows that are not counted."""
        p = one_cpu.widen(self.target.probabilities)  # pyright: ignore[reportAttributeAccessIssue]
        return zero_ignored(self.zero_missing(p), self.active)

    def zero_missing(self, x: Array) -> Array:
        """`x`, 0 for the classes that do not exist."""
        return x if self.exists is None else jnp.where(self.exists, x, 0)

    def zero_ignored(self, classes: ClassAxis, numbers: Any) -> Any:
        """Numbers of the rows, with 0 for what is not finite in a row that is not counted."""
        counted = None if self.active is None else classes.squeeze(self.active)
        return jax.tree.map(lambda number: zero_ignored(number, counted), numbers)

    def num_classes(self, classes: ClassAxis) -> Float[Array, "*rows"]:
        """C of each row, at least 1."""
        dtype = arrays.accumulation_dtype(self.logits)
        if self.exists is None:
            return jnp.full(classes.keepdims_shape(self.logits), max(classes.num_classes(self.logits), 1), dtype)
        exists = jnp.broadcast_to(self.exists, self.logits.shape)
        return jnp.maximum(classes.sum_keepdims(exists), 1).astype(dtype)

    def class_ids(self, classes: ClassAxis, beside: Array) -> Integer[Array, "..."]:
        """The id of each class, to be used beside these numbers of the rows."""
        return classes.ids(self.logits, beside, self.first_id)

    def logits_at(self, classes: ClassAxis, ids: Integer[Array, "..."]) -> Float[Array, "..."]:
        """x at these classes of each row, 0 for an id that is no class, −inf for a class that does not exist."""
        logits = self.logits if self.exists is None else jnp.where(self.exists, self.logits, -jnp.inf)
        return psum(one_cpu.widen(take_classes(logits, self.local_ids(ids), classes.axis)), classes.names)

    def local_ids(self, ids: Integer[Array, "..."]) -> Integer[Array, "..."]:
        """The places of these classes among those of this device."""
        return ids if self.first_id is None else ids - self.first_id

    def exists_at(self, classes: ClassAxis, ids: Integer[Array, "..."]) -> Bool[Array, "..."]:
        """Which of these classes exist."""
        if self.exists is None:
            return ids >= 0
        exists = jnp.broadcast_to(self.exists, self.logits.shape).astype(jnp.float32)
        return (ids >= 0) & (psum(take_classes(exists, self.local_ids(ids), classes.axis), classes.names) > 0)

    def first_equal(self, classes: ClassAxis, x: Array, most: Array) -> Integer[Array, "*rows"]:
        """The first of the classes that exist whose `x` is `most`, −1 if there is none."""
        return classes.first_equal(x, most, self.exists, self.first_id)

    def rank(self, classes: ClassAxis, x: Array, label: Integer[Array, "*rows"]) -> Integer[Array, "*rows"]:
        """How many classes come before the label, the larger logits first, equal ones by class."""
        ids, a = self.class_ids(classes, label), self.logits_at(classes, label)
        before = (ids != label) & ((x > a) | ((x == a) & (ids < label)))
        rank = classes.sum_keepdims(before if self.exists is None else before & self.exists)
        if self.exists is not None:
            rank = jnp.where(classes.any(self.exists & (ids == label)), rank, NO_CLASS)
        return jnp.where((label < 0) | jnp.isnan(classes.max(x)), -1, rank)


class RowRule(NamedTuple):
    """Numbers of each row of a block, and their derivative: of one class axis, and a block of logits."""

    apply: Callable[..., Any]
    """`(classes, block)` to the numbers, in every mode of differentiation."""
    forward: Callable[..., tuple[Any, Any]]
    """`(classes, block)` to the numbers, and what the pull-back needs of them beside the block."""
    backward: Callable[..., Block]
    """`(classes, block, of the values, cotangents)` to the cotangents of the block."""

    @classmethod
    def from_vjp(cls, values: Callable[..., tuple[Any, Any]], pulled_back: Callable[..., Block]) -> "RowRule":
        """The numbers are a `custom_vjp`: these values, with this pull-back for their derivative."""

        @partial(jax.custom_vjp, nondiff_argnums=(0,))
        def numbers(classes: ClassAxis, block: Block) -> Any:
            return values(classes, block)[0]

        def forward(classes: ClassAxis, block: Block) -> tuple[Any, tuple[Block, Any]]:
            row, sums = values(classes, block)
            return row, (block, sums)

        def backward(classes: ClassAxis, residuals: tuple[Block, Any], cotangents: Any) -> tuple[Block]:
            return (pulled_back(classes, *residuals, classes.psum_cotangents(cotangents)),)

        numbers.defvjp(opaque_to_remat(forward), backward)
        return cls(with_forward_mode(numbers), values, pulled_back)


def make_block(classes: ClassAxis, logits: Array, target: Any, where: Array | None, counted: Array | None) -> Block:
    """The block of logits of one device."""
    logits = compute_gradient_once(logits)
    if arrays.accumulation_dtype(logits, *jax.tree.leaves(target)) == jnp.float64:
        logits, target = jax.tree.map(to_float64, (logits, target))
    (logits, where), target, counted = with_target_varying(classes, (logits, where), target, counted)
    return Block(logits, target, where, counted, classes.first_id(logits))


def with_target_varying(classes: ClassAxis, split: Any, target: Any, shared: Any) -> tuple[Any, Any, Any]:
    """`aligned`, with a target: what has an axis of all classes is split, anything else is shared by all of them."""
    if isinstance(target, Distribution):
        (split, target), shared = with_same_varying_axes(classes.names, (split, target), shared)
    elif isinstance(target, Teacher):
        (split, logits), (of_rows, shared) = with_same_varying_axes(
            classes.names, (split, target.logits), (target[1:], shared)
        )
        target = Teacher(logits, *of_rows)
    else:
        split, (target, shared) = with_same_varying_axes(classes.names, split, (target, shared))
    return split, target, shared
