"""Distillation: the losses of the students, the labels on the disk, and runs that are interrupted or refused."""

import json
import math
import os
import resource
import shutil
import signal

import jax
import matplotlib.image
import numpy as np
import pytest
from closeness import near
from covering import slow
from endings import the_one_line
from jaxprs import equations
from lm_runs import default_config, distil, distil_words, hidden_states

import distil as program
import train_lm
from benchmarks import distil_report
from common import runs, settings
from language_model import distillation, teacher
from language_model.data import pack
from language_model.distillation import Distillation, Options, distance
from language_model.teacher import SparseLabelBatches

mean_loss_and_gradient = jax.jit(train_lm.mean_loss_and_gradient, static_argnames="config")


def wanted_of(finished, **changed):
    return settings.parse(Options, distil_words(finished, "none", **changed), distillation.DEFAULT_CONFIG).settings


@pytest.fixture(scope="module")
def taught(finished):
    """The folder of a finished run."""
    output = finished.output.parent / "taught"
    assert distil(finished, output) == 0
    return output


@pytest.fixture(scope="module")
def known(finished):
    """The teacher, and a student's settings."""
    config = teacher.config_of(finished.output, cache=finished.cache, mesh="")
    return teacher.load(config, train_lm.initial_state(config)), wanted_of(finished).student(config)


def results_in(folder):
    return json.loads((folder / "distil.json").read_text())


def log_softmax(model, rows):
    """The log-probabilities at each position, in float64, from the definition."""
    logits = np.asarray(hidden_states(model, rows[:, :-1]), np.float64) @ np.asarray(model.kernel, np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def test_a_run_leaves_its_files_and_no_others(taught):
    assert {path.name for path in taught.iterdir()} == {*distil_report.STUDENTS, *program.RESULTS}
    for name in distil_report.STUDENTS:
        assert {path.name for path in (taught / name / runs.FOLDER).iterdir()} == {"4", "8"}
    assert min(matplotlib.image.imread(taught / "distil.png").shape[:2]) > 300


def test_all_learn(taught, finished):
    results = results_in(taught)
    assert results["teacher"]["agreement"] == 1
    assert results["teacher"]["kl"] == pytest.approx(0, abs=1e-6)
    assert results["evaluated"] == [3, 6, 8]
    for of in results["students"].values():
        assert of["nats_per_token"] < math.log(finished.vocabulary) - 0.5
        assert of["curve"][-1] == pytest.approx(of["nats_per_token"], rel=1e-6)
        assert np.all(np.diff(of["curve"]) < 0)
        assert of["temporary_bytes"] > 0


def test_the_table_holds_what_was_measured(taught):
    results = results_in(taught)
    *_, hidden, _, of_teacher = (row.split(" | ") for row in distil_report.table(results).splitlines())
    assert hidden[0] == f"| {distil_report.STUDENTS['hidden']}"
    assert float(hidden[1]) == pytest.approx(results["students"]["hidden"]["nats_per_token"], abs=1e-3)
    assert of_teacher[3] == "100.0%"
    assert results["bytes_per_token"] == {"logits": 4 * 320, "hidden": 4 * 16, "sparse": 8 * 4}


def test_the_distance_is_that_of_the_logits(known):
    known, config = known
    student = train_lm.initial_state(config).model
    rows = pack(known.corpus.test, config.sequence_length, config.end)
    counted = rows[:, :-1] != config.end
    p, q = (log_softmax(model, rows)[counted] for model in (known.model, student))
    expected = {"agreement": np.mean(p.argmax(-1) == q.argmax(-1)), "kl": np.mean(np.sum(np.exp(p) * (p - q), -1))}
    assert distance(known.model, student, known.corpus, config) == pytest.approx(expected, rel=1e-5)


def test_the_labels_on_the_disk_are_the_most_likely_tokens(known):
    known, config = known
    batches = SparseLabelBatches(known, 8, 8, config)
    for step in (0, 7):
        ids, log_probabilities = batches[step]["ids"][0], batches[step]["log_probabilities"][0]
        expected = log_softmax(known.model, batches[step]["tokens"][0])
        np.testing.assert_allclose(log_probabilities, -np.sort(-expected, axis=-1)[..., :8], rtol=2**-10)
        at_ids = np.take_along_axis(expected, ids.astype(int), axis=-1)
        np.testing.assert_allclose(log_probabilities, at_ids, rtol=2**-10)


@pytest.mark.parametrize("rest", ["text", "label"])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_loss_of_sparse_labels_is_that_of_the_distribution_they_stand_for(known, finished, rest, share):
    known, config = known
    lesson = program.make_lessons(known, wanted_of(finished, rest=rest, text_share=share), config)["sparse"]
    student, batch = train_lm.initial_state(config).model, jax.tree.map(lambda leaf: leaf[0], lesson.batches[3])
    rows, ids, log_probabilities = batch["tokens"], batch["ids"], batch["log_probabilities"]
    held = np.exp(log_probabilities.astype(np.float64))
    own = share + (1 - share) * (1 - held.sum(-1)) if rest == "text" else np.full(held.shape[:-1], share)
    held *= (1 - share) / (1 if rest == "text" else held.sum(-1, keepdims=True))
    q = log_softmax(student, rows)
    of_text = np.take_along_axis(q, rows[:, 1:, None], axis=-1)[..., 0]
    losses = -np.sum(held * np.take_along_axis(q, ids.astype(int), axis=-1), axis=-1) - own * of_text
    close(lesson, student, batch, losses, config)


@pytest.mark.parametrize(
    ("kind", "temperature", "share"),
    [("forward_kl", 2.0, 0.25), ("reverse_kl", 1.0, 0.0), ("jensen_shannon", 1.5, 0.5)],
)
def test_the_loss_of_hidden_states_is_the_divergence_from_their_distribution(known, finished, kind, temperature, share):
    known, config = known
    asked = wanted_of(finished, kind=kind, beta=0.3, temperature=temperature, text_share=share)
    lesson = program.make_lessons(known, asked, config)["hidden"]
    student, rows = train_lm.initial_state(config).model, lesson.batches[3]["tokens"][0]
    text = -np.take_along_axis(log_softmax(student, rows), rows[:, 1:, None], axis=-1)[..., 0]
    p, q = (log_softmax(model, rows) / temperature for model in (known.model, student))
    p, q = (row - np.logaddexp.reduce(row, axis=-1, keepdims=True) for row in (p, q))
    middle = np.logaddexp(np.log(0.3) + p, np.log(0.7) + q)
    kl = {pair: np.sum(np.exp(a) * (a - b), axis=-1) for pair, a, b in
          (("pq", p, q), ("qp", q, p), ("pm", p, middle), ("qm", q, middle))}  # fmt: skip
    divergence = {
        "forward_kl": kl["pq"],
        "reverse_kl": kl["qp"],
        "jensen_shannon": 0.3 * kl["pm"] + 0.7 * kl["qm"],
    }[kind]
    losses = (1 - share) * temperature**2 * divergence + share * text
    close(lesson, student, {"tokens": rows}, losses, config)


def close(lesson, student, batch, losses, config):
    total, _ = lesson.loss(student, batch, config)
    assert float(total) == pytest.approx(np.sum(losses[batch["tokens"][:, :-1] != config.end]), rel=1e-4)


@pytest.mark.parametrize("name", ["sparse", *slow("hidden")])
def test_microbatches_are_one_batch(known, finished, name):
    known, config = known
    lesson = program.make_lessons(known, wanted_of(finished), config)[name]
    student, batch = train_lm.initial_state(config).model, lesson.batches[0]
    results = []
    for parts in (1, 4):
        split = jax.tree.map(lambda a, parts=parts: a.reshape(parts, -1, *a.shape[2:]), batch)
        results.append(mean_loss_and_gradient(student, split, config, lesson.loss))
    near(*results, 2 * batch["tokens"][..., 1:].size)


@pytest.mark.parametrize("name", ["hidden", *slow("sparse")])
def test_a_step_of_the_default_size_never_holds_the_logits(name):
    teacher_config, wanted = default_config(), settings.read(distillation.DEFAULT_CONFIG, Distillation)
    config = wanted.student(teacher_config)
    labels = (1, config.batch_size, config.sequence_length, wanted.k)
    batch = {"tokens": jax.ShapeDtypeStruct((1, config.batch_size, config.sequence_length + 1), np.int32)}
    model = jax.eval_shape(train_lm.initial_state, teacher_config).model
    if name == "sparse":
        loss = distillation.SparseLabelLoss("text", 0.0)
        batch["ids"] = jax.ShapeDtypeStruct(labels, np.uint16)
        batch["log_probabilities"] = jax.ShapeDtypeStruct(labels, np.float16)
    else:
        loss = distillation.HiddenStateLoss(model, "forward_kl", 0.5, 1.0, 0.5)
    state = jax.eval_shape(train_lm.initial_state, config)

    def step(state, batch, loss):
        return train_lm.train_step(state, batch, config, loss)

    jaxpr = jax.make_jaxpr(step)(state, batch, loss)
    largest = max(variable.aval.size for eqn in equations(jaxpr) for variable in eqn.outvars)
    assert largest < config.batch_size * config.sequence_length * config.vocabulary


@pytest.mark.slow
def test_a_signal_saves_and_stops_and_the_rest_is_the_uninterrupted_run(
    tmp_path, finished, taught, monkeypatch, capsys
):
    step, calls = train_lm.train_step, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 8 + 3:  # of the second student's
            signal.raise_signal(signal.SIGTERM)
        return step(*given)

    monkeypatch.setattr(train_lm, "train_step", interrupted)
    assert distil(finished, tmp_path / "run") == 130
    assert "--resume" in the_one_line(capsys)
    monkeypatch.setattr(train_lm, "train_step", step)
    assert distil(finished, tmp_path / "run", "--resume") == 0
    said = capsys.readouterr().out
    assert f"{distil_report.STUDENTS['hidden']}, after step 3" in said
    results, expected = results_in(tmp_path / "run"), results_in(taught)
    for name, of in expected["students"].items():
        same = {key: of[key] for key in of.keys() - {"seconds", "quartiles"}}
        assert {key: results["students"][name][key] for key in same} == same


def test_damaged_labels_are_written_again_and_a_full_disk_is_refused_by_name(known, finished, tmp_path):
    known, config = known
    SparseLabelBatches(known, 5, 8, config)
    folder = max(config.cache.glob("labels-*"), key=os.path.getmtime)
    content = (folder / teacher.LABELS).read_bytes()
    (folder / teacher.LABELS).write_bytes(content[:-1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(program.WrongInput, match=f"cannot write {folder}: File too large"):
            SparseLabelBatches(known, 5, 8, config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(config.cache.glob(f".{folder.name}*"))
    SparseLabelBatches(known, 5, 8, config)
    assert (folder / teacher.LABELS).read_bytes() == content


def test_an_earlier_run_is_not_lost(finished, taught, capsys):
    assert distil(finished, taught) == 2
    assert "sparse already holds a run (checkpoints): pass --resume" in the_one_line(capsys)
    assert distil(finished, taught, "--resume", k=7) == 2
    assert "k was 8 and is now 7" in the_one_line(capsys)


def test_another_teacher_is_refused(finished, known, taught, monkeypatch, capsys):
    known, _ = known
    same, other = (known._replace(model=jax.tree.map(lambda a, by=by: a * by, known.model)) for by in (1.0, 1.5))
    assert known.fingerprint == same.fingerprint != other.fingerprint
    monkeypatch.setattr(teacher, "load", lambda *_: other)
    assert distil(finished, taught, "--resume") == 2
    assert f"teacher was '{known.fingerprint}' and is now '{other.fingerprint}'" in the_one_line(capsys)


def test_a_teacher_that_cannot_teach_is_refused(tmp_path, finished, capsys):
    assert distil(finished, tmp_path / "run", teacher=tmp_path) == 2
    wrong = "`teacher` must be the folder of a finished run of train_lm.py, and"
    assert f"{wrong} {tmp_path}/metrics.json cannot be used: No such file" in the_one_line(capsys)
    folder = shutil.copytree(finished.output, tmp_path / "teacher")
    with runs.lock(folder):
        assert distil(finished, tmp_path / "run", teacher=folder) == 2
    assert f"{folder} is in use by process {os.getpid()}" in the_one_line(capsys)
    shutil.rmtree(folder / runs.FOLDER / "12")
    assert distil(finished, tmp_path / "run", teacher=folder) == 2
    assert f"`teacher` {folder} has no checkpoint of its last step, 12" in the_one_line(capsys)
    (folder / teacher.METRICS).write_text("{}")
    assert distil(finished, tmp_path / "run", teacher=folder) == 2
    assert wrong in the_one_line(capsys)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"k": 0}, "`k` must be at least 1"),
        ({"k": 321}, "`k` 321 is more than the teacher's vocabulary of 320"),
        ({"beta": 1.0}, "`beta` must be between 0 and 1"),
        ({"temperature": 0.0}, "`temperature` must be above 0"),
        ({"text_share": 1.5}, "`text_share` must be from 0 to 1"),
        ({"kind": "kl"}, "kind"),
        ({"heads": 3}, "`heads` 3 must leave"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, finished, capsys, changed, said):
    assert distil(finished, tmp_path / "run", **changed) == 2
    assert said in the_one_line(capsys)
    assert not (tmp_path / "run").exists()
