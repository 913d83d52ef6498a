"""The classifier: the files of a run, the optimum that it reaches, and runs that are killed or interrupted."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import jax
import matplotlib.image
import numpy as np
import pytest
import scipy.special
from classifier_runs import SMALL, arrays, contents, die_at_disk_operation, last_state, run
from covering import slow
from endings import Killed, the_one_line
from sklearn.linear_model import LogisticRegression

import train_classifier as program
from classifier import plots
from common.runs import FOLDER, LOCK
from common.settings import parse


def test_a_run_leaves_its_files_and_no_others(finished):
    assert {path.name for path in finished.iterdir()} == {FOLDER, *program.RESULTS, LOCK}
    assert {path.name for path in (finished / FOLDER).iterdir()} == {"2", "4"}
    for name in plots.NAMES:
        height, width, _ = matplotlib.image.imread(finished / name).shape
        assert min(height, width) > 300
    # Whoever sees metrics.json sees the other results, too.
    assert program.RESULTS[-1] == "metrics.json"


def load_data(settings):
    words = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    return program.load_data(parse(program.Options, words, program.DEFAULT_CONFIG).settings)


def test_the_metrics_are_those_of_the_parameters(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    params = arrays(finished / "params.npz")
    for part, images in load_data(metrics["settings"])._asdict().items():
        logits = np.float64(images.pixels) @ params["kernel"] + params["bias"]
        labels = np.asarray(images.labels)
        nats = np.mean(np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(labels)), labels])
        expected = {"images": len(labels), "accuracy": np.mean(np.argmax(logits, axis=-1) == labels)}
        expected |= {"nats": nats, "bits": nats / math.log(2), "hartleys": nats / math.log(10)}
        expected |= {"perplexity": math.exp(nats), **calibration_of(logits, labels)}
        temperature = metrics[part].pop("temperature")
        assert metrics[part] == pytest.approx(expected, rel=1e-5)
        # At the temperature that minimises the loss, the mean loss equals the mean entropy.
        scaled = logits / temperature
        q = scipy.special.softmax(scaled, axis=-1)
        log_q = scipy.special.log_softmax(scaled, axis=-1)
        own = np.eye(3)[labels]
        assert np.sum(own * log_q) == pytest.approx(np.sum(q * log_q), rel=1e-4)


def calibration_of(logits, labels):
    q, own = scipy.special.softmax(logits, axis=-1), np.eye(logits.shape[-1])[labels]
    confidence, right = np.max(q, axis=-1), np.argmax(q, axis=-1) == labels
    bins = np.ceil(10 * confidence)
    off = sum(abs(np.sum((right - confidence)[bins == b])) for b in range(1, 11))
    return {"brier_score": np.mean(np.sum((q - own) ** 2, axis=-1)), "calibration_error": off / len(labels)}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("", marks=pytest.mark.slow),
        "--classes 3 --epochs 300 --base 2 --weight-decay 0.01 --optimiser sgd --batch-size 429 --learning-rate 1",
    ],
    ids=["as configured", "another base and optimiser"],
)
def test_it_reaches_the_optimum_that_scikit_learn_finds(tmp_path, no_plots, options):
    assert run(tmp_path, *options.split(), small=()) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    settings = metrics["settings"]
    train, test = load_data(settings)
    pixels, labels = np.float64(train.pixels), np.asarray(train.labels)
    decay, ln_base = settings["weight_decay"], math.log(settings["base"])
    peer = LogisticRegression(C=1 / (len(labels) * decay * ln_base), tol=1e-8, max_iter=10_000).fit(pixels, labels)

    loss = -np.mean(peer.predict_log_proba(pixels)[np.arange(len(labels)), labels]) / ln_base
    unit = {10.0: "hartleys", 2.0: "bits"}[settings["base"]]
    assert metrics["train"][unit] == pytest.approx(loss, rel=1e-3)
    assert metrics["objective"] == pytest.approx(loss + decay / 2 * np.sum(peer.coef_**2), rel=1e-4)
    right = np.sum(peer.predict(np.float64(test.pixels)) == np.asarray(test.labels))
    assert abs(metrics["test"]["accuracy"] * len(test.labels) - right) < 1.01


# Two checkpoints, each a rename, and six results, each a write and a rename.
@pytest.mark.parametrize("number", [1, 2, *slow(0, *range(3, 14))])
def test_wherever_a_run_is_killed_the_resumed_run_ends_the_same(tmp_path, finished, no_plots, number):
    with pytest.MonkeyPatch.context() as patch:
        die_at_disk_operation(patch, number)
        with pytest.raises(Killed):
            run(tmp_path)
    assert run(tmp_path, "--resume") == 0
    same_result(tmp_path, finished)


def same_result(folder, expected):
    """Compares the parameters, the optimiser's moments and the curves bit by bit, and the metrics."""
    for load in (last_state, lambda folder: arrays(folder / "params.npz")):
        for ours, theirs in zip(*map(jax.tree.leaves, (load(folder), load(expected))), strict=True):
            assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert (folder / "metrics.json").read_bytes() == (expected / "metrics.json").read_bytes()


def test_a_run_killed_with_kill_9_and_resumed_ends_bit_identical(tmp_path, finished, no_plots):
    victim = start(tmp_path / "killed", *SMALL, "--checkpoint-every", 1)
    while not (tmp_path / "killed" / FOLDER / "1").exists():
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.2))  # anywhere in an epoch or a checkpoint
    victim.kill()
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    assert run(tmp_path / "killed", "--resume") == 0
    same_result(tmp_path / "killed", finished)


def start(output, *options):
    command = [sys.executable, program.__file__, *map(str, options), "--output", output]
    # Without JAX's compilation cache: a killed process may leave half an entry in it.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGINT, *slow(signal.SIGTERM)])
def test_a_signal_finishes_the_epoch_saves_and_stops(tmp_path, finished, no_plots, monkeypatch, capsys, number):
    record = program.record

    def interrupted(state, *given):
        if int(state.epoch) == 0:
            signal.raise_signal(number)
        return record(state, *given)

    monkeypatch.setattr(program, "record", interrupted)
    assert run(tmp_path) == 130
    assert the_one_line(capsys) == "error: interrupted; --resume goes on from the last checkpoint."
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"1"}
    assert run(tmp_path, "--resume") == 0
    assert "Resumed after epoch 1" in capsys.readouterr().out
    same_result(tmp_path, finished)


def test_ctrl_c_outside_the_loop_gets_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "load_data", lambda _: signal.raise_signal(signal.SIGINT))
    assert run(tmp_path) == 130
    assert the_one_line(capsys) == "error: interrupted; --resume goes on from the last checkpoint."


def test_resuming_a_finished_run_changes_nothing(earlier, finished, capsys):
    # `--checkpoint-every` does not change the result, and so does not hinder.
    assert run(earlier, "--resume", "--checkpoint-every", 1) == 0
    assert "Resumed after epoch 4" in capsys.readouterr().out
    assert contents(earlier) == contents(finished)


def test_resuming_where_nothing_was_written_begins(tmp_path, finished, no_plots, capsys):
    assert run(tmp_path / "new", "--resume") == 0
    assert "starting from the beginning" in capsys.readouterr().out
    same_result(tmp_path / "new", finished)
