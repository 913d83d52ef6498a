"""Labels: what the target of a loss is."""

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
    """No label: another row of logits, whose distribution is to be learnt."""

    logits: Any
    """Of the shape of the logits; None where a layer is to make them."""
    temperature: Any
    """T > 0, by which the logits of both are divided, a scalar or one for each row; None for 1."""
    beta: Any
    """The teacher's share of the mixture of both, likewise; None where there is no mixture."""

    def broadcast_to_rows(self, shape: Shape, dtype: Any) -> "Teacher":
        """The same, with numbers of each row for the scalars."""

        def number(scalar: Any) -> Array:
            return jnp.broadcast_to(jnp.asarray(scalar).astype(dtype), shape)

        return Teacher(self.logits, *jax.tree.map(number, self[1:]))


Labels = Array | SparseLabels


class ClassIds(NamedTuple):
    """A class id for each row, −1 for one that is no class, the class axis kept at length 1."""

    ids: Integer[Array, "..."]


class Distribution(NamedTuple):
    """The probability of each class, in each row."""

    probabilities: Float[Array, "..."]

    def pad_classes(self, count: int) -> "Distribution":
        """With `count` more classes of no mass, the class axis being the last."""
        p = self.probabilities
        return Distribution(jnp.pad(p, [*[(0, 0)] * (p.ndim - 1), (0, count)]))


class FewProbabilities(NamedTuple):
    """`SparseLabels`, their ids −1 for what is no class, at the place of the class axis."""

    ids: Integer[Array, "..."]
    probabilities: Float[Array, "..."]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TopKClasses:
    """No label: the k most probable classes of the row are asked for."""

    k: int

    def checked(self, classes: int) -> "TopKClasses":
        if self.k > classes:
            raise ValueError(f"`k` must be at most the number of classes, {classes}; got {self.k}.")
        return self


Target = ClassIds | Distribution | FewProbabilities | TopKClasses


def ids_without_mass(ids: Integer[Array, "*samples k"]) -> SparseLabels:
    """Classes of which no more is asked than how probable they are."""
    return SparseLabels(ids, jnp.zeros(ids.shape, jnp.float32))


def is_distribution(labels: Any) -> bool:
    """Whether the labels have an axis of all classes, which may be split over devices."""
    return isinstance(labels, Array) and jnp.issubdtype(labels.dtype, jnp.floating)


def target_from_labels(labels: Labels, classes: int, axis: int) -> ClassIds | Distribution | FewProbabilities:
    """The labels as what they are; `classes` counts those of all devices."""
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
    """int32 ids, −1 for every id that is no class: one meaning for every integer type, narrow, wide or unsigned."""
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    valid = labels >= 0
    if not isinstance(classes, int) or classes <= jnp.iinfo(labels.dtype).max:
        valid &= labels < classes
    return jnp.where(valid, labels.astype(jnp.int32), -1)
