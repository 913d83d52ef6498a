"""The base of the logarithm: nats (e), bits (2), hartleys (10).

log_b x = ln x / ln b, so the base divides values, and through autodiff gradients, by ln b; nothing else.
"""

import math

from softjax._types import Array


def from_nats(nats: Array, base: float) -> Array:
    """A number of nats in the unit of `base`: x / ln b."""
    return nats if base == math.e else nats / math.log(base)
