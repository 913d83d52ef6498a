"""Saves and resumes a training run: its folder, lock, checkpoints, results and exit status.

    @runs.exit_status
    def main():
        with runs.open_run(folder, options, settings, RESULTS, every=100, last=600) as run:
            state = run.restore(initial_state())  # of the last checkpoint, if there is one
            with run.finish_steps():
                for step in range(state.step + 1, 601):
                    state = train_step(state)
                    if run.is_due(step):
                        run.save(step, state)
            run.publish(results)

A checkpoint is a folder with the state, as Orbax writes it, the settings, and the checksums of both. It is written
under a temporary name and renamed when it is complete. So a kill never leaves half a checkpoint, and a checkpoint that
does not match its checksums was damaged by something else.
"""

import contextlib
import datetime
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import filelock
import jax
import numpy as np
import orbax.checkpoint as ocp

from common import program
from common.program import WrongInput
from common.settings import RunOptions

FOLDER = "checkpoints"
LOCK = ".lock"
CHECKSUMS = "SHA256SUMS"
_KEPT = 2

exit_status = program.exit_status("--resume goes on from the last checkpoint.")
"""Decorates `main`: it returns the exit status 0, 2 for wrong input and a failed write, or 130 for an interrupt."""


@contextlib.contextmanager
def open_run(
    folder: Path, options: RunOptions, settings: dict[str, Any], results: Sequence[str], *, every: int, last: int
) -> "Iterator[Run]":
    """Locks the folder and yields the run in it: a new one, or the one to resume.

    Args:
      folder: the folder of the run, made if needed.
      options: what the user wants to do with an earlier run.
      settings: the settings that decide the result; a run is only resumed with the same.
      results: names of the files that a finished run leaves in the folder, in the order of writing.
      every: steps between checkpoints.
      last: the last step, which is saved too.

    Raises:
      WrongInput: if an earlier run would be lost, another process uses the folder, or it cannot be written to.
    """
    program.make_writable(folder)
    with lock(folder):
        resume = _is_resumed(folder, options, results)
        yield Run(folder, settings, results, every=every, last=last, replace=not resume)


def _is_resumed(folder: Path, options: RunOptions, results: Sequence[str]) -> bool:
    checkpoints = [FOLDER] if _saved_steps(folder / FOLDER) else []
    present = [*checkpoints, *(name for name in results if (folder / name).exists())]
    if options.overwrite or not present:
        if options.resume:
            # A run may be killed before its first checkpoint. Its restart must not fail for that.
            print(f"No checkpoint in {folder} yet: starting from the beginning.")
        return False
    if not options.resume:
        ways = "pass --resume to go on with it, --overwrite to replace it, or another --output"
        raise WrongInput(f"{folder} already holds a run ({present[0]}): {ways}.")
    if not checkpoints:
        raise WrongInput(f"{folder} holds {present[0]} but no {FOLDER} to resume: pass another --output.")
    return True


@contextlib.contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of the folder, which must exist.

    The operating system holds the lock and frees it when the process ends, even by a kill. The file names the owner and
    is never deleted: otherwise one process could lock the deleted file and another a new one.

    Args:
      folder: the folder to lock.
      wait: wait until the folder is free.

    Raises:
      WrongInput: if another process has the lock and `wait` is false.
    """
    path = folder / LOCK
    file_lock = filelock.FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        file_lock.acquire()
    except filelock.Timeout as error:
        owner = path.read_text(encoding="utf-8") or "another process"
        raise WrongInput(f"{folder} is in use by {owner}: wait until it has ended, or use another folder.") from error
    try:
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        path.write_text(f"process {os.getpid()}, which began at {now}", encoding="utf-8")
        yield
    finally:
        file_lock.release()


class Run:
    """A run in its folder, with its last two checkpoints.

    A run that replaces an earlier one keeps the earlier checkpoints until it has saved its first.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        results: Sequence[str] = (),
        *,
        every: int = 1,
        last: int = 0,
        replace: bool = False,
    ):
        _silence_orbax()
        self._folder, self._checkpoints = folder, folder.resolve() / FOLDER
        self._settings, self._results, self._every, self._last = settings, results, every, last
        self._stopping = False
        self._checkpoints.mkdir(exist_ok=True)
        for unfinished in self._checkpoints.glob(".*.tmp"):
            shutil.rmtree(unfinished)
        self._replaced = _saved_steps(self._checkpoints) if replace else []

    @contextlib.contextmanager
    def finish_steps(self) -> Iterator[None]:
        """Within it, the first SIGINT or SIGTERM lets the step finish, and `save` then ends the program.

        A second signal ends the program at once.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            if self._stopping:
                raise KeyboardInterrupt
            self._stopping = True

        handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        return self._stopping or step % self._every == 0 or step == self._last

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint, and waits for the disk: a failure is known before the run goes on.

        Raises:
          WrongInput: if the state cannot be written.
          KeyboardInterrupt: after a signal, when the state is saved and the run has steps left.
        """
        unfinished = self._checkpoints / f".{step}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)  # a thread of Orbax may have written after a failed save
        try:
            unfinished.mkdir()
            with _orbax() as orbax:
                orbax.save(unfinished / "state", args=ocp.args.StandardSave(_flat(state)))
            (unfinished / "settings.json").write_text(json.dumps(self._settings), encoding="utf-8")
            write_checksums(unfinished)
            self._remove(self._replaced)
            self._replaced = []
            unfinished.rename(self._path(step))
        except Exception as error:
            shutil.rmtree(unfinished, ignore_errors=True)  # these files may be what fills the disk
            raise WrongInput(f"cannot save step {step}; {self.last_good()}: {_first_line(error)}") from error
        self._remove(self._steps()[:-_KEPT])
        if self._stopping and step != self._last:
            raise KeyboardInterrupt

    def restore(self, initial_state: Any) -> Any:
        """The state of the last checkpoint, or `initial_state` if there is none.

        Args:
          initial_state: has the structure, shapes, dtypes and shardings of the result.

        Raises:
          WrongInput: if the checkpoint is damaged, or belongs to other settings or another program.
        """
        if not self._steps():
            return initial_state
        path = self._path(self._steps()[-1])
        if not is_intact(path):
            raise WrongInput(f"{path} is damaged; {self.last_good()}. Delete {path} to go on without it.")
        saved, now = json.loads((path / "settings.json").read_bytes()), self._settings
        changed = [key for key in {**saved, **now} if saved.get(key) != now.get(key)]
        if changed:
            pairs = ", ".join(f"{key} was {saved.get(key)!r} and is now {now.get(key)!r}" for key in changed)
            raise WrongInput(f"{path} belongs to a run with other settings: {pairs}.")
        template = _flat(initial_state)
        try:
            with _orbax() as orbax:
                shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
                leaves = orbax.restore(path / "state", args=ocp.args.StandardRestore(shapes))
        except Exception as error:  # Orbax and its storage raise many types
            raise WrongInput(f"{path} holds another program's state: {_first_line(error)}") from error
        return jax.tree.unflatten(jax.tree.structure(initial_state), [leaves[name] for name in template])

    def last_good(self) -> str:
        """Names the last intact checkpoint, for messages."""
        good = (self._path(step) for step in reversed(self._steps()) if is_intact(self._path(step)))
        path = next(good, None)
        return f"the last good checkpoint is {path}" if path else "there is no good checkpoint"

    def publish(self, results: Mapping[str, bytes]) -> None:
        """Writes the results. All are complete before the first is written: an error in making one loses no file."""
        for name in self._results:
            program.write(self._folder / name, results[name])

    def _steps(self) -> list[int]:
        return [step for step in _saved_steps(self._checkpoints) if step not in self._replaced]

    def _path(self, step: int) -> Path:
        return self._checkpoints / str(step)

    def _remove(self, steps: list[int]) -> None:
        for step in steps:
            # Renamed first: a kill in the middle must not leave half a checkpoint.
            shutil.rmtree(self._path(step).rename(self._checkpoints / f".{step}.old.tmp"))


def _saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def _orbax() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _silence_orbax() -> None:
    """Orbax logs its errors, and after a failed write its threads print tracebacks. It also raises these errors."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    hook = sys.unraisablehook
    if hook.__module__ == __name__:
        return

    def print_for_main_thread(error: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            hook(error)

    sys.unraisablehook = print_for_main_thread


def _flat(tree: Any) -> dict[str, Any]:
    """The leaves by their paths: Orbax does not know every class of a tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def write_checksums(folder: Path) -> None:
    """Writes the checksums of the folder's files, in the format of `sha256sum --check`."""
    (folder / CHECKSUMS).write_bytes(_checksums(folder))


def is_intact(folder: Path) -> bool:
    """Whether no file was lost, added or changed since `write_checksums`."""
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
    """The content of an `.npz` file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()
