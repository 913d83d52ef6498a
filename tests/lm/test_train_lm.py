"""The language model: the files of a run, its metrics, and runs that are interrupted, killed or refused."""

import gc
import itertools
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import matplotlib.image
import numpy as np
import pytest
from covering import slow
from endings import the_one_line
from lm_runs import config_of, hidden_states, last_state, metrics, options, run, same_result

import train_lm as program
from common import runs
from language_model import data, plots
from language_model.evaluation import BINS, METRICS


def test_a_run_leaves_its_files_and_no_others(finished):
    assert {path.name for path in finished.output.iterdir()} == {runs.FOLDER, *program.RESULTS, runs.LOCK}
    assert {path.name for path in (finished.output / runs.FOLDER).iterdir()} == {"8", "12"}
    for name in plots.NAMES:
        height, width, _ = matplotlib.image.imread(finished.output / name).shape
        assert min(height, width) > 300
    assert (finished.output / "sample.txt").read_text().startswith("the ")


def test_it_learns(finished):
    assert metrics(finished.output)["test"]["nats_per_token"] < math.log(finished.vocabulary) - 1.5
    curves = last_state(finished).curves
    assert program.evaluation_steps(finished) == [5, 10, 12]
    assert np.all(np.diff(curves["test_loss"]) < 0)
    assert np.all(np.isfinite(curves["loss"]))


def test_the_metrics_are_those_of_the_parameters(finished):
    """Computes the metrics of the held-out files from their definitions, in float64."""
    model, corpus = last_state(finished).model, data.load(finished)
    test = corpus.test.tolist()
    nats, tokens, predicted = 0.0, 0, []
    others, confidence, right = [], [], []
    for start in range(0, len(test) - 1, finished.sequence_length):
        window = test[start : start + finished.sequence_length + 1]
        hidden = np.asarray(hidden_states(model, np.array([window[:-1]]))[0], np.float64)
        logits = hidden @ np.asarray(model.kernel, np.float64)
        log_probability = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        for position, (before, token) in enumerate(itertools.pairwise(window)):
            if before != finished.end:
                nats -= log_probability[position, token]
                tokens += 1
                predicted.append(token)
                row = log_probability[position]
                rank = np.sum(row > row[token])
                others.append((rank == 0, rank < 5, -np.sum(np.exp(row) * row)))
                confidence.append(np.exp(row.max()))
                right.append(rank == 0)
    size = len(corpus.tokenizer.decode([token for token in predicted if token != finished.end]).encode())
    # The first token of a file is not predicted. It is `#`, and so not a part of a longer character.
    numbers = {"tokens": tokens, "bytes": size, "nats_per_token": nats / tokens}
    numbers |= {"bits_per_byte": nats / math.log(2) / size, "perplexity": math.exp(nats / tokens)}
    names = ("accuracy", "top_5_accuracy", "entropy")
    numbers |= {"cross_entropy": nats / tokens, "z_loss": 0.0} | dict(zip(names, np.mean(others, axis=0), strict=True))
    in_bin = np.ceil(np.array(confidence) * BINS).astype(int) - 1
    gaps = np.bincount(in_bin, np.array(right) - np.array(confidence), BINS)
    numbers["calibration_error"] = np.abs(gaps).sum() / tokens
    assert metrics(finished.output)["test"] == pytest.approx(numbers, rel=1e-5)


def test_the_metrics_hold_the_last_steps(finished):
    curves = last_state(finished).curves
    last = {name: float(np.mean(curves[name][-program.REPORT_EVERY :])) for name in ("loss", *METRICS)}
    assert metrics(finished.output)["train"]["last_steps"] == pytest.approx(last, rel=1e-5)
    assert last["cross_entropy"] == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 2])
def test_a_run_killed_with_kill_9_and_resumed_ends_bit_identical(tmp_path, text, kills):
    settings = {"steps": 24 * kills, "checkpoint_every": 1, "evaluate_every": 20}
    victim, other = (config_of(tmp_path / name, text, **settings) for name in ("killed", "uninterrupted"))

    def start(config, *flags):
        command = [sys.executable, program.__file__, *options(config.output, text, **settings), *flags]
        # Without JAX's compilation cache: a killed process may leave half an entry in it.
        environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    for _ in range(kills):
        process, seen = start(victim, "--resume"), finished_steps(victim)
        while finished_steps(victim) <= seen + 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.1))  # anywhere in a step or a checkpoint
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert finished_steps(victim) < victim.steps

    assert run(victim.output, text, "--resume", **settings) == 0
    assert run(other.output, text, **settings) == 0
    same_result(victim, other)


def finished_steps(config):
    folder = config.output / runs.FOLDER
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, *slow(signal.SIGINT)])
def test_a_signal_saves_and_stops(tmp_path, text, finished, no_plots, monkeypatch, capsys, number):
    config = config_of(tmp_path / "run", text)
    step = program.train_step

    def interrupted(state, *given):
        if int(state.step) == 5:
            signal.raise_signal(number)
        return step(state, *given)

    monkeypatch.setattr(program, "train_step", interrupted)
    assert run(config.output, text) == 130
    assert "--resume" in the_one_line(capsys)
    assert finished_steps(config) == 6
    monkeypatch.setattr(program, "train_step", step)
    assert run(config.output, text, "--resume") == 0
    assert "Resumed after step 6" in capsys.readouterr().out
    same_result(config, finished)


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_divergence_stops_with_the_step_and_the_last_good_checkpoint(tmp_path, text, monkeypatch, capsys, name):
    step = program.train_step

    def diverging(state, *given):
        state = step(state, *given)
        if int(state.step) >= 7:
            state = state._replace(curves=state.curves | {name: state.curves[name].at[6:8].set(np.nan)})
        return state

    monkeypatch.setattr(program, "train_step", diverging)
    assert run(tmp_path / "run", text) == 2
    line = the_one_line(capsys)
    assert f"the {name.replace('_', ' ')} is nan at step 7" in line
    assert f"the last good checkpoint is {tmp_path}/run/checkpoints/4" in line
    assert finished_steps(config_of(tmp_path / "run", text)) == 4


@pytest.mark.slow
def test_a_learning_rate_that_is_too_high_diverges_before_a_checkpoint(tmp_path, text, capsys):
    assert run(tmp_path / "run", text, learning_rate=1e30) == 2
    line = the_one_line(capsys)
    assert "lower `learning_rate`; there is no good checkpoint" in line


# Threads of Orbax outlive the event loop that they report to.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_takes_no_more_costs_no_checkpoint(tmp_path, text, finished, no_plots, monkeypatch, capsys):
    config = config_of(tmp_path / "run", text)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = runs.Run.save

    def limited(self, step, state):
        # A limit of 4 kB per file fails in the middle of a write, like a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if step == 8 else limits[0], limits[1]))
        try:
            save(self, step, state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(runs.Run, "save", limited)
    assert run(config.output, text) == 2
    line = the_one_line(capsys)
    assert f"cannot save step 8; the last good checkpoint is {config.output}/checkpoints/4" in line
    monkeypatch.setattr(runs.Run, "save", save)
    assert run(config.output, text, "--resume") == 0
    assert "Resumed after step 4" in capsys.readouterr().out
    same_result(config, finished)
    gc.collect()  # so that what the failed write left does not warn in a later test


@pytest.mark.slow  # `test_runs.py` and the classifier have the same module
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, text, finished, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished.output, folder)
    config = config_of(folder, text)
    last, before = folder / runs.FOLDER / "12", folder / runs.FOLDER / "8"
    flip_a_bit(max((last / "state").rglob("*"), key=lambda path: path.stat().st_size))
    assert run(folder, text, "--resume") == 2
    assert f"{last} is damaged; the last good checkpoint is {before}. Delete {last}" in the_one_line(capsys)
    shutil.copytree(before, tmp_path / "kept")
    (before / "settings.json").unlink()
    assert run(folder, text, "--resume") == 2
    assert f"{last} is damaged; there is no good checkpoint." in the_one_line(capsys)
    shutil.rmtree(before)
    shutil.move(tmp_path / "kept", before)
    shutil.rmtree(last)
    assert run(folder, text, "--resume") == 0
    same_result(config, finished)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--overwrite",)])
def test_no_second_run_is_let_into_the_folder_of_a_running_one(tmp_path, text, finished, capsys, flags):
    folder = tmp_path / "run"
    shutil.copytree(finished.output, folder)
    with runs.lock(folder):
        assert run(folder, text, *flags) == 2
        assert f"{folder} is in use by process {os.getpid()}, which began at " in the_one_line(capsys)
        for name in ("8", "12"):
            assert runs.is_intact(folder / runs.FOLDER / name)


def test_resuming_with_another_setting_or_text_is_refused(tmp_path, text, finished, capsys):
    assert run(finished.output, text, "--resume", learning_rate=0.01) == 2
    assert "learning_rate was 0.02 and is now 0.01" in the_one_line(capsys)
    other = shutil.copytree(text, tmp_path / "other" / "text")
    (other / "0.txt").write_text("a dog\n")
    (other / "1.txt").write_text("a cat\n")
    assert run(finished.output, other, "--resume") == 2
    assert "belongs to a run with other settings" in the_one_line(capsys)


def test_an_earlier_run_is_not_lost(tmp_path, text, finished, no_plots, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished.output, folder)
    assert run(folder, text) == 2
    assert "--resume to go on with it, --overwrite to replace it" in the_one_line(capsys)
    assert run(folder, text, "--overwrite", checkpoint_every=3) == 0
    assert {path.name for path in (folder / runs.FOLDER).iterdir()} == {"9", "12"}


def test_where_nothing_can_be_written(tmp_path, text, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "run", text) == 2
    assert "cannot write to the output folder" in the_one_line(capsys)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vocabulary": 256}, "`vocabulary` must be from 257, the bytes and the end of a file, to 16777216, got 256"),
        ({"vocabulary": 2**24 + 1}, "to 16777216, got 16777217"),
        ({"text": "/no/such folder"}, "`text` must be a folder, and /no/such folder does not exist"),
        ({"text": __file__}, f"`text` must be a folder, and {__file__} is not one"),
        ({"pattern": "."}, "`pattern` must be"),
        ({"pattern": "**.md"}, "**.md"),
        ({"heads": 3}, "`heads` 3 must leave an even number of features for each, got `features` 16"),
        ({"microbatches": 3}, "`microbatches` 3 must leave as many sequences in each, got `batch_size` 8"),
        ({"test_fraction": 1e-9}, "leaves no text to test on"),
        ({"test_fraction": 0.999999999}, "leaves no text to train on"),
        ({"pattern": "*.md"}, "no file in"),
        ({"pattern": "/etc/*"}, "`pattern` must be"),
        ({"sequence_length": 4096}, "tokens to train on, and a step takes 8 sequences of 4096"),
        ({"temperature": 0}, "`temperature` must be above 0"),
        ({"mesh": "data=4,classes=2"}, "needs 8 devices"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, text, capsys, settings, said):
    assert run(tmp_path / "run", text, **settings) == 2
    assert said in the_one_line(capsys)
    assert not (tmp_path / "run").exists()
