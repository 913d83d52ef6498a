"""What the tests of the programs that train share: the line of an error, and a program that dies."""

import gc

import pytest


class Killed(BaseException):
    """In the place of SIGKILL: nothing in the program may catch it, or tidy up after it."""


def the_one_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(autouse=True)
def what_a_killed_save_leaves(request):
    """Orbax's coroutines of a save that died are collected here, not in whatever test comes after."""
    request.node.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
    yield
    gc.collect()
