"""Modules of `max_margin.py`."""
