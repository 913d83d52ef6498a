"""How the examples end early: one line, the status that is promised, and nothing else, wherever they are."""

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
from lm_runs import options, write_text

from common import program

EXAMPLES = Path(program.__file__).parents[1]
RESUMABLE = "error: interrupted; --resume goes on from the last checkpoint.\n"
NOTHING = "error: interrupted; nothing was written.\n"
# Without JAX's cache of what is compiled, which it would tell of where it cannot write it.
NO_CACHE = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
PROGRAMS = {
    "train_lm": RESUMABLE,
    "train_classifier": RESUMABLE,
    "benchmark": NOTHING,
    "compare_lm_routes": NOTHING,
    "mesh_cost": NOTHING,
    "document": NOTHING,
    "max_margin": NOTHING,
}


def outcome(command, **more):
    """The status of a process, and what it has printed."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, **more)
    return done.returncode, done.stdout, done.stderr


def code(*lines):
    """The outcome of a program that has begun as the examples do."""
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


@pytest.mark.parametrize("name", PROGRAMS)
def test_ctrl_c_while_a_program_imports(interrupted_imports, name):
    assert outcome([EXAMPLES / f"{name}.py"], env=interrupted_imports) == (130, "", PROGRAMS[name])


def test_ctrl_c_while_the_benchmark_weighs_in_a_process_of_its_own(interrupted_imports):
    command = ["-m", "benchmarks.linear_cases", "softjax", 8, 4, 10]
    assert outcome(command, env=interrupted_imports) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    "lines",
    [
        ["signal.raise_signal(signal.SIGINT)"],
        # Whatever a callback of the collector raises, Python only reports.
        ["gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGINT))", "gc.collect()"],
        ["try: signal.raise_signal(signal.SIGINT)", "except BaseException: pass"],
        ["threading.Thread(target=time.sleep, args=(300,)).start()", "signal.raise_signal(signal.SIGINT)"],
        [
            "with program.stop_requested() as stopped:",
            " for _ in range(2): signal.raise_signal(signal.SIGINT)",
        ],
        [
            "with program.stop_requested() as stopped:",
            " for _ in range(2): signal.raise_signal(signal.SIGTERM)",
        ],
    ],
    ids=["anywhere", "in a callback", "where all is caught", "beside a thread", "a second time", "a second SIGTERM"],
)
def test_ctrl_c_ends_the_process_at_once(lines):
    assert code("print('before')", *lines, "print('after')") == (130, "before\n", "error: interrupted; as you were.\n")


def test_a_first_signal_is_a_question_and_a_second_a_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's job in the background ignores
    try:
        with program.stop_requested() as stopped:
            assert not stopped()
            signal.raise_signal(signal.SIGINT)
            assert stopped()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


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


def test_only_the_main_thread_complains():
    lines = [
        "class Failing:",
        " def __del__(self): raise RuntimeError('a loop is closed')",
        "thread = threading.Thread(target=Failing)",
        "thread.start(); thread.join()",
    ]
    assert code(*lines) == (0, "", "")
    assert "a loop is closed" in code(*lines[:2], "Failing()")[2]


class FullDisk(io.StringIO):
    def flush(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_under_the_output_gets_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", FullDisk())
    assert program.exit_status("")(lambda: print("a table"))() == 2
    said = f"error: the standard output: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}\n"
    assert capsys.readouterr().err == said


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(8))
@pytest.mark.parametrize("name", ["train_lm", "train_classifier"])
def test_ctrl_c_at_any_moment_of_a_run(tmp_path, name, moment):
    arguments = {
        "train_lm": options(tmp_path / "run", write_text(tmp_path / "text"), steps=60),
        "train_classifier": ["--classes", "3", "--epochs", "300", "--output", tmp_path / "run"],
    }[name]
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)]
    process = subprocess.Popen(command, env=NO_CACHE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(0.3 + 0.6 * moment)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=300)[1]
    assert (process.returncode, said) in ((130, RESUMABLE), (0, ""))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20000, 60000])
def test_a_full_disk_under_a_checkpoint_gets_one_line(tmp_path, limit):
    write_text(tmp_path / "text")
    limited = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    run = "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    program = [EXAMPLES / "train_lm.py", *options(tmp_path / "run", tmp_path / "text")]
    status, _, said = outcome(["-c", f"{limited}; {run}", *program], env=NO_CACHE)
    assert status == 2
    # Orbax packs the arrays of a step into files as its threads come to them: which step is the first with a file over
    # the limit is chance, and at the larger one a whole run may have none before its first picture.
    first, later = "4; there is no good checkpoint", rf"\d+; the last good checkpoint is {re.escape(str(tmp_path))}\S+"
    picture = rf"|error: cannot write {re.escape(str(tmp_path))}\S+\.png: File too large\." if limit == 60000 else ""
    assert re.fullmatch(rf"(error: cannot save step ({first}|{later}): .*{picture})\n", said)
