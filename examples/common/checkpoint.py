"""The folder of a run: one process has it to itself, no run is lost by mistake, and its last two checkpoints are whole.

A checkpoint is a folder: the state, as Orbax writes it, the settings, and the checksums of both. It is written under
another name and gets its own when all of it is there; before it is deleted, it loses its name. So where it does not
agree with its checksums, something other than the program's death damaged it.
"""

import contextlib
import datetime
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import orbax.checkpoint as ocp

from common import program, settings
from common.program import WrongInput

FOLDER = "checkpoints"
LOCK = ".lock"
CHECKSUMS = "SHA256SUMS"
_KEPT = 2


@contextlib.contextmanager
def begun(
    folder: Path, options: settings.Run, decisive: dict[str, Any], results: Sequence[str]
) -> "Iterator[Checkpoints]":
    """Makes the folder, has it to itself within, and yields the checkpoints of the run that goes on or begins there.

    Args:
      folder: of the run.
      options: what the user wants.
      decisive: the settings that a checkpoint must have been saved with.
      results: the names of the files that a finished run leaves there.

    Raises:
      WrongInput: if a run would be lost, another process is running there, or nothing can be written.
    """
    program.make_writable(folder)
    with held(folder):
        yield Checkpoints(folder / FOLDER, decisive, anew=not _resumes(folder, options, results))


def _resumes(folder: Path, options: settings.Run, results: Sequence[str]) -> bool:
    checkpoints = [FOLDER] if _steps_in(folder / FOLDER) else []
    present = [*checkpoints, *(name for name in results if (folder / name).exists())]
    if options.overwrite or not present:
        if options.resume:
            # A run may be killed before its first checkpoint, and its restart must not fail for that.
            print(f"No checkpoint in {folder} yet: starting from the beginning.")
        return False
    if not options.resume:
        ways = "pass --resume to go on with it, --overwrite to replace it, or another --output"
        raise WrongInput(f"{folder} already holds a run ({present[0]}): {ways}.")
    if not checkpoints:
        raise WrongInput(f"{folder} holds {present[0]} but no {FOLDER} to resume: pass another --output.")
    return True


@contextlib.contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Within it, no other process holds the folder.

    The operating system holds the lock, and frees it when the process ends, however it ends. The file says who has it,
    and stays: were it deleted, one process could lock the old file while another locks a new one.

    Args:
      folder: it exists.
      wait: for another process to leave the folder.

    Raises:
      WrongInput: if another process holds the folder, and there is no waiting for it.
    """
    path = folder / LOCK
    lock = filelock.FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        holder = path.read_text(encoding="utf-8") or "another process"
        raise WrongInput(f"{folder} is in use by {holder}: wait until it has ended, or use another folder.") from error
    try:
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        path.write_text(f"process {os.getpid()}, which began at {now}", encoding="utf-8")
        yield
    finally:
        lock.release()


class Checkpoints:
    """In `folder`, one folder for each step; the last two are kept.

    Where a run begins `anew`, the checkpoints of an earlier one are no longer its own, and stay until it has saved one.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, anew: bool = False):
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what Orbax tells of here, it raises too
        self.folder = folder.resolve()
        self.folder.mkdir(exist_ok=True)
        for rest in self.folder.glob(".*.tmp"):
            shutil.rmtree(rest)
        self._settings = settings
        self._earlier = _steps_in(self.folder) if anew else []

    def last(self) -> str:
        """In words, for messages."""
        for step in reversed(self._steps()):
            if intact(self._at(step)):
                return f"the last good checkpoint is {self._at(step)}"
        return "there is no good checkpoint"

    def save(self, step: int, state: Any) -> None:
        """Writes the state in the foreground: where that fails, it is known before the run goes on."""
        written = self._temporary(step)
        if written.exists():  # Orbax's threads may have written on after a save that failed
            shutil.rmtree(written)
        try:
            written.mkdir()
            with _orbax() as orbax:
                orbax.save(written / "state", args=ocp.args.StandardSave(_named(state)))
            (written / "settings.json").write_text(json.dumps(self._settings), encoding="utf-8")
            seal(written)
            self._remove(self._earlier)
            self._earlier = []
            written.rename(self._at(step))
        except Exception as error:
            shutil.rmtree(written, ignore_errors=True)  # it may be what fills the disk
            raise WrongInput(f"cannot save step {step}; {self.last()}: {_first_line(error)}") from error
        self._remove(self._steps()[:-_KEPT])

    def restore(self, like: Any) -> Any:
        """The last state, or `like` if there is none.

        Args:
          like: a state of the structure, shapes, types and shardings that are expected.

        Raises:
          WrongInput: if the checkpoint is damaged, or was written with other settings or for another state.
        """
        steps = self._steps()
        if not steps:
            return like
        where = self._at(steps[-1])
        if not intact(where):
            raise WrongInput(f"{where} is damaged; {self.last()}. Delete {where} to go on without it.")
        self._refuse_other_settings(where)
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like))
        try:
            with _orbax() as orbax:
                named = orbax.restore(where / "state", args=ocp.args.StandardRestore(shapes))
        except Exception as error:  # Orbax and its storage raise anything
            raise WrongInput(f"{where} holds another program's state: {_first_line(error)}") from error
        return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in _named(like)])

    def _refuse_other_settings(self, where: Path) -> None:
        saved, now = json.loads((where / "settings.json").read_bytes()), self._settings
        changed = [key for key in {**saved, **now} if saved.get(key) != now.get(key)]
        if changed:
            pairs = ", ".join(f"{key} was {saved.get(key)!r} and is now {now.get(key)!r}" for key in changed)
            raise WrongInput(f"{where} belongs to a run with other settings: {pairs}.")

    def _steps(self) -> list[int]:
        return [step for step in _steps_in(self.folder) if step not in self._earlier]

    def _at(self, step: int) -> Path:
        return self.folder / str(step)

    def _temporary(self, step: int) -> Path:
        return self.folder / f".{step}.tmp"

    def _remove(self, steps: list[int]) -> None:
        for step in steps:
            shutil.rmtree(self._at(step).rename(self.folder / f".{step}.old.tmp"))


def _steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def _orbax() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def seal(folder: Path) -> None:
    """Writes the checksums of the folder's files beside them, in a file that `sha256sum --check` reads."""
    (folder / CHECKSUMS).write_bytes(_checksums(folder))


def intact(folder: Path) -> bool:
    """Whether `seal` would write what it has written: no file is lost, added or changed, nor are the checksums."""
    try:
        return (folder / CHECKSUMS).read_bytes() == _checksums(folder)
    except OSError:
        return False


def _checksums(folder: Path) -> bytes:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return "".join(f"{_sha256(folder / name)}  {name}\n" for name in names if name != CHECKSUMS).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def npz(arrays: Mapping[str, Any]) -> bytes:
    """Arrays that are no checkpoint, as the bytes of an `.npz` file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
