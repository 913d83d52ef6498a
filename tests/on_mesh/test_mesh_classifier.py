"""The classifier on a mesh has the same result as on one device."""

import pytest
from classifier_runs import arrays, die_at_disk_operation, last_state, run
from closeness import near
from covering import slow
from endings import Killed, the_one_line

from classifier import plots

# Not Adam: its first steps enlarge rounding errors of a gradient that is nearly 0.
SMALL = ("--batch-size", "96", "--epochs", "4", "--checkpoint-every", "2", "--label-smoothing", "0.1")
SMALL += ("--optimiser", "sgd")
TERMS = 96  # images of a batch, over which a gradient is summed


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: dict.fromkeys(plots.NAMES, b"a plot"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", lambda *_: dict.fromkeys(plots.NAMES, b"a plot"))
        assert run(folder, small=SMALL) == 0
    return folder


def same(folder, alone):
    near(arrays(folder / "params.npz"), arrays(alone / "params.npz"), TERMS)
    near(last_state(folder), last_state(alone), TERMS)


@pytest.mark.parametrize("mesh", ["data=4,classes=2", *slow("classes=4", "data=3")])
def test_a_mesh_changes_nothing(alone, tmp_path, mesh):
    assert run(tmp_path, "--mesh", mesh, small=SMALL) == 0
    same(tmp_path, alone)


@pytest.mark.slow
def test_a_run_is_resumed_on_another_mesh(alone, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        die_at_disk_operation(patch, 1)  # before the second checkpoint
        with pytest.raises(Killed):
            run(tmp_path, "--mesh", "data=4,classes=2", small=SMALL)
    assert run(tmp_path, "--mesh", "classes=3", "--resume", small=SMALL) == 0
    same(tmp_path, alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mesh", "data=3,classes=3"], "needs 9 devices, there are 8; XLA_FLAGS="),
        (["--mesh", "data=5"], "`batch_size` 96 does not divide by the data=5"),
        (["--mesh", "classes"], "`mesh` must be like data=4,classes=2, one of the two, or empty, got 'classes'"),
        (["--mesh", "classes=2,data=4"], "`mesh` must be like"),
        (["--mesh", "data=0"], "`mesh` must be like"),
    ],
)
def test_refusals(tmp_path, capsys, options, message):
    assert run(tmp_path / "new", *options, small=SMALL) == 2
    assert message in the_one_line(capsys)
    assert not (tmp_path / "new").exists()
