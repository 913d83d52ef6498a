"""Where an array comes from, and so how it lies in memory."""

from typing import Any

from jax.core import Tracer

from softjax._args.types import Array


def is_transpose(matrix: Array) -> bool:
    """Whether the traced program makes `matrix` by transposing another array, as in `embedding.T`.

    Equals: False, at the cost of a copy.

    XLA (jaxlib 0.10.2) wants the operands of a loop in row-major order, so it copies a transposed kernel before the
    loop over the chunks. The caller passes the original array into the loop instead, and transposes nothing.
    """
    return _origin(matrix, ("primal",), ("convert_element_type",)) == "transpose"


def is_sum(x: Array) -> bool:
    """Whether the traced program makes `x` by an addition, as in `hidden @ kernel + bias`, also under `vmap`.

    Equals: False, at the cost of memory (`compute_sum_once`).
    """
    return _origin(x, ("primal", "val"), ("convert_element_type", "reshape")) == "add"


def _origin(array: Array, wrapped: tuple[str, ...], passed: tuple[str, ...]) -> str | None:
    """The name of the primitive that makes an array. None where it cannot be seen.

    JAX has no public function that tells where a tracer comes from.

    Args:
        wrapped: the attributes in which the tracers of derivatives and of `vmap` keep the tracer of the value.
        passed: primitives that do not count.
    """
    tracer: Any = array
    while isinstance(tracer, Tracer):
        equation = getattr(tracer, "parent", None)
        if equation is None:
            tracer = next((getattr(tracer, name) for name in wrapped if hasattr(tracer, name)), None)
        elif equation.primitive.name in passed:
            tracer = equation.in_tracers[0]
        else:
            return equation.primitive.name
    return None
