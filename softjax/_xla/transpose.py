"""Linear functions whose transpose is written by hand.

`lax.custom_linear_solve` is the public JAX function for this. It solves A y = b, and takes a function that solves
Aᵀ y = b for its transpose. It keeps this transpose under `vmap`, `jit` and derivatives of every order. JAX 0.10.2 has
`jax.custom_derivatives.linear_call`, too, but that has no batching rule, so `vmap` fails.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
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


def compute_once(x: Float[Array, "..."]) -> Array:
    """`x`, which XLA on one CPU computes once, and whose gradient it computes once.

    Equals: `x`.

    Logits of shape [batch, positions, classes] are often the result of a matmul. XLA on a CPU (jaxlib 0.10.2) spends a
    third array of their size, at two places:

    - Forward: it adds a bias to the result of the matmul in each operation that reads the logits. So it keeps this
      result while the logits and their exponentials are in memory.
    - Backward: the VJP of the matmul reads the gradient twice, once transposed. XLA computes it for each of the two,
      and keeps the exponentials until then.

    An optimization barrier does not help, because XLA removes barriers before these decisions. XLA never computes a
    scatter twice. So the logits and their gradient each pass through a scatter that changes no bit, and that XLA does
    in place. Two arrays remain, the ones of the logits and the exponentials, and later of the gradient and its
    transpose. The scatter reads [rows, classes], because XLA cannot write an array in place of one of another shape.

    Three cases are left alone: a matrix of logits takes two arrays as it is; small logits do not matter; of bfloat16
    logits, XLA would convert all to float32 for the scatter.
    """
    may_be_large = one_cpu.has_static_shape(x) and x.ndim > 1 and x.size >= 2**14 and x.dtype != jnp.bfloat16
    if not (may_be_large and one_cpu.on_one_cpu(x)):  # under `vmap`, of an example
        return x
    return with_transpose(_scatter_nothing, _scatter_nothing, x)


@custom_vmap
def _scatter_nothing(x: Array) -> Array:
    """`x`: −0 is added to its first entry, twice. XLA replaces a scatter to a single entry."""
    if x.ndim < 3 or x.size < 2**18:
        return x
    rows = x.reshape(-1, x.shape[-1])
    first_entry_twice = (jnp.zeros(2, jnp.int32),) * 2
    return rows.at[first_entry_twice].add(-0.0).reshape(x.shape)


@_scatter_nothing.def_vmap
def _scatter_nothing_of_batch(size: int, batched: Any, x: Array) -> tuple[Array, bool]:
    # The batch counts as rows: whether the logits are large, or a matrix, is known only with all batch axes.
    return _scatter_nothing(x), True


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
