"""Distillation on a mesh has the same results as on one device, from labels that were computed on the mesh."""

import json

import pytest
from lm_runs import config_of, distil, run, write_text

# AdamW enlarges rounding errors of a gradient that is nearly 0: these steps are few, with a small learning rate.
SMALL = {"steps": 2, "evaluate_every": 1, "checkpoint_every": 2, "learning_rate": 1e-3}


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
