"""The folder of a run: a kill never costs a checkpoint, damage is found, and one process at a time may write."""

import datetime
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from covering import slow
from endings import Killed
from endings import default_signals as default_signals
from endings import what_a_killed_save_leaves as what_a_killed_save_leaves

from common import runs
from common.runs import FOLDER, LOCK, Run
from common.settings import WrongInput

SETTINGS = {"steps": 3}


def state(step):
    return {"weights": jax.numpy.arange(6.0).reshape(2, 3) + step, "step": jax.numpy.int32(step)}


def saved(folder, *steps):
    """A run with checkpoints of these steps."""
    run = Run(folder, SETTINGS)
    for step in steps:
        run.save(step, state(step))
    return run


def last_step(folder):
    restored = Run(folder, SETTINGS).restore(state(0))
    np.testing.assert_array_equal(restored["weights"], state(int(restored["step"]))["weights"])
    return int(restored["step"])


def names(folder):
    return {path.name for path in (folder / FOLDER).iterdir()}


# Checkpoints.


def test_the_last_two_checkpoints_are_kept(tmp_path):
    run = saved(tmp_path)
    assert last_step(tmp_path) == 0
    for step in (1, 2, 10):
        run.save(step, state(step))
        assert last_step(tmp_path) == step
    assert names(tmp_path) == {"2", "10"}


# Where the program is killed while it saves step 3: before or after this call. Then the step that it resumes from.
KILLS = [
    (Path, "mkdir", True, 2),
    (ocp.Checkpointer, "save", True, 2),
    (Path, "write_text", True, 2),
    (runs, "write_checksums", True, 2),
    (Path, "rename", False, 2),
    (Path, "rename", True, 3),
    (shutil, "rmtree", True, 3),
    *slow(
        (Path, "mkdir", False, 2),
        (ocp.Checkpointer, "save", False, 2),
        (Path, "write_text", False, 2),
        (runs, "write_checksums", False, 2),
    ),
]


@pytest.mark.parametrize(("owner", "name", "after", "step"), KILLS, ids=lambda value: getattr(value, "__name__", value))
def test_wherever_the_program_is_killed_a_complete_checkpoint_remains(tmp_path, owner, name, after, step):
    run = saved(tmp_path, 1, 2)
    call = getattr(owner, name)

    def killed(*arguments, **options):
        if name == "rmtree" and not Path(arguments[0]).exists():
            return  # nothing to remove before the save
        if after:
            call(*arguments, **options)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            run.save(3, state(3))
    assert last_step(tmp_path) == step
    assert "2" in names(tmp_path)
    assert not [*(tmp_path / FOLDER).glob(".*")]
    saved(tmp_path, 4)
    assert last_step(tmp_path) == 4


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_complete_ones(tmp_path, monkeypatch):
    run = saved(tmp_path, 1, 2)
    rmtree = shutil.rmtree

    def killed(path, **options):
        if Path(path).name == ".1.old.tmp":
            next(path for path in Path(path).rglob("*") if path.is_file()).unlink()
            raise Killed
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        run.save(3, state(3))
    monkeypatch.undo()
    assert last_step(tmp_path) == 3
    assert names(tmp_path) == {"2", "3"}
    assert all(map(runs.is_intact, (tmp_path / FOLDER).iterdir()))


def test_damage_to_any_file_is_found_and_the_last_good_checkpoint_is_named(tmp_path):
    run, folder = saved(tmp_path, 1, 2), tmp_path / FOLDER
    files = [path for path in (folder / "2").rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"SHA256SUMS", "settings.json", "_METADATA", "manifest.ocdbt"}
    for path in files:
        content = path.read_bytes()
        for damaged in (content[:-1], content + b"\0", b"", bytes([content[0] ^ 1]) + content[1:], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(WrongInput, match=f"2 is damaged; the last good checkpoint is {folder}/1. Delete"):
                run.restore(state(0))
            path.write_bytes(content)
    (folder / "1" / "settings.json").unlink()
    (folder / "2" / "settings.json").write_text("{}")
    with pytest.raises(WrongInput, match=r"2 is damaged; there is no good checkpoint\."):
        run.restore(state(0))


def test_the_state_of_another_program_or_other_settings_is_refused(tmp_path):
    run = saved(tmp_path, 1)
    with pytest.raises(WrongInput, match="1 holds another program's state"):
        run.restore({"other": jax.numpy.zeros(3)})
    with pytest.raises(WrongInput, match="steps was 3 and is now 4"):
        Run(tmp_path, SETTINGS | {"steps": 4}).restore(state(0))


@pytest.mark.parametrize("first", [1, 4, *slow(3, 9)])
def test_a_new_run_keeps_the_old_checkpoints_until_it_has_its_own(tmp_path, first):
    saved(tmp_path, 3, 4)
    run = Run(tmp_path, {"steps": 9}, replace=True)
    assert run.last_good() == "there is no good checkpoint"
    assert int(run.restore(state(0))["step"]) == 0
    assert last_step(tmp_path) == 4
    run.save(first, state(first))
    assert int(run.restore(state(0))["step"]) == first
    assert names(tmp_path) == {str(first)}


@pytest.mark.parametrize("kill", range(1, 4))
def test_a_kill_while_a_new_run_replaces_an_old_one_leaves_a_complete_checkpoint_or_none(tmp_path, kill):
    saved(tmp_path, 3, 4)
    rename, left = Path.rename, [kill]

    def killed(path, target):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return rename(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            Run(tmp_path, SETTINGS, replace=True).save(1, state(1))
    assert last_step(tmp_path) == {1: 4, 2: 4, 3: 0}[kill]
    assert all(map(runs.is_intact, (tmp_path / FOLDER).iterdir()))


def test_a_save_that_fails_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    run = saved(tmp_path, 1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    good = f"the last good checkpoint is {tmp_path}/{FOLDER}/1"
    with pytest.raises(WrongInput, match=f"cannot save step 2; {good}: .*No space"):
        run.save(2, state(2))
    assert names(tmp_path) == {"1"}
    monkeypatch.undo()
    (tmp_path / FOLDER / ".2.tmp" / "state").mkdir(parents=True)  # a thread of Orbax may write after the failure
    run.save(2, state(2))
    assert last_step(tmp_path) == 2
    assert names(tmp_path) == {"1", "2"}


def test_after_a_run_has_begun_only_the_main_thread_prints_tracebacks_of_destructors(tmp_path, monkeypatch):
    class Failing:
        def __del__(self):
            raise RuntimeError("a loop is closed")

    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: printed.append(str(error.exc_value)))
    Run(tmp_path, SETTINGS)
    thread = threading.Thread(target=Failing)
    thread.start()
    thread.join()
    assert printed == []
    Failing()
    assert printed == ["a loop is closed"]


# Signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_and_a_second_one_stops_at_once(tmp_path, number):
    run = Run(tmp_path, SETTINGS, every=100, last=9)
    before = signal.getsignal(number)
    with run.finish_steps():
        assert not run.is_due(1)
        signal.raise_signal(number)
        assert run.is_due(2)
        with pytest.raises(KeyboardInterrupt):
            run.save(2, state(2))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        run.save(9, state(9))  # the last step: the run has finished
    assert signal.getsignal(number) == before
    assert last_step(tmp_path) == 9


# The lock.

HOLD = "import pathlib, sys\nfrom common import runs\n"
HOLD += "with runs.lock(pathlib.Path(sys.argv[1])): print('locked', flush=True); input()"


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], **pipes) as owner:
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(WrongInput) as refusal, runs.lock(tmp_path):
            pass
        owner.kill()
    line = str(refusal.value)
    assert line.startswith(f"{tmp_path} is in use by process {owner.pid}, which began at ")
    began = datetime.datetime.fromisoformat(line.partition(" began at ")[2].partition(": ")[0])
    assert abs(datetime.datetime.now(datetime.UTC) - began) < datetime.timedelta(minutes=5)
    assert owner.returncode == -signal.SIGKILL
    with runs.lock(tmp_path):
        assert f"process {os.getpid()}," in (tmp_path / LOCK).read_text()


def test_an_error_frees_the_folder(tmp_path):
    with pytest.raises(RuntimeError), runs.lock(tmp_path):
        raise RuntimeError
    with runs.lock(tmp_path):
        pass


def test_a_process_may_wait(tmp_path):
    order = []

    def later():
        with runs.lock(tmp_path, wait=True):
            order.append("second")

    with runs.lock(tmp_path):
        thread = threading.Thread(target=later)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


# The checksums of a folder.

FILES = {"a": b"some bytes", "below/b": bytes(range(20)), "below/below/c": b"\0", "empty": b""}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    runs.write_checksums(tmp_path)
    assert runs.is_intact(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [*FILES, runs.CHECKSUMS])
def test_every_change_of_a_file_is_found(folder, name):
    path = folder / name
    content = path.read_bytes()
    changed = [content + b"\0", content[:-1], b"", b"x" + content, content + content]
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        changed.append(bytes(flipped))
    for other in changed:
        path.write_bytes(other)
        assert runs.is_intact(folder) == (other == content)
    path.unlink()
    assert not runs.is_intact(folder)
    path.mkdir()
    assert not runs.is_intact(folder)


@pytest.mark.parametrize("name", ["extra", "below/extra", f"below/{runs.CHECKSUMS}"])
def test_an_added_file_is_found(folder, name):
    (folder / name).write_bytes(b"")
    assert not runs.is_intact(folder)


def test_exchanged_files_are_found(folder):
    (folder / "a").write_bytes(FILES["below/b"])
    (folder / "below/b").write_bytes(FILES["a"])
    assert not runs.is_intact(folder)


def test_a_missing_folder_is_not_intact(tmp_path):
    assert not runs.is_intact(tmp_path / "absent")


def test_sha256sum_can_read_the_checksums(folder):
    """Each line has the digest, two spaces and the path, for every file and nothing else."""
    lines = (folder / runs.CHECKSUMS).read_text().splitlines()
    assert sorted(lines) == sorted(f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in FILES.items())
