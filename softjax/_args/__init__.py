"""Argument checks: static facts, refused by the name of the argument."""
