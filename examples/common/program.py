"""How a program ends, with an exit status and at most one line of error, and how it writes files.

Python's KeyboardInterrupt does not always give one line: it may come during an import, in a callback of XLA that
ignores it, or while threads of XLA and Orbax still run, which then print tracebacks or crash. So `end_in_one_line` ends
the process at once, like `kill -9`. The programs that only measure call it before their slow imports, and so this
module imports nothing slow. The programs that train use `common.runs` instead.
"""

import contextlib
import functools
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING_WRITTEN = "nothing was written."

PICTURES = Path(__file__).with_name("pictures.mplstyle")
"""The style of the plots, for `matplotlib.rc_context(fname=PICTURES)`."""


class WrongInput(Exception):  # noqa: N818
    """The program cannot run with these options, files or settings. The message is one line that says why."""


def end_in_one_line(what_then: str) -> None:
    """Makes Ctrl-C print `what_then` and end the process with status 130."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # shows the cursor, which a progress bar hides, and ends its line
        # Not with `print`, which the signal may have interrupted.
        os.write(2, f"error: interrupted; {what_then}\n".encode())
        leave(130)

    signal.signal(signal.SIGINT, end)


def leave(status: int) -> NoReturn:
    """Ends the process without cleaning up the interpreter, so that no thread adds a traceback to the output."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # `exit_status` has reported a full disk
            stream.flush()
    os._exit(status)


Arguments = ParamSpec("Arguments")


def exit_status(what_then: str) -> Callable[[Callable[Arguments, None]], Callable[Arguments, int]]:
    """Makes a program return its exit status.

    An error that the user can mend prints one line to stderr and gives 2. Ctrl-C prints `what_then` and gives 130.
    """

    def decorate(program: Callable[Arguments, None]) -> Callable[Arguments, int]:
        @functools.wraps(program)
        def main(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
            try:
                program(*args, **kwargs)
                sys.stdout.flush()
            except (WrongInput, OSError) as error:
                # An error names its file. Only the standard output has no name.
                where = "the standard output: " if isinstance(error, OSError) and error.filename is None else ""
                print(f"error: {where}{' '.join(str(error).split())}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(f"error: interrupted; {what_then}", file=sys.stderr)
                return 130
            return 0

        return main

    return decorate


def make_writable(folder: Path) -> None:
    """Makes the folder and checks that files can be written to it, before a run takes minutes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WrongInput(f"cannot write to the output folder {folder}: {error.strerror}.") from error


def write(path: Path, content: bytes) -> None:
    """Replaces the content of `path`. A kill at any moment leaves the old file or the new one, both complete.

    Raises:
      WrongInput: if the file cannot be written; the old one is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            # Before the rename: otherwise a power cut may leave an empty file under the new name.
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()  # this file may be what fills the disk
        raise WrongInput(f"cannot write {path}: {error.strerror}.") from error


def png(figure: "Figure") -> bytes:
    """The content of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
