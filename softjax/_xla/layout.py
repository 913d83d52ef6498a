"""The layout of a kernel in memory."""

from typing import Any

from jax.core import Tracer

from softjax._args.types import Array


def is_transpose(matrix: Array) -> bool:
    """Whether the traced program makes `matrix` by transposing another array, as in `embedding.T`.

    Equals: False, at the cost of a copy.

    XLA (jaxlib 0.10.2) wants the operands of a loop in row-major order, so it copies a transposed kernel before the
    loop over the chunks. The caller passes the original array into the loop instead, and transposes nothing.

    JAX has no public function that tells where a tracer comes from. The answer is False where it cannot be seen.
    """
    tracer: Any = matrix
    while isinstance(tracer, Tracer):
        equation = getattr(tracer, "parent", None)
        if equation is None:  # the tracer of a derivative wraps that of the value
            tracer = getattr(tracer, "primal", None)
        elif equation.primitive.name == "convert_element_type":
            tracer = equation.in_tracers[0]
        else:
            return equation.primitive.name == "transpose"
    return False
