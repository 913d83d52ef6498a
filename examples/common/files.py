"""A pytree and the settings it came from, kept in one file that is replaced in one step.

Orbax is the tool for states of many shards and hosts. This one is a few kilobytes on one host: one file is written in
4 ms, where an Orbax step takes 70 and a folder of files, and replacing a file is as atomic as finalising a folder.
"""

import contextlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.run import refuse_other_settings
from common.settings import WrongInput

_SETTINGS = "settings"


class CheckpointError(WrongInput):
    """The file does not hold what the run needs; the message is one line."""


def write(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`. Whenever the program dies, the file is the old one or the new one, whole.

    Raises:
      WrongInput: if it cannot be written; the old file is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            # Before the rename: else a power cut may leave the new name on an empty file.
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()  # it may be what fills the disk
        raise WrongInput(f"cannot write {path}: {error.strerror}.") from error


def npz(tree: Any, **more: Any) -> bytes:
    """The leaves of `tree` as an `.npz` file, each under its path in the tree: `params/kernel`."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {**_named(tree), **more}
    np.savez(file, **arrays)
    return file.getvalue()


def save(path: Path, state: Any, settings: Mapping[str, Any]) -> None:
    """Writes the checkpoint. `settings` are what JSON can keep."""
    write(path, npz(state, **{_SETTINGS: json.dumps(settings)}))


def load(path: Path, like: Any, settings: dict[str, Any]) -> Any:
    """The state that `save` wrote at `path`.

    Args:
      path: the file.
      like: a state of the structure, shapes and dtypes that are expected.
      settings: what the state must have been saved with.

    Raises:
      WrongInput: if the file is damaged (CheckpointError), or was written with other settings or for another state.
    """
    arrays, saved = _read(path)
    refuse_other_settings(path, saved, settings)
    expected = _named(like)
    if _forms(arrays) != _forms(expected):
        raise CheckpointError(f"{path} holds another program's state.")
    return jax.tree.unflatten(jax.tree.structure(like), [jax.numpy.asarray(arrays[name]) for name in expected])


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    content = path.read_bytes()
    try:
        # Reading an entry to its end also checks its CRC.
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        return arrays, json.loads(arrays.pop(_SETTINGS).item())
    except Exception as error:  # a damaged zip fails in a dozen ways, each of which means this
        raise CheckpointError(f"{path} is damaged and cannot be read: --overwrite starts anew.") from error


def _named(tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _forms(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}
