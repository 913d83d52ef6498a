"""One finished run of the language model that many tests read, and its text."""

import pytest
from endings import default_signals as default_signals
from endings import what_a_killed_save_leaves as what_a_killed_save_leaves
from lm_runs import config_of, run, write_text

from language_model import plots


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("lm") / "text")


@pytest.fixture(scope="session")
def finished(text):
    """The settings of a finished run. No test changes its folder."""
    config = config_of(text.parent / "finished", text)
    assert run(config.output, text) == 0
    return config


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: dict.fromkeys(plots.NAMES, b"a plot"))
