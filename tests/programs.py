"""One compiled program in the place of many: most of a test's time is tracing and compiling."""

import jax


def vjp(function, arguments, cotangent):
    """The value of a function and its gradients by the arguments, for this cotangent of the value."""

    @jax.jit
    def both(arguments, cotangent):
        value, pull = jax.vjp(function, *arguments)
        return value, pull(cotangent)

    return both(tuple(arguments), cotangent)
