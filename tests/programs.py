"""A value and its VJP by one compiled program. Most of a test's time is tracing and compiling."""

import jax


def vjp(function, arguments, cotangent):
    """The value of a function and its VJP: the gradients by the arguments for a cotangent of the value."""

    @jax.jit
    def both(arguments, cotangent):
        value, pull = jax.vjp(function, *arguments)
        return value, pull(cotangent)

    return both(tuple(arguments), cotangent)
