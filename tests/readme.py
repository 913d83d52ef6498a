"""Parts of the README, for the tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def prose(title):
    """The section with this title, without its code blocks."""
    (section,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    return re.sub(r"```.*?```", "", section, flags=re.DOTALL)


def links():
    """The files that the README links to, and the headings of its own."""
    targets = {target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target}
    return {target for target in targets if target[0] != "#"}, {target[1:] for target in targets if target[0] == "#"}


def mesh_snippets():
    """The mesh snippet for one device, and copies of it with the README's mesh line for many devices and hosts."""
    lines = dict(reversed(line.split("  # ")) for line in re.findall(r"^mesh = .*  # .*$", TEXT, re.MULTILINE))
    (snippet,) = (block for block in BLOCKS if lines["one device"] in block)
    return {devices: snippet.replace(lines["one device"], line) for devices, line in lines.items()}
