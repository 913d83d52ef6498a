"""The main example: what a run leaves, the optimum it reaches, what a kill cannot break, and what it refuses."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import _checkpoint as checkpoint
import _classifier_figures as figures
import _digits
import matplotlib.image
import numpy as np
import pytest
import train_classifier as program
from _classifier_config import DEFAULT_CONFIG
from sklearn.linear_model import LogisticRegression

SMALL = ("--classes", "3", "--batch-size", "100", "--epochs", "4", "--checkpoint-every", "2")


def run(output, *options, small=SMALL):
    return program.main([*small, "--output", str(output), *map(str, options)])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file if name != "settings"}


def the_one_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, to be copied by a test that may change it."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(folder) == 0
    return folder


@pytest.fixture
def earlier(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "earlier"))


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda *_: dict.fromkeys(figures.NAMES, b"a picture"))


def test_a_run_leaves_its_files_and_no_others(finished):
    assert set(contents(finished)) == {program.CHECKPOINT, *program.RESULTS}
    for name in figures.NAMES:
        height, width, _ = matplotlib.image.imread(finished / name).shape
        assert min(height, width) > 300
    # RESULTS promises that whoever sees metrics.json sees the rest.
    assert program.RESULTS[-1] == "metrics.json"


def test_the_metrics_are_those_of_the_parameters(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    params = arrays(finished / "params.npz")
    for part, images in _digits.load(3, 0.2, 0)._asdict().items():
        logits = np.float64(images.pixels) @ params["kernel"] + params["bias"]
        labels = np.asarray(images.labels)
        nats = np.mean(np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(labels)), labels])
        expected = {"images": len(labels), "accuracy": np.mean(np.argmax(logits, axis=-1) == labels)}
        expected |= {"nats": nats, "bits": nats / math.log(2), "hartleys": nats / math.log(10)}
        assert metrics[part] == pytest.approx({**expected, "perplexity": math.exp(nats)}, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--classes 3 --epochs 300 --base 2 --weight-decay 0.01 --optimiser sgd --batch-size 429 --learning-rate 1",
    ],
    ids=["as configured", "another base and optimiser"],
)
def test_it_reaches_the_optimum_that_scikit_learn_finds(tmp_path, no_pictures, options):
    assert run(tmp_path, *options.split(), small=()) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    settings = metrics["settings"]
    train, test = _digits.load(settings["classes"], settings["test_fraction"], settings["seed"])
    pixels, labels = np.float64(train.pixels), np.asarray(train.labels)
    decay, ln_base = settings["weight_decay"], math.log(settings["base"])
    peer = LogisticRegression(C=1 / (len(labels) * decay * ln_base), tol=1e-8, max_iter=10_000).fit(pixels, labels)

    loss = -np.mean(peer.predict_log_proba(pixels)[np.arange(len(labels)), labels]) / ln_base
    unit = {10.0: "hartleys", 2.0: "bits"}[settings["base"]]
    assert metrics["train"][unit] == pytest.approx(loss, rel=1e-3)
    assert metrics["objective"] == pytest.approx(loss + decay / 2 * np.sum(peer.coef_**2), rel=1e-4)
    right = np.sum(peer.predict(np.float64(test.pixels)) == np.asarray(test.labels))
    assert abs(metrics["test"]["accuracy"] * len(test.labels) - right) < 1.01


class Killed(BaseException):
    """In the place of SIGKILL: nothing in the program may catch it, or tidy up after it."""


def die_at_disk_operation(monkeypatch, number):
    """The program dies there: within a write, half of which has reached the disk, or before a rename."""
    left = [number]
    fsync, replace = os.fsync, Path.replace

    def dies():
        left[0] -= 1
        return left[0] < 0

    def dying_fsync(descriptor):
        if dies():
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise Killed
        fsync(descriptor)

    def dying_replace(path, target):
        if dies():
            raise Killed
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", dying_fsync)
    monkeypatch.setattr(Path, "replace", dying_replace)


# Two checkpoints and six results, each a write and a rename.
@pytest.mark.parametrize("number", range(16))
def test_wherever_a_run_dies_resuming_ends_the_same(tmp_path, finished, no_pictures, number):
    with pytest.MonkeyPatch.context() as patch:
        die_at_disk_operation(patch, number)
        with pytest.raises(Killed):
            run(tmp_path)
    assert run(tmp_path, "--resume") == 0
    same_result(tmp_path, finished)


def same_result(folder, expected):
    """Bit for bit: the parameters, the optimiser's moments and the curves, and with them the metrics."""
    for name in (program.CHECKPOINT, "params.npz"):
        ours, theirs = arrays(folder / name), arrays(expected / name)
        assert list(ours) == list(theirs)
        for leaf, value in ours.items():
            assert value.tobytes() == theirs[leaf].tobytes(), leaf
    assert (folder / "metrics.json").read_bytes() == (expected / "metrics.json").read_bytes()


def test_a_run_killed_with_kill_9_and_resumed_ends_bit_identical(tmp_path):
    options = ("--classes", "2", "--batch-size", "64", "--epochs", "300", "--checkpoint-every", "1")

    def start(name, *more):
        command = [sys.executable, program.__file__, *options, "--output", tmp_path / name, *more]
        # A run of the tests may find softjax through its own search path, which the child does not inherit.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    victim, other = start("killed"), start("uninterrupted")
    while not (tmp_path / "killed" / program.CHECKPOINT).exists():
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.1))
    victim.kill()
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL

    for process in (other, start("killed", "--resume")):
        assert process.communicate()[1] == b""
        assert process.returncode == 0
    same_result(tmp_path / "killed", tmp_path / "uninterrupted")


def test_resuming_a_finished_run_changes_nothing(earlier, finished, capsys):
    # Neither of the two settings changes the result, so neither hinders.
    assert run(earlier, "--resume", "--checkpoint-every", 1) == 0
    assert "Resumed after epoch 4" in capsys.readouterr().out
    assert contents(earlier) == contents(finished)


def test_resuming_where_nothing_was_written_begins(tmp_path, finished, no_pictures, capsys):
    assert run(tmp_path / "new", "--resume") == 0
    assert "starting from the beginning" in capsys.readouterr().out
    same_result(tmp_path / "new", finished)


@pytest.mark.parametrize(
    ("option", "value"),
    {
        "classes": 4,
        "test-fraction": 0.3,
        "seed": 1,
        "optimiser": "sgd",
        "learning-rate": 0.01,
        "schedule": "constant",
        "epochs": 5,
        "batch-size": 50,
        "base": 2.0,
        "label-smoothing": 0.1,
        "weight-decay": 0.0,
    }.items(),
)
def test_resuming_with_another_setting_is_refused(earlier, finished, capsys, option, value):
    assert run(earlier, "--resume", f"--{option}", value) != 0
    assert f"{option.replace('-', '_')} was" in the_one_line(capsys)
    assert contents(earlier) == contents(finished)


def test_a_damaged_checkpoint_is_refused_or_harmless(earlier, finished, capsys):
    path = earlier / program.CHECKPOINT
    whole = path.read_bytes()
    config = program.parse([*SMALL, "--output", str(earlier)]).settings
    like, settings = program.initial_state(program.load_data(config), config), config.result_settings()
    expected = checkpoint.npz(checkpoint.load(path, like, settings))
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            state = checkpoint.load(path, like, settings)
        except checkpoint.CheckpointError:
            continue
        # A flip in what a zip keeps twice, or not for reading, leaves the state whole.
        assert checkpoint.npz(state) == expected
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert run(earlier, "--resume") != 0
        assert "damaged" in the_one_line(capsys)
        assert path.read_bytes() == whole[:length]


def test_a_folder_that_holds_a_run_is_refused(earlier, finished, capsys):
    assert run(earlier) != 0
    assert "--overwrite" in the_one_line(capsys)
    assert contents(earlier) == contents(finished)
    # Not even where the run has lost its checkpoint and only its results are left.
    (earlier / program.CHECKPOINT).unlink()
    assert run(earlier, "--resume") != 0
    assert "no checkpoint.npz" in the_one_line(capsys)


def test_overwriting_keeps_the_old_results_until_the_new_ones_are_there(earlier, finished, no_pictures):
    def results():
        return {name: content for name, content in contents(earlier).items() if name in program.RESULTS}

    old = results()
    with pytest.MonkeyPatch.context() as patch:
        die_at_disk_operation(patch, 4)  # both checkpoints are written, no result is
        with pytest.raises(Killed):
            run(earlier, "--overwrite", "--seed", 1)
    assert results() == old
    assert run(earlier, "--overwrite", "--seed", 1) == 0
    assert json.loads(results()["metrics.json"])["settings"]["seed"] == 1


def test_a_full_disk_gets_one_line_and_costs_no_file(earlier, finished, monkeypatch, capsys):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run(earlier, "--overwrite") != 0
    assert "No space left" in the_one_line(capsys)
    after = contents(earlier)
    assert {name: after[name] for name in contents(finished)} == contents(finished)


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


def test_options_override_the_config_and_the_config_the_default(tmp_path, no_pictures):
    config = tmp_path / "config.toml"
    config.write_text(DEFAULT_CONFIG.read_text().replace("seed = 0", "seed = 7").replace("1e-3", "0.5"))
    assert run(tmp_path / "new", "--config", config, "--weight_decay", "0.25", "--schedule=constant") == 0
    settings = json.loads((tmp_path / "new" / "metrics.json").read_text())["settings"]
    assert settings.items() >= {"seed": 7, "weight_decay": 0.25, "schedule": "constant", "epochs": 4}.items()


def test_the_help_states_what_happens_to_an_earlier_run(capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(["--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "--resume goes on" in shown
    assert "--overwrite starts anew" in shown
