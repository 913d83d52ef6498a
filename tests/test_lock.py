"""One process at a time has a folder to itself, and none that is dead."""

import datetime
import os
import signal
import subprocess
import sys
import threading

import pytest

from common import checkpoint
from common.program import WrongInput

HOLD = "import pathlib, sys\nfrom common import checkpoint\n"
HOLD += "with checkpoint.held(pathlib.Path(sys.argv[1])): print('held', flush=True); input()"


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds the folder until it is killed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_line_names_the_process_and_its_beginning(tmp_path, holder):
    with pytest.raises(WrongInput) as refusal, checkpoint.held(tmp_path):
        pass
    line = str(refusal.value)
    assert line.startswith(f"{tmp_path} is in use by process {holder.pid}, which began at ")
    began = datetime.datetime.fromisoformat(line.partition(" began at ")[2].partition(": ")[0])
    assert abs(datetime.datetime.now(datetime.UTC) - began) < datetime.timedelta(minutes=5)


def test_a_killed_process_leaves_the_folder_free(tmp_path, holder):
    holder.kill()
    assert holder.wait() == -signal.SIGKILL
    with checkpoint.held(tmp_path):
        assert f"process {os.getpid()}," in (tmp_path / checkpoint.LOCK).read_text()


def test_the_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), checkpoint.held(tmp_path):
        raise RuntimeError
    with checkpoint.held(tmp_path):
        pass


def test_one_may_wait(tmp_path):
    order = []

    def later():
        with checkpoint.held(tmp_path, wait=True):
            order.append("second")

    with checkpoint.held(tmp_path):
        thread = threading.Thread(target=later)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
