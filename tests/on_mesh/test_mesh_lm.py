"""The language model on a mesh has the same result as on one device."""

import jax
import numpy as np
import pytest
from endings import the_one_line
from lm_runs import config_of, last_state, metrics, run, write_text

import train_lm as program
from common.runs import Run
from language_model import plots

# AdamW enlarges rounding errors of a gradient that is nearly 0: these steps are few, with a small learning rate.
SMALL = {"steps": 4, "checkpoint_every": 2, "learning_rate": 1e-3, "evaluate_every": 4, "z_loss": 1e-3}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("lm") / "text")


@pytest.fixture(scope="module", autouse=True)
def training_alone():
    """No plots and no sample of text: the tests do not read them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", lambda *_: dict.fromkeys(plots.NAMES, b"a plot"))
        patch.setattr(program, "sample", lambda *_: "")
        yield


@pytest.fixture(scope="module")
def alone(text):
    config = config_of(text.parent / "alone", text, **SMALL)
    assert run(config.output, text, **SMALL) == 0
    return config


def same(config, alone):
    ours, theirs = last_state(config).curves, last_state(alone).curves
    for name, curve in ours.items():
        if config.loss == "fused" or name in ("loss", "gradient_norm", "test_loss"):  # the others log no metrics
            np.testing.assert_allclose(np.asarray(curve), np.asarray(theirs[name]), rtol=1e-4)
    assert metrics(config.output)["test"] == pytest.approx(metrics(alone.output)["test"], rel=1e-4)


@pytest.mark.parametrize(
    ("mesh", "settings"),
    [
        ("data=2,classes=4", {}),
        pytest.param("data=2,classes=4", {"loss": "logits"}, marks=pytest.mark.slow),
        pytest.param("data=2,classes=4", {"loss": "optax"}, marks=pytest.mark.slow),
        pytest.param("data=4", {"microbatches": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_nothing(alone, text, tmp_path, mesh, settings):
    settings = {**SMALL, **settings, "mesh": mesh}
    assert run(tmp_path, text, **settings) == 0
    config = config_of(tmp_path, text, **{**settings, "mesh": ""})
    same(config, alone)


@pytest.mark.slow
def test_a_run_is_resumed_on_another_mesh(alone, text, tmp_path, monkeypatch):
    save = Run.save

    def stops(self, step, state):
        save(self, step, state)
        if step == 2:
            embedding = state.model.embedding
            assert embedding.sharding.shard_shape(embedding.shape)[0] == embedding.shape[0] // 4
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", stops)
    assert run(tmp_path, text, **SMALL, mesh="data=2,classes=4") == 130
    monkeypatch.setattr(Run, "save", save)
    assert run(tmp_path, text, "--resume", **SMALL, mesh="classes=2") == 0
    same(config_of(tmp_path, text, **SMALL), alone)


def test_refusals(text, tmp_path, capsys):
    assert run(tmp_path / "new", text, mesh="classes=3") == 2
    assert "`vocabulary` 320 does not divide by the classes=3 of `mesh`" in the_one_line(capsys)
    assert run(tmp_path / "new", text, mesh="data=8", microbatches=2) == 2
    assert "`batch_size / microbatches` 4 does not divide by the data=8" in the_one_line(capsys)
    assert jax.device_count() == 8
