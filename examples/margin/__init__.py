"""The parts of `max_margin.py`."""
