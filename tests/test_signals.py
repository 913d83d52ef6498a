"""How the programs end early: with one line, the promised exit status, and nothing else."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from endings import default_signals as default_signals
from lm_runs import options, write_text

from common import program

EXAMPLES = Path(program.__file__).parents[1]
RESUMABLE = "error: interrupted; --resume goes on from the last checkpoint.\n"
NOTHING = "error: interrupted; nothing was written.\n"
# Without JAX's compilation cache, which prints a warning when it cannot be written.
NO_CACHE = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
# The programs that only measure handle Ctrl-C from their first line on.
MEASURING = ["benchmark", "compare_lm_routes", "mesh_cost", "document", "max_margin"]


def outcome(command, **more):
    """The exit status of a process, and what it has printed."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, **more)
    return done.returncode, done.stdout, done.stderr


def code(*lines):
    """The outcome of a program that begins like the measuring ones."""
    begin = (
        "import gc, signal, sys, threading, time",
        "from common import program",
        "program.end_in_one_line('as you were.')",
    )
    return outcome(["-c", "\n".join([*begin, *lines])], env={**os.environ, "PYTHONUNBUFFERED": ""})


@pytest.fixture
def interrupted_imports(tmp_path):
    """An environment in which Ctrl-C comes while JAX is imported."""
    (tmp_path / "jax.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"}


@pytest.mark.parametrize("name", MEASURING)
def test_ctrl_c_while_a_program_imports(interrupted_imports, name):
    assert outcome([EXAMPLES / f"{name}.py"], env=interrupted_imports) == (130, "", NOTHING)


def test_ctrl_c_while_the_benchmark_weighs_in_a_process_of_its_own(interrupted_imports):
    command = ["-m", "benchmarks.linear_cases", "softjax", 8, 4, 10]
    assert outcome(command, env=interrupted_imports) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    "lines",
    [
        ["signal.raise_signal(signal.SIGINT)"],
        # Python only reports an exception in a callback of the garbage collector.
        ["gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGINT))", "gc.collect()"],
        ["try: signal.raise_signal(signal.SIGINT)", "except BaseException: pass"],
        ["threading.Thread(target=time.sleep, args=(300,)).start()", "signal.raise_signal(signal.SIGINT)"],
    ],
    ids=["anywhere", "in a callback", "where all is caught", "beside a thread"],
)
def test_ctrl_c_ends_the_process_at_once(lines):
    assert code("print('before')", *lines, "print('after')") == (130, "before\n", "error: interrupted; as you were.\n")


def test_a_program_leaves_whatever_its_threads_do():
    lines = [
        "import atexit",
        "atexit.register(print, 'farewell')",
        "threading.Thread(target=time.sleep, args=(300,)).start()",
        "print('said')",
        "print('error', file=sys.stderr)",
        "program.leave(2)",
    ]
    assert code(*lines) == (2, "said\n", "error\n")


class FullDisk(io.StringIO):
    def flush(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_under_the_output_gets_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", FullDisk())
    assert program.exit_status("")(lambda: print("a table"))() == 2
    said = f"error: the standard output: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}\n"
    assert capsys.readouterr().err == said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", range(4))
@pytest.mark.parametrize("name", ["train_lm", "train_classifier"])
def test_a_signal_at_any_moment_of_the_training(tmp_path, name, moment, number):
    arguments = {
        "train_lm": options(tmp_path / "run", write_text(tmp_path / "text"), steps=60),
        "train_classifier": [
            "--classes",
            "3",
            "--epochs",
            "300",
            "--checkpoint-every",
            "4",
            "--output",
            tmp_path / "run",
        ],
    }[name]
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)]
    process = subprocess.Popen(command, env=NO_CACHE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "checkpoints" / "4").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    time.sleep(0.1 * moment)
    process.send_signal(number)
    said = process.communicate(timeout=300)[1]
    # The run may have finished its steps.
    ended = [(130, RESUMABLE), (0, ""), *([(-number, "")] if number == signal.SIGTERM else [])]
    assert (process.returncode, said) in ended


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20000, 60000])
def test_a_full_disk_under_a_checkpoint_gets_one_line(tmp_path, limit):
    write_text(tmp_path / "text")
    limited = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    run = "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    program = [EXAMPLES / "train_lm.py", *options(tmp_path / "run", tmp_path / "text")]
    status, _, said = outcome(["-c", f"{limited}; {run}", *program], env=NO_CACHE)
    assert status == 2
    # The threads of Orbax distribute the arrays over its files by chance, and so the first step with a file over the
    # limit varies. With the larger limit, a plot may be the first.
    first, later = "4; there is no good checkpoint", rf"\d+; the last good checkpoint is {re.escape(str(tmp_path))}\S+"
    plot = rf"|error: cannot write {re.escape(str(tmp_path))}\S+\.png: File too large\." if limit == 60000 else ""
    assert re.fullmatch(rf"(error: cannot save step ({first}|{later}): .*{plot})\n", said)
