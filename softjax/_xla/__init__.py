"""Workarounds for XLA and JAX. The docstring of each function names the plain line that it equals."""
