"""Checkpoints of a tiny state: whenever the program dies, the last of them is whole, and nothing else is left."""

import errno
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from runs import Killed
from runs import what_a_killed_save_leaves as what_a_killed_save_leaves

from common import checkpoint
from common.checkpoint import Checkpoints
from common.program import WrongInput

SETTINGS = {"steps": 3}


def state(step):
    return {"weights": jax.numpy.arange(6.0).reshape(2, 3) + step, "step": jax.numpy.int32(step)}


def last_step(folder):
    restored = Checkpoints(folder, SETTINGS).restore(state(0))
    np.testing.assert_array_equal(restored["weights"], state(int(restored["step"]))["weights"])
    return int(restored["step"])


def test_the_last_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    assert last_step(tmp_path) == 0
    for step in (1, 2, 10):
        checkpoints.save(step, state(step))
        assert last_step(tmp_path) == step
    assert {path.name for path in tmp_path.iterdir()} == {"2", "10"}


# Where the program dies, and the step that it had come to: what is called, and whether it has done its work by then.
DEATHS = [
    (Path, "mkdir", False, 2),
    (Path, "mkdir", True, 2),
    (ocp.Checkpointer, "save", False, 2),
    (ocp.Checkpointer, "save", True, 2),
    (Path, "write_text", False, 2),
    (Path, "write_text", True, 2),
    (checkpoint, "seal", False, 2),
    (checkpoint, "seal", True, 2),
    (Path, "rename", False, 2),
    (Path, "rename", True, 3),
    (shutil, "rmtree", False, 3),
    (shutil, "rmtree", True, 3),
]


@pytest.mark.parametrize(("owner", "name", "done", "step"), DEATHS, ids=lambda value: getattr(value, "__name__", value))
def test_wherever_the_program_dies_the_last_checkpoint_is_whole(tmp_path, owner, name, done, step):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    for earlier in (1, 2):
        checkpoints.save(earlier, state(earlier))

    call = getattr(owner, name)

    def dying(*arguments, **options):
        if done:
            call(*arguments, **options)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            checkpoints.save(3, state(3))
    assert last_step(tmp_path) == step
    assert {path.name for path in tmp_path.iterdir()} >= {"2"}
    assert not [*tmp_path.glob(".*")]
    Checkpoints(tmp_path, SETTINGS).save(4, state(4))
    assert last_step(tmp_path) == 4


def test_what_is_half_deleted_is_no_checkpoint(tmp_path, monkeypatch):
    def dying(folder):
        (folder / "settings.json").unlink()
        raise Killed

    checkpoints = Checkpoints(tmp_path, SETTINGS)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    monkeypatch.setattr(shutil, "rmtree", dying)
    with pytest.raises(Killed):
        checkpoints.save(3, state(3))
    monkeypatch.undo()
    assert last_step(tmp_path) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}
    assert all(map(checkpoint.intact, tmp_path.iterdir()))


def test_damage_to_any_file_is_found_and_the_last_good_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    files = [path for path in (tmp_path / "2").rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"SHA256SUMS", "settings.json", "_METADATA", "manifest.ocdbt"}
    for path in files:
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole + b"\0", b"", bytes([whole[0] ^ 1]) + whole[1:], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(WrongInput, match=f"2 is damaged; the last good checkpoint is {tmp_path}/1. Delete"):
                checkpoints.restore(state(0))
            path.write_bytes(whole)
    assert last_step(tmp_path) == 2


def test_a_state_of_another_kind_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    checkpoints.save(1, state(1))
    with pytest.raises(WrongInput, match="1 holds another program's state"):
        checkpoints.restore({"other": jax.numpy.zeros(3)})
    with pytest.raises(WrongInput, match="steps was 3 and is now 4"):
        Checkpoints(tmp_path, SETTINGS | {"steps": 4}).restore(state(0))


@pytest.mark.parametrize("first", [1, 3, 4, 9])
def test_the_checkpoints_of_an_earlier_run_stay_until_the_new_one_has_its_own(tmp_path, first):
    for step in (3, 4):
        Checkpoints(tmp_path, SETTINGS).save(step, state(step))
    anew = Checkpoints(tmp_path, {"steps": 9}, anew=True)
    assert anew.last() == "there is no good checkpoint"
    assert int(anew.restore(state(0))["step"]) == 0
    assert last_step(tmp_path) == 4
    anew.save(first, state(first))
    assert int(anew.restore(state(0))["step"]) == first
    assert {path.name for path in tmp_path.iterdir()} == {str(first)}


@pytest.mark.parametrize("deaths", range(1, 4))
def test_a_death_while_the_first_checkpoint_replaces_an_earlier_run_leaves_a_whole_one_or_none(tmp_path, deaths):
    for step in (3, 4):
        Checkpoints(tmp_path, SETTINGS).save(step, state(step))
    rename, left = Path.rename, [deaths]

    def dying(path, target):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return rename(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(Killed):
            Checkpoints(tmp_path, SETTINGS, anew=True).save(1, state(1))
    assert last_step(tmp_path) == {1: 4, 2: 4, 3: 0}[deaths]
    assert all(map(checkpoint.intact, tmp_path.iterdir()))


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    checkpoints.save(1, state(1))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WrongInput, match=f"cannot save step 2; the last good checkpoint is {tmp_path}/1: .*No space"):
        checkpoints.save(2, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_save_goes_where_a_failed_one_of_the_same_step_has_left_files(tmp_path):
    checkpoints = Checkpoints(tmp_path, SETTINGS)
    (tmp_path / ".2.tmp" / "state").mkdir(parents=True)
    checkpoints.save(2, state(2))
    assert last_step(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
