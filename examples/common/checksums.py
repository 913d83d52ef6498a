"""The checksums of a folder's files, kept beside them: they tell whether the folder is still what was written.

Their file is what `sha256sum` makes and `sha256sum --check` reads.
"""

import hashlib
from pathlib import Path

NAME = "SHA256SUMS"


def write(folder: Path) -> None:
    (folder / NAME).write_bytes(_of_files_in(folder))


def hold(folder: Path) -> bool:
    """Whether `write` would write what it has written: no file is lost, added or changed, nor are the checksums."""
    try:
        return (folder / NAME).read_bytes() == _of_files_in(folder)
    except OSError:
        return False


def _of_files_in(folder: Path) -> bytes:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return "".join(f"{_sha256(folder / name)}  {name}\n" for name in names if name != NAME).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
