"""Softmax and cross-entropy for JAX, with analytic gradients in every mode of differentiation.

>>> import math, jax, jax.numpy as jnp, softjax
>>> logits, labels = jnp.array([[0.0, 10.0, 15.0, 18.0, 20.0]]), jnp.array([4])
>>> print(softjax.cross_entropy(logits, labels).round(5), "hartleys")
0.05771 hartleys
>>> print(softjax.cross_entropy(logits, labels, base=math.e).round(5), "nats")
0.13288 nats

The `linear_*` functions fuse the last linear layer with the loss: the logits are never materialised. Functions with
an argument `axis_name` also take logits or kernels whose class dimension is sharded over a device mesh.

**Units.** Functions with an argument `base` default to base 10. `base=math.e` gives nats, as optax and torch do.

    hartleys by default (`base=10.0`; 2 gives bits)      nats
    ---------------------------------------------------  ---------------------------------------
    cross_entropy, linear_cross_entropy                  statistics, linear_statistics
    log_probabilities, linear_log_probabilities          linear_loss (`row_loss` reads nats)
    divergence, linear_divergence                        losses
    log_softmax, linear_top_k                            metrics
    distribution_cross_entropy

**Confident rows are exact.** Where one logit x_k stands far above the others, 1 + Σ_{j≠k} exp(x_j − x_k) rounds to 1.
A loss computed from this sum is 0. softjax keeps the sum over the other classes apart from the 1, with all its digits.

>>> loss, gradient = jax.value_and_grad(softjax.cross_entropy)(jnp.array([40.0, 0.0, 0.0]), jnp.array(0), base=math.e)
>>> print(f"{loss:.2e}", *(f"{g:.2e}" for g in gradient))
8.50e-18 -8.50e-18 4.25e-18 4.25e-18

**Dtypes.** Nothing depends on `jax_numpy_dtype_promotion` or `jax_numpy_rank_promotion`.

- Inputs of float16, bfloat16 and float32 accumulate in float32, float64 in float64. float8 raises a TypeError.
- Losses and statistics have the accumulation dtype. `softmax` and `log_softmax` have the dtype of the logits.
- A gradient has the dtype of its argument.

>>> half = logits.astype(jnp.bfloat16)
>>> print(softjax.cross_entropy(half, labels).dtype, jax.grad(softjax.cross_entropy)(half, labels).dtype)
float32 bfloat16

**Edge cases.** A masked class is one that `where` leaves out. It behaves as if it were deleted. The gradient is with
respect to the logits, with q = softmax(x) and p the label's distribution.

    row                                        loss     gradient
    -----------------------------------------  -------  ------------------------------------
    weight 0, whatever the row holds           0        0; not in the divisor of a mean
    no class exists (all masked)               0        0; not in the divisor of a mean
    class id out of range                      NaN      0; `validate_labels` names the label
    class id of a class with logit −inf        +inf     q − p, finite
    class id of a masked class                 +inf     0 at masked classes, q elsewhere
    distribution with mass at a masked class   finite   0 there; the mass is ignored
    distribution with mass at a logit of −inf  +inf     q Σ_j p_j − p
    another class has logit −inf               finite   0 there
    another class has logit +inf               +inf     may be NaN there
    every logit −inf, or any NaN               NaN      NaN

A mean is 0 if every weight is 0, or if there are no samples. With label smoothing every existing class has mass, so any
logit of −inf makes the loss +inf.

>>> ignored = jnp.array([[jnp.nan, jnp.inf], [2.0, 0.0]]), jnp.array([-100, 1])
>>> value_and_grad = jax.value_and_grad(softjax.cross_entropy)
>>> value, gradient = value_and_grad(*ignored, base=math.e, weights=ignored[1] >= 0)
>>> print(value.round(4), *gradient.round(4).tolist()[0])
2.1269 0.0 0.0
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
