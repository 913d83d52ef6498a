"""The kinds of target that a loss or a query has.

`Labels` is what a caller passes, checked. `Target` is what the row statistics read: `target_from_labels` converts.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax._args.types import Array, Float, Integer, Length, Shape


class SparseLabels(NamedTuple):
    """Labels with mass at a few classes: k class ids and their probabilities for each sample.

        p_j = Σ_{i: ids_i = j} probabilities_i

    Use them for the top-k probabilities of a teacher. Value and gradients, also with respect to the probabilities, are
    those of the distribution p, which is never materialised. Probabilities of equal ids add.

    Mass 0 at an id outside the classes is padding. Any other mass there makes the loss of the row NaN, with zero
    gradient.

    Attributes:
        ids: integer class ids `[*samples, k]`, from 0 to C − 1, global if the classes are sharded.
        probabilities: floating, `[*samples, k]`.

    >>> import jax.numpy as jnp, softjax
    >>> labels = softjax.SparseLabels(jnp.array([[2, 0]]), jnp.array([[0.75, 0.25]]))
    >>> print(softjax.cross_entropy(jnp.array([[1.0, 0.0, 3.0]]), labels).round(4))
    0.2909
    """

    ids: Integer[Array, "*samples k"]
    probabilities: Float[Array, "*samples k"]


class Teacher(NamedTuple):
    """The target of a divergence: logits of a teacher, whose distribution the student learns."""

    logits: Any
    """Logits of the shape of the student's; None where a layer computes them."""
    temperature: Any
    """T > 0, which divides the logits of student and teacher: a scalar or one per sample, of their rank; None for 1."""
    beta: Any
    """The weight of the teacher in the mixture of both: a scalar or one value per row; None without a mixture."""

    def broadcast_to_rows(self, shape: Shape, dtype: Any, axis: int = -1) -> "Teacher":
        """Returns the teacher with one temperature and one beta per row, in arrays of this shape and dtype.

        The class axis of the shape, of length 1, is `axis`.
        """

        def broadcast(value: Any) -> Array:
            array = jnp.asarray(value).astype(dtype)
            return jnp.broadcast_to(jnp.expand_dims(array, axis) if array.ndim else array, shape)

        return Teacher(self.logits, *jax.tree.map(broadcast, self[1:]))


Labels = Array | SparseLabels


class ClassIds(NamedTuple):
    """Target of one class id per row, −1 for an id that is no class."""

    ids: Integer[Array, "..."]
    """The ids, with a class axis of length 1."""


class Distribution(NamedTuple):
    """Target that gives each class of a row a probability."""

    probabilities: Float[Array, "..."]

    def pad_classes(self, count: int) -> "Distribution":
        """Returns the distribution with `count` padded classes of probability 0; the class axis must be the last."""
        p = self.probabilities
        return Distribution(jnp.pad(p, [*[(0, 0)] * (p.ndim - 1), (0, count)]))


class FewProbabilities(NamedTuple):
    """Target of `SparseLabels`: k class ids and their probabilities per row, with k at the class axis."""

    ids: Integer[Array, "..."]
    """The ids, −1 for an id that is no class."""
    probabilities: Float[Array, "..."]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TopKClasses:
    """Target of no label, which asks for the k most probable classes of each row."""

    k: int

    def checked(self, num_classes: int) -> "TopKClasses":
        """Returns itself. Refuses a `k` of more than `num_classes`."""
        if self.k > num_classes:
            raise ValueError(f"`k` must be at most the number of classes, {num_classes}; got {self.k}.")
        return self


Target = ClassIds | Distribution | FewProbabilities | TopKClasses


def ids_without_mass(ids: Integer[Array, "*samples k"]) -> SparseLabels:
    """Returns labels of probability 0 at these ids, for queries that need the log-probabilities alone."""
    return SparseLabels(ids, jnp.zeros(ids.shape, jnp.float32))


def is_distribution(labels: Any) -> bool:
    """Whether the labels are a distribution, whose class axis is sharded where that of the logits is."""
    return isinstance(labels, Array) and jnp.issubdtype(labels.dtype, jnp.floating)


def target_from_labels(labels: Labels, num_classes: Length, axis: int) -> ClassIds | Distribution | FewProbabilities:
    """Returns the target of checked labels; `num_classes` includes the classes of all devices.

    Refuses more classes than int32 can hold.
    """
    if isinstance(num_classes, int) and num_classes > jnp.iinfo(jnp.int32).max:
        raise ValueError(f"Classes are counted in int32: there may be at most 2³¹ − 1, got {num_classes}.")
    if isinstance(labels, SparseLabels):
        ids = canonical_ids(labels.ids, num_classes)
        return FewProbabilities(jnp.moveaxis(ids, -1, axis), jnp.moveaxis(labels.probabilities, -1, axis))
    if is_distribution(labels):
        return Distribution(labels)
    return ClassIds(jnp.expand_dims(canonical_ids(labels, num_classes), axis))


def canonical_ids(labels: Integer[Array, "*samples"], num_classes: Length) -> Integer[Array, "*samples"]:
    """Returns class ids in int32, −1 for each id outside 0 … num_classes − 1, whatever their integer dtype."""
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    valid = labels >= 0
    # A dtype that cannot hold `num_classes` holds no id above it.
    if not isinstance(num_classes, int) or num_classes <= jnp.iinfo(labels.dtype).max:
        valid &= labels < num_classes
    return jnp.where(valid, labels.astype(jnp.int32), -1)
