"""What is measured beside the loss: functions of the `Statistics` of samples.

Each is a weighted mean over all samples of `s`, 0 if every weight is 0, and a finished number: batches are combined by
their weights, perplexities through the mean of their logarithms. Only `Calibration` adds up. Of arrays that are split
over a mesh, under `jit`, they are those of all samples; inside of `shard_map` those of one device. A sample of weight 0
takes no part, whatever it holds, nor does one in which no class exists. A label out of range is a miss.
"""

import operator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softjax._api.temperature import fit_temperature
from softjax._args import arrays
from softjax._args.types import Array, ArrayLike, Count, Float
from softjax._rows.edges import nan_where
from softjax._rows.reduction import reduce
from softjax._rows.statistics import Statistics, StatisticsArgument, check_statistics

__all__ = [
    "Calibration",
    "Curve",
    "accuracy",
    "brier_score",
    "calibration",
    "fit_temperature",
    "perplexity",
    "top_k_accuracy",
]


def accuracy(s: StatisticsArgument, weights: ArrayLike | None = None) -> Float[Array, ""]:
    """The share of samples whose label is the prediction, the first of equal logits.

    Args:
        s: `Statistics` of any shape.
        weights: boolean or real, broadcastable to the samples.

    Returns:
        A scalar in [0, 1], of the dtype of `s`.

    Raises:
        TypeError: `s` is not `Statistics`, or `weights` are not boolean or real.
        ValueError: `weights` do not broadcast to the samples.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), jnp.array([0, 0, 0]))
    >>> print(softjax.metrics.accuracy(s).round(4))
    0.6667
    """
    return top_k_accuracy(s, 1, weights)


def top_k_accuracy(s: StatisticsArgument, k: Count, weights: ArrayLike | None = None) -> Float[Array, ""]:
    """The share of samples whose label is among the k largest logits, of equal ones the first.

    Args:
        s: `Statistics` of any shape.
        k: an integer of at least 1.
        weights: boolean or real, broadcastable to the samples.

    Returns:
        A scalar in [0, 1], of the dtype of `s`.

    Raises:
        TypeError: `s` is not `Statistics`, `k` is no integer, or `weights` are not boolean or real.
        ValueError: `k` is less than 1, or `weights` do not broadcast to the samples.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]]), jnp.array([2, 0]))
    >>> print(softjax.metrics.top_k_accuracy(s, 2))
    0.5
    """
    s = check_statistics(s)
    return _weighted_mean(_is_in_top_k(s, arrays.positive_integer("k", k)), s, weights)


def perplexity(s: StatisticsArgument, weights: ArrayLike | None = None) -> Float[Array, ""]:
    """exp of the mean cross-entropy: as many equally likely classes would be as hard to guess.

    Args:
        s: `Statistics` of any shape.
        weights: boolean or real, broadcastable to the samples.

    Returns:
        A scalar of at least 1, of the dtype of `s`; 1 if every weight is 0, NaN if a label of other weight is out of
        range. Batches are combined by the weighted mean of its logarithm.

    Raises:
        TypeError: `s` is not `Statistics`, or `weights` are not boolean or real.
        ValueError: `weights` do not broadcast to the samples.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.zeros((2, 5)), jnp.array([1, 4]))
    >>> print(softjax.metrics.perplexity(s).round(4))
    5.0
    """
    s = check_statistics(s)
    return jnp.exp(_weighted_mean(s.cross_entropy, s, weights))


def brier_score(s: StatisticsArgument, weights: ArrayLike | None = None) -> Float[Array, ""]:
    """The mean of Σ_j (q_j − [j = y])² = 1 − 2 q_y + Σ_j q_j², of class ids.

    Of two classes it is twice the binary score of scikit-learn.

    Args:
        s: `Statistics` of any shape, of class ids.
        weights: boolean or real, broadcastable to the samples.

    Returns:
        A scalar in [0, 2], of the dtype of `s`; NaN if a label whose weight is not 0 is out of range.

    Raises:
        TypeError: `s` is not `Statistics`, or `weights` are not boolean or real.
        ValueError: `weights` do not broadcast to the samples.

    Source: Brier 1950, Monthly Weather Review 78.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0]))
    >>> print(softjax.metrics.brier_score(s).round(4))
    0.5487
    """
    s = check_statistics(s)
    q, others = jnp.exp(-s.cross_entropy), -jnp.expm1(-s.cross_entropy)
    # (1 − q)² + Σ_{j≠y} q_j². The first is exact. The second is at most as much, and S − q² but for a rounding of S
    # beside 1: of a sample that is so sure as to be lost in it, (1 − q)² < 1e-7, the score is right to a factor of 2.
    return _weighted_mean(others**2 + jnp.clip(s.collision - q**2, 0, others**2), s, weights)


class Curve(NamedTuple):
    """What `Calibration` holds of each bin, `[..., bins]`."""

    confidence: Array
    """The mean confidence; NaN where the bin is empty"""
    accuracy: Array
    """The share of hits; NaN where the bin is empty"""
    share: Array
    """Of all weight; 0 where the bin is empty"""


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "confidence", "correct"], meta_fields=[])
@dataclass(frozen=True)
class Calibration:
    """How often predictions of about the same confidence are right: sums over the samples of each bin, `[..., bins]`.

    It adds up over batches: by `+` and `sum`, in a `scan`, over devices by `jax.lax.psum`. Axes before that of the bins
    are those of a `vmap` or a `scan`.
    """

    weight: Any
    """Σ w"""
    confidence: Any
    """Σ w · confidence"""
    correct: Any
    """Σ w · hit"""

    def __add__(self, other: "Calibration") -> "Calibration":
        if not isinstance(other, Calibration):
            return NotImplemented
        if jnp.shape(self.weight)[-1:] != jnp.shape(other.weight)[-1:]:
            shapes = f"{jnp.shape(self.weight)} and {jnp.shape(other.weight)}"
            raise ValueError(f"`Calibration`s that are added must have the same bins, got {shapes}.")
        return jax.tree.map(operator.add, self, other)

    def __radd__(self, start: int) -> "Calibration":
        return self if isinstance(start, int) and start == 0 else NotImplemented  # `sum` starts with 0

    def expected_error(self) -> Array:
        """Σ_bins share · |accuracy − confidence|, 0 if every weight is 0."""
        total = jnp.sum(self.weight, -1)
        return _ratio(jnp.sum(jnp.abs(self.correct - self.confidence), -1), total, 0)

    def maximum_error(self) -> Array:
        """The largest |accuracy − confidence| of a bin, 0 if every weight is 0."""
        return jnp.max(_ratio(jnp.abs(self.correct - self.confidence), self.weight, 0), -1)

    def curve(self) -> Curve:
        """Of each bin the mean confidence, the accuracy and the share of weight, for a reliability diagram."""
        empty = jnp.asarray(self.weight) == 0
        confidence, hits = (nan_where(empty, _ratio(n, self.weight, 0)) for n in (self.confidence, self.correct))
        return Curve(confidence, hits, _ratio(self.weight, jnp.sum(self.weight, -1, keepdims=True), 0))


def calibration(s: StatisticsArgument, bins: Count = 15, weights: ArrayLike | None = None) -> Calibration:
    """How often the predictions of each confidence q_prediction = exp(−peak_entropy) are right.

    Args:
        s: `Statistics` of any shape.
        bins: how many bins of equal width share [0, 1]. A confidence in (i/bins, (i+1)/bins] is of bin i, and 0 of the
            first; one within 8 ulp above an edge is taken for the edge, which 1/2 of two equal logits may round past.
        weights: boolean or real, broadcastable to the samples.

    Returns:
        `Calibration`, to be added up and then asked for `expected_error()`, `maximum_error()` or `curve()`; inside of
        `shard_map` `jax.lax.psum(calibration(s), "data")` is that of all samples.

    Raises:
        TypeError: `s` is not `Statistics`, `bins` is no integer, or `weights` are not boolean or real.
        ValueError: `bins` is less than 1, or `weights` do not broadcast to the samples.

    Source: Guo et al. 2017, arXiv:1706.04599.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), jnp.array([0, 0, 0]))
    >>> measured = softjax.metrics.calibration(s, bins=5)
    >>> print(measured.weight, measured.expected_error().round(4))
    [0. 0. 0. 1. 2.] 0.3231
    """
    s, bins = check_statistics(s), arrays.positive_integer("bins", bins)
    w = _active_weights(weights, s)
    confidence, hit = jnp.exp(-s.peak_entropy), _is_in_top_k(s, 1)
    upwards = jnp.ceil(confidence * (bins * (1 - 8 * float(jnp.finfo(w.dtype).eps)))) - 1
    bin_of = jnp.where(confidence > 0, upwards, 0).astype(jnp.int32)  # NaN shows in the first
    in_bin = jax.nn.one_hot(jnp.clip(bin_of, 0, bins - 1), bins, dtype=bool)
    numbers = (w, w * jnp.where(w == 0, 0, confidence), w * hit.astype(w.dtype))
    samples = tuple(range(w.ndim))
    return Calibration(*(jnp.sum(jnp.where(in_bin, n[..., None], 0), samples) for n in numbers))


def _is_in_top_k(s, k):
    """Whether the label is among the k largest logits; −1 is the rank of none, 2³¹ − 1 of one that is left out."""
    return (s.label_rank >= 0) & (s.label_rank < min(k, 2**31 - 1))


def _weighted_mean(number, s, weights):
    return reduce(number.astype(s.cross_entropy.dtype), _active_weights(weights, s), "mean")


def _ratio(number, weight, empty):
    return jnp.where(weight == 0, empty, number / jnp.where(weight == 0, 1, weight))


def _active_weights(value: Any, s: Statistics) -> Float[Array, "*samples"]:
    """The weight of each sample, 1 for None. A row in which no class exists is not counted."""
    h = s.cross_entropy
    weights = arrays.weights(value, h.shape)
    weights = jnp.ones_like(h) if weights is None else jnp.broadcast_to(weights, h.shape).astype(h.dtype)
    return jnp.where((s.log_normalizer == -jnp.inf) & (h == 0), 0, weights)
