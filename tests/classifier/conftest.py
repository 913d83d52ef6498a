"""One finished run that many tests read, and a copy of it for each test that changes it."""

import shutil
from pathlib import Path

import pytest
from classifier_runs import run
from endings import default_signals as default_signals
from endings import what_a_killed_save_leaves as what_a_killed_save_leaves

from classifier import plots


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run. No test changes it."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(folder) == 0
    return folder


@pytest.fixture
def earlier(finished, tmp_path):
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "earlier"))


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: dict.fromkeys(plots.NAMES, b"a plot"))
