"""Distillation on a mesh has the same results as on one device, from labels that were computed on the mesh."""

import json

import jax
import numpy as np
import pytest
from lm_runs import config_of, distil, run, write_text

import train_lm
from language_model.distillation import HiddenStateLoss, SparseLabelLoss

# AdamW enlarges rounding errors of a gradient that is nearly 0: these steps are few, with a small learning rate.
SMALL = {"steps": 2, "evaluate_every": 1, "checkpoint_every": 2, "learning_rate": 1e-3}


def test_the_losses_are_those_of_one_device(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 319, (8, 16, 4), np.uint16)
    log_probabilities = np.log(rng.dirichlet(np.ones(5), (8, 16))[..., :4]).astype(np.float16)
    tokens = rng.integers(0, 320, (8, 17), np.int32)
    batch = {"tokens": tokens, "ids": ids, "log_probabilities": log_probabilities}
    totals = []
    for mesh in ("", "data=2,classes=4"):
        config = config_of(tmp_path / "run", tmp_path, mesh=mesh)
        with config.on_mesh():
            model = train_lm.initial_state(config).model
            teacher = jax.tree.map(lambda leaf: 3 * leaf, model)
            losses = [SparseLabelLoss("text", 0.25), HiddenStateLoss(teacher, "jensen_shannon", 0.3, 2.0, 0.25)]
            totals.append([float(jax.jit(lambda m, b, f=f, c=config: f(m, b, c)[0])(model, batch)) for f in losses])
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)


@pytest.mark.slow
def test_a_mesh_changes_nothing(tmp_path):
    text = write_text(tmp_path / "text")
    teacher = config_of(tmp_path / "teacher", text, steps=4)
    assert run(teacher.output, text, steps=4) == 0
    results = []
    for mesh, cache in (("", "cache"), ("data=2,classes=4", "other")):
        output = tmp_path / f"run {mesh}"
        assert distil(teacher, output, **SMALL, mesh=mesh, cache=tmp_path / cache, text_share=0.25) == 0
        results.append(json.loads((output / "distil.json").read_text()))
    for name, of in results[1]["students"].items():
        for number in ("curve", "nats_per_token", "kl", "agreement", "calibration_error"):
            assert of[number] == pytest.approx(results[0]["students"][name][number], rel=1e-4), (name, number)
