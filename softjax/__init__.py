"""Softmax and cross-entropy for JAX, with analytic gradients in every mode of differentiation.

>>> import math, jax, jax.numpy as jnp, softjax
>>> logits, labels = jnp.array([[0.0, 10.0, 15.0, 18.0, 20.0]]), jnp.array([4])
>>> print(softjax.cross_entropy(logits, labels).round(5), "hartleys")
0.05771 hartleys
>>> print(softjax.cross_entropy(logits, labels, base=math.e).round(5), "nats")
0.13288 nats

**Confident rows are exact.** Where one logit stands far above the others, 1 + Σ rounds to 1, and a loss that is made
with it is 0. Here nothing is added to what would swallow it.

>>> loss, gradient = jax.value_and_grad(softjax.cross_entropy)(jnp.array([40.0, 0.0, 0.0]), jnp.array(0), base=math.e)
>>> print(f"{loss:.2e}", *(f"{g:.2e}" for g in gradient))
8.50e-18 -8.50e-18 4.25e-18 4.25e-18

**Types.** float16, bfloat16 and float32 are accumulated in float32, float64 in float64; float8 is refused. Losses and
statistics come back in that type, gradients in the type of their argument, `softmax` and `log_softmax` in the type of
the logits. Nothing depends on `jax_numpy_dtype_promotion` or `jax_numpy_rank_promotion`.

>>> half = logits.astype(jnp.bfloat16)
>>> print(softjax.cross_entropy(half, labels).dtype, jax.grad(softjax.cross_entropy)(half, labels).dtype)
float32 bfloat16

**Edges.** A sample of weight 0 may hold anything, and has loss and gradient 0. If every weight is 0, or there are no
samples, the mean is 0.

>>> ignored = jnp.array([[jnp.nan, jnp.inf], [2.0, 0.0]]), jnp.array([-100, 1])
>>> value_and_grad = jax.value_and_grad(softjax.cross_entropy)
>>> value, gradient = value_and_grad(*ignored, base=math.e, weights=ignored[1] >= 0)
>>> print(value.round(4), *gradient.round(4).tolist()[0])
2.1269 0.0 0.0

A class id out of range has loss NaN and gradient 0; `validate_labels` names it. A label whose class has logit −inf has
loss +inf and a finite gradient; any other class of −inf takes no part. Classes that `where` leaves out are as if they
had been deleted: their probability and gradient are 0, and a label there has loss +inf. +inf at another class makes the
loss +inf, a NaN anywhere makes it NaN. A row in which no class exists has loss 0, and is not counted.

>>> x = jnp.array([0.0, -jnp.inf, 1.0])
>>> loss, gradient = value_and_grad(x, jnp.array(1), base=math.e)
>>> print(loss, *gradient.round(4))
inf 0.2689 -1.0 0.7311
>>> exist = jnp.array([True, True, False])
>>> print(softjax.cross_entropy(x, jnp.array(7)), softjax.cross_entropy(x, jnp.array(0), where=exist))
nan 0.0
"""

from softjax import losses, metrics
from softjax._api.cross_entropy import cross_entropy, distribution_cross_entropy, linear_cross_entropy
from softjax._api.divergence import divergence, linear_divergence
from softjax._api.linear_loss import linear_loss
from softjax._api.log_probabilities import TopK, linear_log_probabilities, linear_top_k, log_probabilities
from softjax._api.softmax import log_softmax, softmax
from softjax._api.statistics import linear_statistics, statistics
from softjax._args.labels import SparseLabels
from softjax._args.validation import validate_labels
from softjax._rows.statistics import Statistics

__all__ = [
    "SparseLabels",
    "Statistics",
    "TopK",
    "cross_entropy",
    "distribution_cross_entropy",
    "divergence",
    "linear_cross_entropy",
    "linear_divergence",
    "linear_log_probabilities",
    "linear_loss",
    "linear_statistics",
    "linear_top_k",
    "log_probabilities",
    "log_softmax",
    "losses",
    "metrics",
    "softmax",
    "statistics",
    "validate_labels",
]
