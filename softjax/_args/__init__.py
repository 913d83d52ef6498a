"""Argument checks: each function returns a usable value, or raises an error that names the argument."""
