"""What the tests of the programs share: the line of an error, a simulated kill, and signals."""

import gc
import signal

import pytest


class Killed(BaseException):
    """Stands for SIGKILL: the program must not catch it or clean up after it."""

    raised = 0

    def __init__(self):
        Killed.raised += 1


def the_one_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(autouse=True)
def what_a_killed_save_leaves(request):
    """Collects the coroutines of Orbax that a killed save leaves, so that they do not warn in a later test."""
    request.node.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
    before = Killed.raised
    yield
    if Killed.raised != before:
        gc.collect()


@pytest.fixture(autouse=True)
def default_signals():
    """Ctrl-C works as in the foreground, here and in the processes that a test starts. A background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
