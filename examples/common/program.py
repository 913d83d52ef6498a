"""How a program ends, with a status and at most one line of error, and how it leaves files: each is whole.

Python's own KeyboardInterrupt cannot promise the line. It is raised wherever the program is: in an import, which fails
in a way of its own; in a callback of XLA's, which swallows it; or above threads of XLA's and Orbax's, which go on while
the interpreter is taken down under them, and end in tracebacks or a segmentation fault. So the process ends as
`kill -9` would end it: the files of a run survive that in any case, and the system frees its locks.

This module imports nothing that is slow: the programs call it before they import what is.
"""

import contextlib
import functools
import io
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESUMABLE = "--resume goes on from the last checkpoint."
NOTHING_WRITTEN = "nothing was written."

PICTURES = Path(__file__).with_name("pictures.mplstyle")
"""How the pictures look: for `matplotlib.rc_context(fname=PICTURES)`."""


class WrongInput(Exception):  # noqa: N818
    """What the user gave cannot be run; the message is the one line that says why."""


def end_in_one_line(what_then: str) -> None:
    """From here on, Ctrl-C prints `what_then` and ends the process with status 130, and only the main thread complains.

    Threads of Orbax's storage do, by the dozen, where a write has failed: to a loop that Orbax has closed, since it has
    raised the error already.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # the cursor, which a progress bar hides, and the end of the bar's line
        # Not by `print`, which the signal may have interrupted.
        os.write(2, f"error: interrupted; {what_then}\n".encode())
        leave(130)

    def complain(what: "sys.UnraisableHookArgs") -> None:
        if threading.current_thread() is threading.main_thread():
            sys.__unraisablehook__(what)

    signal.signal(signal.SIGINT, end)
    sys.unraisablehook = complain


def leave(status: int) -> NoReturn:
    """Ends the process without the interpreter's farewells: no thread adds a traceback to what has been said."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a full disk has been told of (`exit_status`)
            stream.flush()
    os._exit(status)


Arguments = ParamSpec("Arguments")


def exit_status(what_then: str) -> Callable[[Callable[Arguments, None]], Callable[Arguments, int]]:
    """Makes of a program one that returns its exit status.

    What the user can mend gets one line on stderr and status 2; Ctrl-C gets `what_then` and 130.
    """

    def decorate(program: Callable[Arguments, None]) -> Callable[Arguments, int]:
        @functools.wraps(program)
        def main(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
            try:
                program(*args, **kwargs)
                sys.stdout.flush()
            except (WrongInput, OSError) as error:
                # Errors name the file that they are about; only what is printed goes to a file without a name.
                where = "the standard output: " if isinstance(error, OSError) and error.filename is None else ""
                print(f"error: {where}{' '.join(str(error).split())}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(f"error: interrupted; {what_then}", file=sys.stderr)
                return 130
            return 0

        return main

    return decorate


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C or SIGTERM only makes the function that it yields true; a second is a Ctrl-C."""
    received: list[int] = []
    ctrl_c = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        if received and callable(ctrl_c):
            ctrl_c(signal.SIGINT, frame)
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_writable(folder: Path) -> None:
    """Makes the folder, and finds out before the minutes of a run, not after, whether it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WrongInput(f"cannot write to the output folder {folder}: {error.strerror}.") from error


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


def png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
