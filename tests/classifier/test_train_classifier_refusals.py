"""What the classifier refuses, in one line, without harm to an earlier run."""

import errno
import json
import os
import shutil
from pathlib import Path

import orbax.checkpoint as ocp
import pytest
from classifier_runs import SMALL, contents, die_at_disk_operation, results, run
from endings import Killed, the_one_line

import train_classifier as program
from common import runs
from common.runs import FOLDER
from common.settings import decisive, parse
from train_classifier import DEFAULT_CONFIG


def test_resuming_with_other_settings_is_refused_by_name(earlier, finished, capsys):
    others = {
        "classes": (3, 4),
        "test-fraction": (0.2, 0.3),
        "seed": (0, 1),
        "optimiser": ("adam", "sgd"),
        "learning-rate": (0.05, 0.01),
        "schedule": ("cosine", "constant"),
        "epochs": (4, 5),
        "batch-size": (100, 50),
        "base": (10.0, 2.0),
        "label-smoothing": (0.0, 0.1),
        "weight-decay": (0.001, 0.0),
    }
    words = [word for name, (_, value) in others.items() for word in (f"--{name}", value)]
    assert run(earlier, "--resume", *words) == 2
    line = the_one_line(capsys)
    for name, (before, now) in others.items():
        assert f"{name.replace('-', '_')} was {before!r} and is now {now!r}" in line
    assert set(json.loads(results(finished)["metrics.json"])["settings"]) == {n.replace("-", "_") for n in others}
    assert contents(earlier) == contents(finished)


def test_a_damaged_checkpoint_is_refused_by_name(earlier, finished, capsys):
    last, before = earlier / FOLDER / "4", earlier / FOLDER / "2"
    path = max(filter(Path.is_file, (last / "state").rglob("*")), key=lambda path: path.stat().st_size)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert run(earlier, "--resume") == 2
    assert f"{last} is damaged; the last good checkpoint is {before}. Delete {last}" in the_one_line(capsys)
    assert results(earlier) == results(finished)
    shutil.rmtree(last)
    assert run(earlier, "--resume") == 0
    assert "Resumed after epoch 2" in capsys.readouterr().out
    assert results(earlier) == results(finished)


def test_a_folder_that_holds_a_run_is_refused(earlier, finished, capsys):
    assert run(earlier) != 0
    assert "--overwrite" in the_one_line(capsys)
    assert contents(earlier) == contents(finished)
    # Not even where the run has lost its checkpoint and only its results are left.
    shutil.rmtree(earlier / FOLDER)
    assert run(earlier, "--resume") != 0
    assert "no checkpoints to resume" in the_one_line(capsys)


def test_overwriting_keeps_the_old_results_until_the_new_ones_are_there(earlier, finished, no_plots):
    with pytest.MonkeyPatch.context() as patch:
        die_at_disk_operation(patch, 4)  # two new checkpoints have replaced the old ones, and no result is written
        with pytest.raises(Killed):
            run(earlier, "--overwrite", "--seed", 1)
    assert results(earlier) == results(finished)
    assert run(earlier, "--overwrite", "--seed", 1) == 0
    assert json.loads(results(earlier)["metrics.json"])["settings"]["seed"] == 1


def test_a_full_disk_gets_one_line_and_costs_no_file(earlier, finished, no_plots, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "save", full)
        assert run(earlier, "--overwrite") == 2
    assert "cannot save step 2; there is no good checkpoint: [Errno 28] No space" in the_one_line(capsys)
    assert contents(earlier) == contents(finished)
    monkeypatch.setattr(os, "fsync", full)
    assert run(earlier, "--overwrite") == 2
    assert f"cannot write {earlier / program.RESULTS[0]}: No space left on device." in the_one_line(capsys)
    assert results(earlier) == results(finished)


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--overwrite",)])
def test_no_second_run_is_let_into_the_folder_of_a_running_one(earlier, finished, capsys, flags):
    with runs.lock(earlier):
        assert run(earlier, *flags) == 2
        assert f"{earlier} is in use by process {os.getpid()}, which began at " in the_one_line(capsys)
    assert contents(earlier) == contents(finished)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--classes", "1"), "`classes` must be from 2 to 10"),
        (("--classes", "11"), "`classes` must be from 2 to 10"),
        (("--epochs", "0"), "`epochs` must be"),
        (("--epochs", "three"), "--epochs"),
        (("--epochs",), "--epochs"),
        (("--base", "1"), "`base` must be"),
        (("--base", "nan"), "`base` must be"),
        (("--seed", "-1"), "`seed` must be"),
        (("--learning-rate", "1e30"), "lower `learning_rate`"),
        (("--batch-size", "1000"), "more than the 429 training images"),
        (("--test-fraction", "0.001"), "`test_fraction` is 0.001"),
        (("--optimiser", "newton"), "newton"),
        (("--config", "absent.toml"), "cannot read the config absent.toml"),
        (("--config", "."), "cannot read the config ."),
        (("--momentum", "0.9"), "--momentum"),
        (("--resume", "--overwrite"), "contradict"),
        (("stray",), "stray"),
    ],
)
def test_wrong_options_get_one_line_and_cost_no_file(earlier, finished, capsys, options, said):
    assert run(earlier, "--overwrite", *options) != 0
    assert said in the_one_line(capsys)
    assert contents(earlier) == contents(finished)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 0", "seed = 0\nspeed = 1", "unknown key `speed`"),
        ("seed = 0", "", "`seed` is missing"),
        ("seed = 0", "seed = true", "`seed` must be a whole number, got True"),
        ("seed = 0", "seed = 0.5", "`seed` must be a whole number"),
        ("seed = 0", "seed = ", "config.toml: "),
        ("base = 10.0", 'base = "ten"', "`base` must be a number"),
        ("base = 10.0", f"base = 1{'0' * 400}", "config.toml: "),
        ('schedule = "cosine"', 'schedule = "linear"', "`schedule` must be one of"),
        ("classes = 5", "classes = 40", "`classes` must be from 2 to 10"),
        ('output = "runs/classifier"', "output = 3", "`output` must be a string"),
    ],
)
def test_a_wrong_config_gets_one_line(tmp_path, capsys, old, new, said):
    text = DEFAULT_CONFIG.read_text()
    assert text.count(old) == 1
    config = tmp_path / "config.toml"
    config.write_text(text.replace(old, new))
    assert run(tmp_path / "new", "--config", config) != 0
    assert said in the_one_line(capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["a file", "a file/below"])
def test_an_unwritable_folder_gets_one_line(tmp_path, capsys, name):
    (tmp_path / "a file").write_text("precious")
    assert run(tmp_path / name) != 0
    assert "cannot write to the output folder" in the_one_line(capsys)
    assert (tmp_path / "a file").read_text() == "precious"


def test_options_override_the_config_and_the_config_the_default(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(DEFAULT_CONFIG.read_text().replace("seed = 0", "seed = 7").replace("1e-3", "0.5"))
    words = [*SMALL, "--config", str(config), "--weight_decay", "0.25", "--schedule=constant"]
    settings = decisive(parse(program.Options, words, DEFAULT_CONFIG).settings)
    assert settings.items() >= {"seed": 7, "weight_decay": 0.25, "schedule": "constant", "epochs": 4}.items()


def test_the_help_states_what_happens_to_an_earlier_run(capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(["--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "--resume goes on" in shown
    assert "--overwrite starts anew" in shown
