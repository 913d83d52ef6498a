"""Labels as the caller passes them, and targets as the row rules take them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax._args.types import Array, Float, Integer, Shape


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
    """The target of a divergence: a teacher's logits."""

    logits: Any
    """In the shape of the student's logits; None until a layer has made them."""
    temperature: Any
    """T > 0, which divides both rows of logits: a scalar, or one value per row; None for 1."""
    beta: Any
    """The weight of the teacher in the mixture β p + (1 − β) q, likewise; None without a mixture."""

    def broadcast_to_rows(self, shape: Shape, dtype: Any) -> "Teacher":
        """The teacher, with one temperature and one β per row."""

        def broadcast(scalar: Any) -> Array:
            return jnp.broadcast_to(jnp.asarray(scalar).astype(dtype), shape)

        return Teacher(self.logits, *jax.tree.map(broadcast, self[1:]))


Labels = Array | SparseLabels


class ClassIds(NamedTuple):
    """A class id for each row, −1 if it is out of range. It keeps the class axis, at length 1."""

    ids: Integer[Array, "..."]


class Distribution(NamedTuple):
    """A probability for each class of each row."""

    probabilities: Float[Array, "..."]

    def pad_classes(self, count: int) -> "Distribution":
        """The distribution with `count` more classes without mass, along the last axis."""
        p = self.probabilities
        return Distribution(jnp.pad(p, [*[(0, 0)] * (p.ndim - 1), (0, count)]))


class FewProbabilities(NamedTuple):
    """`SparseLabels` with their k classes along the class axis; an id out of range is −1."""

    ids: Integer[Array, "..."]
    probabilities: Float[Array, "..."]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TopKClasses:
    """No label: it asks for the k most probable classes of each row."""

    k: int

    def checked(self, classes: int) -> "TopKClasses":
        """Itself; refuses a k larger than the number of classes."""
        if self.k > classes:
            raise ValueError(f"`k` must be at most the number of classes, {classes}; got {self.k}.")
        return self


Target = ClassIds | Distribution | FewProbabilities | TopKClasses


def ids_without_mass(ids: Integer[Array, "*samples k"]) -> SparseLabels:
    """Classes with mass 0: they ask for log-probabilities only."""
    return SparseLabels(ids, jnp.zeros(ids.shape, jnp.float32))


def is_distribution(labels: Any) -> bool:
    """Whether the labels have an axis of all classes, which may be sharded."""
    return isinstance(labels, Array) and jnp.issubdtype(labels.dtype, jnp.floating)


def target_from_labels(labels: Labels, classes: int, axis: int) -> ClassIds | Distribution | FewProbabilities:
    """The target of a row rule; `classes` is the number of classes on all devices."""
    if isinstance(classes, int) and classes > jnp.iinfo(jnp.int32).max:
        raise ValueError(f"Classes are counted in int32: there may be at most 2³¹ − 1, got {classes}.")
    if isinstance(labels, SparseLabels):
        ids, probabilities = (
            jnp.moveaxis(a, -1, axis) for a in (canonical_ids(labels.ids, classes), labels.probabilities)
        )
        return FewProbabilities(ids, probabilities)
    if is_distribution(labels):
        return Distribution(labels)
    return ClassIds(jnp.expand_dims(canonical_ids(labels, classes), axis))


def canonical_ids(labels: Integer[Array, "*samples"], classes: Any) -> Integer[Array, "*samples"]:
    """int32 ids, −1 for every id out of range, from any integer dtype: narrow, wide or unsigned."""
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    valid = labels >= 0
    if not isinstance(classes, int) or classes <= jnp.iinfo(labels.dtype).max:
        valid &= labels < classes
    return jnp.where(valid, labels.astype(jnp.int32), -1)
