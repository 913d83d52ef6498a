"""How a kernel lies in memory."""

from typing import Any

from jax.core import Tracer

from softjax._args.types import Array


def is_transpose(matrix: Array) -> bool:
    """Whether the program being traced makes `matrix` by transposing another, as in `embedding.T`.

    A loop in XLA wants its operands row by row: it would copy the transpose, but takes the other matrix as it is. JAX
    has no public word for where a tracer comes from. Where it does not tell, the answer is no, and the copy is made.
    """
    tracer: Any = matrix
    while isinstance(tracer, Tracer):
        equation = getattr(tracer, "parent", None)
        if equation is None:
            tracer = getattr(tracer, "primal", None)
        elif equation.primitive.name == "convert_element_type":
            tracer = equation.in_tracers[0]
        else:
            return equation.primitive.name == "transpose"
    return False
