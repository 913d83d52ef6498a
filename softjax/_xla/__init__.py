"""Workarounds for the compiler. Each function equals the plain line that its docstring names."""
