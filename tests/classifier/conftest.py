"""A finished run, copied for each test that may change it."""

import shutil
from pathlib import Path

import pytest
from classifier_runs import run
from runs import what_a_killed_save_leaves as what_a_killed_save_leaves

from classifier import figures


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
