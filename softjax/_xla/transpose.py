"""Linear functions whose transpose is written by hand.

`lax.custom_linear_solve` is the public JAX function for this. It solves A y = b, and takes a function that solves
Aᵀ y = b for its transpose. It keeps this transpose under `vmap`, `jit` and derivatives of every order. JAX 0.10.2 has
`jax.custom_derivatives.linear_call`, too, but that has no batching rule, so `vmap` fails.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from softjax._xla import one_cpu


def with_transpose(
    forward: Callable[[Any], Any],
    transpose: Callable[[Any], Any],
    operand: Any,
    inverse: Callable[[Any], Any] = lambda result: result,
) -> Any:
    """`forward(operand)`, with `transpose` as the transpose that every transform uses.

    Equals: `forward(operand)`.

    Args:
        forward: a linear function of a pytree of arrays, whose result has the same structure, shapes and dtypes.
        transpose: its transpose.
        operand: the pytree.
        inverse: the inverse of `forward`. JAX differentiates it by the arrays that it closes over. The default is right
            only if `forward` closes over no array that has a derivative.
    """
    return lax.custom_linear_solve(inverse, operand, lambda _, b: forward(b), lambda _, b: transpose(b))


def compute_gradient_once(x: Float[Array, "..."]) -> Array:
    """`x`, whose gradient XLA computes once on one CPU.

    Equals: `x`.

    Logits of shape [batch, positions, classes] are often the result of a matmul, whose VJP reads their gradient twice.
    XLA on a CPU (jaxlib 0.10.2) transposes it for one of the two, and computes it again for that. It keeps the
    exponentials in memory until then: three arrays of the size of the logits instead of two. An optimization barrier
    does not help, because XLA removes barriers before this decision.

    XLA never computes a scatter twice, so the gradient passes through a scatter that changes no bit. A bfloat16 array
    is left alone: XLA would convert all of it to float32 for the scatter.
    """
    large = one_cpu.has_static_shape(x) and x.ndim > 2 and x.size >= 2**18 and x.dtype != jnp.bfloat16
    if not (large and one_cpu.on_one_cpu(x)):
        return x
    return with_transpose(lambda x: x, _scatter_negative_zero, x)


def _scatter_negative_zero(gradient: Array) -> Array:
    """The gradient, unchanged: −0 is added to its first entry, twice. XLA replaces a scatter to a single entry."""
    first_entry_twice = (jnp.zeros(2, jnp.int32),) * gradient.ndim
    return gradient.at[first_entry_twice].add(-0.0)


def add_with_transpose(
    add: Callable[[Array, Array], Array], back: Callable[[Array], Array], total: Array, x: Array
) -> Array:
    """total + P x for a linear P, computed by `add(total, x)`; `back(y)` = Pᵀ y is used for its transpose.

    Equals: `add(total, x)`.

    Derivatives of the fused losses transpose their backward pass. JAX's own transpose of a matmul that accumulates in
    float32 widens the other operand. Its transpose of a sum that is updated tile by tile copies the whole sum.

    The linear map is (x, total) ↦ (x, total + P x). It has an inverse, (x, y) ↦ (x, y − P x), so that derivatives by
    the arrays that P closes over are right, too.
    """

    def zero_of(x: Array) -> Array:
        """0, as the sum of no entries of x.

        JAX transposes a solve with respect to all of its operands or none. With this 0, `total` depends on x, too.
        """
        return jnp.sum(x[:0])

    same_x, result = with_transpose(
        lambda b: (b[0], add(b[1], b[0])),
        lambda b: (b[0] + back(b[1]), b[1]),
        (x, total + zero_of(x)),
        inverse=lambda y: (y[0], y[1] - add(jnp.zeros_like(total), y[0])),
    )
    return result + zero_of(same_x)
