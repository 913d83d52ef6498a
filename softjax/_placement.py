"""What can be known, when tracing, of where an array lies.

The choices made on it change speed, never meaning.
"""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from softjax._types import Array, Integer


def on_one_cpu() -> bool:
    """Whether everything lies on one CPU device: nothing is sharded, and a gather beats a comparison."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def class_ids(logits: Array, axis: int) -> Integer[Array, "..."]:
    """0, 1, 2 … along `axis`, in the shape of `logits` and, under Explicit axes, its sharding."""
    sharding = jax.typeof(logits).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.lax.broadcasted_iota(
        jnp.int32, logits.shape, axis % logits.ndim, out_sharding=sharding if explicit else None
    )
