"""A block of logits with its target: what every row rule computes from.

A block holds the logits of some rows, all classes of them or one device's shard. A *row rule* maps a block to values of
each row, with an analytic derivative; the row statistics and each divergence are row rules.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax._args import arrays
from softjax._args.labels import ClassIds, Distribution, FewProbabilities, Target, Teacher
from softjax._args.types import Array, Bool, Float, Integer
from softjax._mesh.axes import (
    NO_CLASS,
    ClassAxis,
    existing_logits,
    negative_zeros_last,
    psum,
    with_same_varying_axes,
)
from softjax._rows.edges import to_float64, zero_ignored
from softjax._xla import one_cpu
from softjax._xla.every_mode import opaque_to_remat, with_forward_mode
from softjax._xla.gather import take_classes, take_from_shared


class Block(NamedTuple):
    """Logits and what belongs to them. A value of each row keeps the class axis, at length 1."""

    classes: ClassAxis
    """The class axis, and the mesh axes that shard it."""
    logits: Float[Array, "..."]
    target: Target | Teacher
    exists: Bool[Array, "..."] | None
    """The classes that `where` keeps, None for all."""
    active: Bool[Array, "*rows"] | None
    """The rows whose weight is not 0, None for all. Ignored rows may hold anything."""
    first_id: Integer[Array, ""] | None
    """The id of this device's first class, None for 0."""
    class_weights: Float[Array, "..."] | None = None
    """The weight w_j of each class, a constant; None if all are 1. All rows share it: their axes have length 1."""

    def wide_logits(self, dropped: Bool[Array, "*rows"] | None = None) -> Float[Array, "..."]:
        """The logits in the accumulation dtype: −inf for masked classes, 0 in `dropped` rows."""
        x = existing_logits(self.logits, self.exists)
        if dropped is None:
            return x
        # A per-row 0 on purpose: XLA would hoist a constant out of the loop and materialise a full array.
        return jnp.where(dropped, jnp.where(dropped, 0, jnp.ones_like(dropped, x.dtype)), x)

    def wide_probabilities(self) -> Float[Array, "..."]:
        """The target distribution likewise, times the class weights: 0 for masked classes, finite in ignored rows."""
        p = one_cpu.widen(self.target.probabilities)  # pyright: ignore[reportAttributeAccessIssue]
        p = p if self.class_weights is None else p * self.class_weights
        return zero_ignored(self.zero_masked(p), self.active)

    def zero_masked(self, x: Array) -> Array:
        """`x`, 0 for masked classes."""
        return x if self.exists is None else jnp.where(self.exists, x, 0)

    def zero_ignored(self, values: Any) -> Any:
        """Row values without the class axis; what is not finite in an ignored row becomes 0."""
        active = None if self.active is None else self.classes.squeeze(self.active)
        return jax.tree.map(lambda value: zero_ignored(value, active), values)

    def num_classes(self) -> Float[Array, "*rows"]:
        """C, the number of classes that exist in each row; at least 1."""
        dtype, classes = arrays.accumulation_dtype(self.logits), self.classes
        if self.exists is None:
            return jnp.full(classes.keepdims_shape(self.logits), max(classes.num_classes(self.logits), 1), dtype)
        exists = jnp.broadcast_to(self.exists, self.logits.shape)
        return jnp.maximum(classes.sum_keepdims(exists), 1).astype(dtype)

    def class_ids(self, tied: Array) -> Integer[Array, "..."]:
        """The global id of each class. XLA does not hoist it out of a loop, since it depends on `tied`."""
        return self.classes.ids(self.logits, tied, self.first_id)

    def logits_at(self, ids: Integer[Array, "..."]) -> Float[Array, "..."]:
        """The logits at these ids: 0 for an id out of range, −inf for a masked class."""
        logits = self.logits if self.exists is None else jnp.where(self.exists, self.logits, -jnp.inf)
        local = take_classes(logits, self.local_ids(ids), self.classes.axis)
        return psum(one_cpu.widen(local), self.classes.names)  # widened after it is taken

    def local_ids(self, ids: Integer[Array, "..."]) -> Integer[Array, "..."]:
        """Global ids as positions among this device's classes."""
        return ids if self.first_id is None else ids - self.first_id

    def exists_at(self, ids: Integer[Array, "..."]) -> Bool[Array, "..."]:
        """Whether these classes exist."""
        if self.exists is None:
            return ids >= 0
        exists = jnp.broadcast_to(self.exists, self.logits.shape).astype(jnp.float32)
        return (ids >= 0) & (self._values_at(exists, ids) > 0)

    def _values_at(self, x: Float[Array, "..."], ids: Integer[Array, "..."]) -> Float[Array, "..."]:
        """x at these ids, 0 for an id out of range."""
        return psum(take_classes(x, self.local_ids(ids), self.classes.axis), self.classes.names)

    def first_equal(self, x: Array, value: Array) -> Integer[Array, "*rows"]:
        """The id of the first existing class where `x` equals `value`; −1 if there is none."""
        return self.classes.first_equal(x, value, self.exists, self.first_id)

    def rank(self, x: Array, label: Integer[Array, "*rows"]) -> Integer[Array, "*rows"]:
        """How many classes precede the label when logits are sorted as `jax.lax.top_k` sorts.

        The largest comes first, 0 before −0, equal ones by id.
        """
        ids, label_logit = self.class_ids(label), self.logits_at(label)
        negative = jnp.signbit(x)
        # The label's own sign bit: a sum, as `logits_at` may take one, loses the sign of −0.
        label_is_negative = self._values_at(negative.astype(jnp.float32), label) > 0
        is_first = negative_zeros_last(ids, negative) < negative_zeros_last(label, label_is_negative)
        precedes = (ids != label) & ((x > label_logit) | ((x == label_logit) & is_first))
        rank = self.classes.sum_keepdims(precedes if self.exists is None else precedes & self.exists)
        if self.exists is not None:
            rank = jnp.where(self.classes.any(self.exists & (ids == label)), rank, NO_CLASS)
        return jnp.where(label < 0, -1, rank)

    def cotangent(self, dx: Array, target: Any) -> "Block":
        """The cotangent of a block, from those of its wide logits and its target."""
        return Block(self.classes, self.zero_masked(dx).astype(self.logits.dtype), target, None, None, None)


class RowRule(NamedTuple):
    """Values of each row of a block, and their VJP. It is static: `apply_rule` is a custom derivative made from it."""

    forward: Callable[[Block], tuple[Any, Any]]
    """`block` to the values, and the residuals of the backward pass beside the block."""
    backward: Callable[[Block, Any, Any], Block]
    """`(block, residuals, cotangents)` to the cotangents of the block."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(rule, block):
    return rule.forward(block)[0]


def _apply_forward(rule, block):
    values, residuals = rule.forward(block)
    return values, (block, residuals)


def _apply_backward(rule, residuals, cotangents):
    block, rule_residuals = residuals
    return (rule.backward(block, rule_residuals, block.classes.psum_cotangents(cotangents)),)


_apply.defvjp(opaque_to_remat(_apply_forward), _apply_backward)
apply_rule = with_forward_mode(_apply)
"""`apply_rule(rule, block)`: the values of each row, in every mode of differentiation."""


def make_block(
    classes: ClassAxis,
    logits: Array,
    target: Any,
    where: Array | None,
    active: Array | None,
    class_weights: Array | None = None,
) -> Block:
    """The block of one device's logits."""
    if isinstance(target, Teacher) and target.temperature is not None and active is not None:
        target = target._replace(temperature=jnp.where(active, target.temperature, 1))
    if arrays.accumulation_dtype(logits, *jax.tree.leaves(target)) == jnp.float64:
        logits, target = jax.tree.map(to_float64, (logits, target))
    if class_weights is not None:
        class_weights = class_weights.astype(arrays.accumulation_dtype(logits))
    sharded = logits, where, class_weights
    (logits, where, class_weights), target, active = with_target_varying(classes, sharded, target, active)
    return Block(classes, logits, target, where, active, classes.first_id(logits), class_weights)


def class_weights_at(
    classes: ClassAxis, class_weights: Float[Array, "..."], ids: Integer[Array, "..."]
) -> Float[Array, "..."]:
    """The weight of each of these classes, and 1 for an id that is no class: its loss is NaN, never 0 · NaN."""
    first_id = classes.first_id(class_weights)
    local = ids if first_id is None else ids - first_id
    at_ids = psum(take_from_shared(class_weights, local, classes.axis), classes.names)
    return jnp.where(ids < 0, 1, at_ids)


def weigh_target(
    classes: ClassAxis, class_weights: Float[Array, "..."], target: Target
) -> tuple[Target, Float[Array, "..."] | None]:
    """The target with probabilities p_i w_i, and the weight w_y of each class id; None for another target.

    The block weighs a distribution itself, since its product would be one more array over all classes.
    """
    if isinstance(target, ClassIds):
        return target, classes.squeeze(class_weights_at(classes, class_weights, target.ids))
    if isinstance(target, FewProbabilities):
        at_ids = class_weights_at(classes, class_weights, target.ids)
        return target._replace(probabilities=target.probabilities.astype(at_ids.dtype) * at_ids), None
    return target, None


def with_target_varying(classes: ClassAxis, sharded: Any, target: Any, shared: Any) -> tuple[Any, Any, Any]:
    """`with_same_varying_axes`, for a target too: its arrays of all classes are sharded, its others shared."""
    if isinstance(target, Distribution):
        (sharded, target), shared = with_same_varying_axes(classes.names, (sharded, target), shared)
    elif isinstance(target, Teacher):
        both, rest = (sharded, target.logits), (target[1:], shared)
        (sharded, logits), (parameters, shared) = with_same_varying_axes(classes.names, both, rest)
        target = Teacher(logits, *parameters)
    else:
        sharded, (target, shared) = with_same_varying_axes(classes.names, sharded, (target, shared))
    return sharded, target, shared
