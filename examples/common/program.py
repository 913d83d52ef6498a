"""How a program ends early: at Ctrl-C, wherever it is, with one line and status 130; a loop may choose the moment.

Python's own KeyboardInterrupt cannot promise that. It is raised wherever the program is: in an import, which fails in a
way of its own; in a callback of XLA's, which swallows it; or above threads of XLA's and Orbax's, which go on while the
interpreter is taken down under them, and end in tracebacks or a segmentation fault. So the process ends as `kill -9`
would end it: the files of a run survive that in any case, and the system frees its locks.

This module imports nothing that is slow: the programs call it before they import what is.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

RESUMABLE = "--resume goes on from the last checkpoint."
NOTHING_WRITTEN = "nothing was written."


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
