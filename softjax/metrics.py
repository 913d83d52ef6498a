"""Metrics that are reported beside the loss: functions of `Statistics`.

Each metric is a weighted mean over all samples of `s`, 0 if every weight is 0. Combine the means of several batches by
the weights of the batches; combine perplexities through their logarithms. Only `Calibration` adds up over batches.

Samples of weight 0 are ignored, whatever they hold. So are samples in which no class exists. A class id out of range
counts as a wrong prediction.

Under `jit`, with arrays sharded over a mesh, a metric covers all samples. Inside a `shard_map` it covers the samples of
one device.
"""

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
    """The accuracy: the fraction of samples whose label is the prediction.

    Of equal largest logits, the prediction is the smallest class id.

    Args:
        s: `Statistics` of any shape, from `statistics` or `linear_statistics`.
        weights: boolean or real, broadcastable to the samples.

    Returns:
        A scalar in [0, 1], of the dtype of `s.cross_entropy`.

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
    """The top-k accuracy: the fraction of samples whose label is among the k largest logits.

    Equal logits are ranked by class id, the smaller id first.

    Args:
        s: as in `accuracy`.
        k: an integer of at least 1.
        weights: as in `accuracy`.

    Returns:
        A scalar in [0, 1], of the dtype of `s.cross_entropy`.

    Raises:
        TypeError: `s` is not `Statistics`, `k` is not an integer, or `weights` are not boolean or real.
        ValueError: `k` is less than 1, or `weights` do not broadcast to the samples.

    >>> import jax.numpy as jnp, softjax
    >>> s = softjax.statistics(jnp.array([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]]), jnp.array([2, 0]))
    >>> print(softjax.metrics.top_k_accuracy(s, 2))
    0.5
    """
    s = check_statistics(s)
    return _weighted_mean(_is_in_top_k(s, arrays.positive_integer("k", k)), s, weights)


def perplexity(s: StatisticsArgument, weights: ArrayLike | None = None) -> Float[Array, ""]:
    """The perplexity, exp of the mean cross-entropy in nats.

    A uniform guess among this many classes has the same cross-entropy. To combine batches, take the weighted mean of
    the logarithms.

    Args:
        s: as in `accuracy`.
        weights: as in `accuracy`.

    Returns:
        A scalar of at least 1, of the dtype of `s.cross_entropy`. It is 1 if every weight is 0, and NaN if a class id
        of non-zero weight is out of range.

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
    """The Brier score, the mean of Σ_j (q_j − p_j)², where p_j is [j = y] for a class id y.

    It measures accuracy and calibration together; 0 is best. For two classes it is twice the binary score of
    scikit-learn.

    Args:
        s: as in `accuracy`.
        weights: as in `accuracy`.

    Returns:
        A scalar in [0, 2], of the dtype of `s.cross_entropy`; NaN if a class id of non-zero weight is out of range.

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
    return _weighted_mean(s.brier_score, s, weights)


class Curve(NamedTuple):
    """A reliability diagram: one value per bin of a `Calibration`, each `[..., bins]`.

    Attributes:
        confidence: the mean confidence; NaN where the bin is empty.
        accuracy: the accuracy; NaN where the bin is empty.
        share: the fraction of the total weight; 0 where the bin is empty.
    """

    confidence: Array
    accuracy: Array
    share: Array


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "confidence", "correct", "error"], meta_fields=[])
@dataclass(frozen=True)
class Calibration:
    """Sums over the samples of each confidence bin, each `[..., bins]`, as `calibration` returns them.

    Instances add up: over batches by `+` and `sum`, in a `scan`, over devices by `jax.lax.psum`. Axes before the bins
    come from a `vmap` or a `scan`.

    Attributes:
        weight: Σ w.
        confidence: Σ w · confidence.
        correct: Σ w · [the prediction is the label].
        error: what rounding took off these three sums, zeros by default. So counts stay right beyond 2²⁴.
    """

    weight: Any
    confidence: Any
    correct: Any
    error: Any = None

    def __post_init__(self) -> None:
        if self.error is None:
            object.__setattr__(self, "error", tuple(jnp.zeros_like(total) for total in self._sums))

    @property
    def _sums(self) -> tuple[Any, Any, Any]:
        return self.weight, self.confidence, self.correct

    @property
    def _excess(self) -> Any:
        """Σ w · ([the prediction is the label] − confidence)"""
        _, confidence_error, correct_error = self.error
        return (self.correct - self.confidence) + (correct_error - confidence_error)

    def __add__(self, other: "Calibration") -> "Calibration":
        if not isinstance(other, Calibration):
            return NotImplemented
        if jnp.shape(self.weight)[-1:] != jnp.shape(other.weight)[-1:]:
            shapes = f"{jnp.shape(self.weight)} and {jnp.shape(other.weight)}"
            raise ValueError(f"`Calibration`s that are added must have the same bins, got {shapes}.")
        pairs = map(_add_exactly, self._sums, self.error, other._sums, other.error)
        (weight, confidence, correct), errors = zip(*pairs, strict=True)
        return Calibration(weight, confidence, correct, errors)

    def __radd__(self, start: int) -> "Calibration":
        return self if isinstance(start, int) and start == 0 else NotImplemented  # `sum` starts from 0

    def expected_error(self) -> Array:
        """The expected calibration error, Σ_bins share · |accuracy − confidence|.

        `share` is the bin's fraction of the total weight. The error is 0 if every weight is 0.
        """
        total_weight = jnp.sum(self.weight, -1)
        return _ratio(jnp.sum(jnp.abs(self._excess), -1), total_weight)

    def maximum_error(self) -> Array:
        """The maximum calibration error: the largest |accuracy − confidence| of a bin, 0 if every weight is 0."""
        return jnp.max(_ratio(jnp.abs(self._excess), self.weight), -1)

    def curve(self) -> Curve:
        """The mean confidence, the accuracy and the fraction of the weight in each bin, for a reliability diagram."""
        empty = jnp.asarray(self.weight) == 0
        confidence, accuracy = (nan_where(empty, _ratio(sums, self.weight)) for sums in (self.confidence, self.correct))
        return Curve(confidence, accuracy, _ratio(self.weight, jnp.sum(self.weight, -1, keepdims=True)))


def calibration(s: StatisticsArgument, bins: Count = 15, weights: ArrayLike | None = None) -> Calibration:
    """The calibration of the predictions, in bins of the confidence q_prediction = exp(−peak_entropy).

    It compares confidence with accuracy: of predictions with confidence 0.8, a calibrated classifier has 80 % right.

    Args:
        s: as in `accuracy`.
        bins: the number of bins, of equal width, that divide [0, 1]. Bin i holds confidences in (i/bins, (i+1)/bins]; a
            confidence of 0 belongs to bin 0. A confidence at most 8 ulp above an edge counts as the edge: rounding may
            lift the 1/2 of two equal logits above it.
        weights: as in `accuracy`.

    Returns:
        `Calibration`, with `expected_error()`, `maximum_error()` and `curve()`. Add those of several batches first.
        Inside a `shard_map`, `jax.lax.psum(calibration(s), "data")` covers all samples.

    Raises:
        TypeError: `s` is not `Statistics`, `bins` is not an integer, or `weights` are not boolean or real.
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
    confidence, correct = jnp.exp(-jnp.where(w == 0, 0, s.peak_entropy)), _is_in_top_k(s, 1)
    index = jnp.ceil(confidence * (bins * (1 - 8 * float(jnp.finfo(w.dtype).eps)))) - 1
    index = jnp.where(confidence > 0, index, 0).astype(jnp.int32)  # a NaN confidence goes to bin 0, where it shows
    in_bin = jax.nn.one_hot(jnp.clip(index, 0, bins - 1), bins, dtype=bool)
    terms = (w, w * confidence, w * correct.astype(w.dtype))
    bound_sample_axes = tuple(range(w.ndim))
    return Calibration(*(jnp.sum(jnp.where(in_bin, term[..., None], 0), bound_sample_axes) for term in terms))


def _add_exactly(a, a_error, b, b_error):
    """(a + a_error) + (b + b_error) as a float and what its rounding took off; 0 if it is not finite."""
    # Knuth's two-sum, whose error is exact whichever summand is larger; then the errors are added to the sum.
    total = a + b
    b_rounded = total - a
    error = (a - (total - b_rounded)) + (b - b_rounded) + (a_error + b_error)
    rounded = jnp.where(jnp.isfinite(total), total + error, total)
    return rounded, jnp.where(jnp.isfinite(rounded), error - (rounded - total), 0)


def _is_in_top_k(s, k):
    """Whether the label is among the k largest logits. Ranks −1 (no valid label) and 2³¹ − 1 (masked) are not."""
    return (s.label_rank >= 0) & (s.label_rank < min(k, 2**31 - 1))


def _weighted_mean(values, s, weights):
    return reduce(values.astype(s.cross_entropy.dtype), _active_weights(weights, s), "mean")


def _ratio(numerator, weight):
    """numerator / weight, 0 where the weight is 0."""
    return jnp.where(weight == 0, 0, numerator / jnp.where(weight == 0, 1, weight))


def _active_weights(value: Any, s: Statistics) -> Float[Array, "*samples"]:
    """The weight of each sample, 1 for None, and 0 for a row in which no class exists."""
    h = s.cross_entropy
    weights = arrays.weights(value, h.shape)
    weights = jnp.ones_like(h) if weights is None else jnp.broadcast_to(weights, h.shape).astype(h.dtype)
    return jnp.where((s.log_normalizer == -jnp.inf) & (h == 0), 0, weights)
