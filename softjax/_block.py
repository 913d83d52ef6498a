"""A block of logits and what belongs to them: made, and asked for its classes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax import _cpu as cpu
from softjax._classes import NOWHERE, Classes, aligned, present, total
from softjax._every_mode import in_every_mode, one_operation
from softjax._labels import Distribution, Target, Teacher
from softjax._types import Array, Bool, Float, Integer


class Block(NamedTuple):
    """Logits and what belongs to them. Numbers of a row keep the class axis at length 1."""

    logits: Float[Array, "..."]
    target: Target | Teacher
    exists: Bool[Array, "..."] | None
    """The classes that exist, None for all."""
    counted: Bool[Array, "*rows"] | None
    """The rows that are counted, None for all. The others may hold anything."""
    first: Integer[Array, ""] | None
    """The id of the first class here, None for 0."""

    def wide_logits(self, absent: Bool[Array, "*rows"] | None = None) -> Float[Array, "..."]:
        """The logits in the type that they are accumulated in, −inf where no class is, 0 in the absent rows."""
        x = present(self.logits, self.exists)
        if absent is None:
            return x
        # by way of a number of each row: of a constant, XLA makes an array outside of the loop that it stands in
        return jnp.where(absent, jnp.where(absent, 0, jnp.ones_like(absent, x.dtype)), x)

    def wide_probabilities(self) -> Float[Array, "..."]:
        """The target distribution likewise, 0 where no class is, and finite in rows that are not counted."""
        p = cpu.widen(self.target.probabilities)  # pyright: ignore[reportAttributeAccessIssue]
        return harmless(self.existing(p), self.counted)

    def existing(self, x: Array) -> Array:
        """`x`, 0 for the classes that do not exist."""
        return x if self.exists is None else jnp.where(self.exists, x, 0)

    def finite(self, classes: Classes, numbers: Any) -> Any:
        """Numbers of the rows, with 0 for what is not finite in a row that is not counted."""
        counted = None if self.counted is None else classes.number(self.counted)
        return jax.tree.map(lambda number: harmless(number, counted), numbers)

    def class_count(self, classes: Classes) -> Float[Array, "*rows"]:
        """C of each row, at least 1."""
        dtype = cpu.wide(self.logits)
        if self.exists is None:
            return jnp.full(classes.number_shape(self.logits), max(classes.count(self.logits), 1), dtype)
        exists = jnp.broadcast_to(self.exists, self.logits.shape)
        return jnp.maximum(classes.total(exists), 1).astype(dtype)

    def class_ids(self, classes: Classes, beside: Array) -> Integer[Array, "..."]:
        """The id of each class, to be used beside these numbers of the rows."""
        return classes.ids(self.logits, beside, self.first)

    def at(self, classes: Classes, ids: Integer[Array, "..."]) -> Float[Array, "..."]:
        """x at these classes of each row, 0 for an id that is no class, −inf for a class that does not exist."""
        logits = self.logits if self.exists is None else jnp.where(self.exists, self.logits, -jnp.inf)
        return total(cpu.widen(cpu.picked(logits, self.local(ids), classes.axis)), classes.names)

    def local(self, ids: Integer[Array, "..."]) -> Integer[Array, "..."]:
        """The places of these classes among those of this device."""
        return ids if self.first is None else ids - self.first

    def taken(self, classes: Classes, ids: Integer[Array, "..."]) -> Bool[Array, "..."]:
        """Which of these classes exist."""
        if self.exists is None:
            return ids >= 0
        exists = jnp.broadcast_to(self.exists, self.logits.shape).astype(jnp.float32)
        return (ids >= 0) & (total(cpu.picked(exists, self.local(ids), classes.axis), classes.names) > 0)

    def first_equal(self, classes: Classes, x: Array, most: Array) -> Integer[Array, "*rows"]:
        """The first of the classes that exist whose `x` is `most`, −1 if there is none."""
        return classes.first_equal(x, most, self.exists, self.first)

    def rank(self, classes: Classes, x: Array, label: Integer[Array, "*rows"]) -> Integer[Array, "*rows"]:
        """How many classes come before the label, the larger logits first, equal ones by class."""
        ids, a = self.class_ids(classes, label), self.at(classes, label)
        before = (ids != label) & ((x > a) | ((x == a) & (ids < label)))
        rank = classes.total(before if self.exists is None else before & self.exists)
        if self.exists is not None:
            rank = jnp.where(classes.any(self.exists & (ids == label)), rank, NOWHERE)
        return jnp.where((label < 0) | jnp.isnan(classes.most(x)), -1, rank)


class Page(NamedTuple):
    """Numbers of each row of a block, and their derivative: of one class axis, and a block of logits."""

    numbers: Callable[..., Any]
    """`(classes, block)` to the numbers, in every mode of differentiation."""
    values: Callable[..., tuple[Any, Any]]
    """`(classes, block)` to the numbers, and what the pull-back needs of them beside the block."""
    pulled_back: Callable[..., Block]
    """`(classes, block, of the values, cotangents)` to the cotangents of the block."""

    @classmethod
    def of(cls, values: Callable[..., tuple[Any, Any]], pulled_back: Callable[..., Block]) -> "Page":
        """The numbers are a `custom_vjp`: these values, with this pull-back for their derivative."""

        @partial(jax.custom_vjp, nondiff_argnums=(0,))
        def numbers(classes: Classes, block: Block) -> Any:
            return values(classes, block)[0]

        def forward(classes: Classes, block: Block) -> tuple[Any, tuple[Block, Any]]:
            row, sums = values(classes, block)
            return row, (block, sums)

        def backward(classes: Classes, residuals: tuple[Block, Any], cotangents: Any) -> tuple[Block]:
            return (pulled_back(classes, *residuals, classes.whole(cotangents)),)

        numbers.defvjp(one_operation(forward), backward)
        return cls(in_every_mode(numbers), values, pulled_back)


def block_of(classes: Classes, logits: Array, target: Any, where: Array | None, counted: Array | None) -> Block:
    """The block of logits of one device."""
    logits = cpu.gradient_once(logits)
    if cpu.wide(logits, *jax.tree.leaves(target)) == jnp.float64:
        logits, target = jax.tree.map(float64, (logits, target))
    (logits, where), target, counted = aligned_with_target(classes, (logits, where), target, counted)
    return Block(logits, target, where, counted, classes.first(logits))


def aligned_with_target(classes: Classes, split: Any, target: Any, shared: Any) -> tuple[Any, Any, Any]:
    """`aligned`, with a target: what has an axis of all classes is split, anything else is shared by all of them."""
    if isinstance(target, Distribution):
        (split, target), shared = aligned(classes.names, (split, target), shared)
    elif isinstance(target, Teacher):
        (split, logits), (of_rows, shared) = aligned(classes.names, (split, target.logits), (target[1:], shared))
        target = Teacher(logits, *of_rows)
    else:
        split, (target, shared) = aligned(classes.names, split, (target, shared))
    return split, target, shared


def float64(array: Array) -> Array:
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def harmless(array: Array, counted: Bool[Array, "..."] | None) -> Array:
    """`array`, with 0 for what is not finite in a row that is not counted: 0 · NaN and 0 · inf would be NaN.

    What is finite there stays, so that a row keeps its derivative by its weight.
    """
    if counted is None or not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return jnp.where(counted | jnp.isfinite(array), array, 0)


def no_number(condition: Bool[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x`, NaN where the condition holds. A NaN that is written down would stop `jax.debug_nans` everywhere."""
    endless = jnp.where(condition, jnp.inf, jnp.zeros_like(x))
    return (x + endless) - endless
