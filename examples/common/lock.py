"""A folder that one process at a time has to itself."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from common.settings import WrongInput

NAME = ".lock"


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
    path = folder / NAME
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
