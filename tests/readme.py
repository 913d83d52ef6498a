"""The README's Python."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def mesh_snippets():
    """The snippet of one device, and with the one line in the place of its own that the README has for more."""
    lines = dict(reversed(line.split("  # ")) for line in re.findall(r"^mesh = .*  # .*$", TEXT, re.MULTILINE))
    (snippet,) = (block for block in BLOCKS if lines["one device"] in block)
    return {devices: snippet.replace(lines["one device"], line) for devices, line in lines.items()}
