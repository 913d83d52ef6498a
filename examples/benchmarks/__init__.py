"""Modules of `benchmark.py` and of the other programs that measure."""
