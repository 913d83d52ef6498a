"""The folder of a run: begun, resumed or overwritten, and never lost by mistake."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from common import lock as lock
from common import settings as _config
from common.settings import WrongInput


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(_config.Source):
    """The options of an example that trains; adds to those of every example what becomes of an earlier run."""

    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on from the folder's last checkpoint, with the settings of the run that wrote it."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start anew in a folder that holds a run."""


Options = TypeVar("Options", bound=Source)


def parse(kind: type[Options], argv: Sequence[str] | None, default_config: Path) -> Options:
    """The settings of the file that `--config` names, overridden by the other options in `argv`.

    Raises:
      WrongInput: for a file or an option that cannot be used.
    """
    arguments = _config.parse(kind, argv, default_config)
    if arguments.resume and arguments.overwrite:
        raise WrongInput("--resume and --overwrite contradict each other: pass one of them.")
    return arguments


@contextlib.contextmanager
def begun(folder: Path, arguments: Source, checkpoint: str, results: Sequence[str]) -> Iterator[bool]:
    """Makes the folder, has it to itself within, and yields whether the run goes on from the checkpoint in it.

    Args:
      folder: of the run.
      arguments: what the user wants.
      checkpoint: the name of the checkpoint, a file or a folder, in `folder`.
      results: the names of the files that a finished run leaves there.

    Raises:
      WrongInput: if a run would be lost, another process is running there, or nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WrongInput(f"cannot write to the output folder {folder}: {error.strerror}.") from error
    with lock.held(folder):
        yield _resumes(folder, arguments, checkpoint, results)


def _resumes(folder: Path, arguments: Source, checkpoint: str, results: Sequence[str]) -> bool:
    present = [name for name in (checkpoint, *results) if (folder / name).exists()]
    if arguments.overwrite or not present:
        if arguments.resume:
            # A run may be killed before its first checkpoint, and its restart must not fail for that.
            print(f"No checkpoint in {folder} yet: starting from the beginning.")
        return False
    if not arguments.resume:
        ways = "pass --resume to go on with it, --overwrite to replace it, or another --output"
        raise WrongInput(f"{folder} already holds a run ({present[0]}): {ways}.")
    if checkpoint not in present:
        raise WrongInput(f"{folder} holds {present[0]} but no {checkpoint} to resume: pass another --output.")
    return True


def refuse_other_settings(where: Path, saved: dict[str, object], settings: dict[str, object]) -> None:
    """A checkpoint is for the settings of the run that wrote it."""
    changed = [k for k in {**saved, **settings} if saved.get(k) != settings.get(k)]
    if changed:
        pairs = ", ".join(f"{k} was {saved.get(k)!r} and is now {settings.get(k)!r}" for k in changed)
        raise WrongInput(f"{where} belongs to a run with other settings: {pairs}.")
