"""One finished run of the language model that many tests read, and its text."""

import pytest
from endings import default_signals as default_signals
from endings import what_a_killed_save_leaves as what_a_killed_save_leaves
from lm_runs import config_of, run, write_text


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("lm") / "text")


@pytest.fixture(scope="session")
def finished(text):
    """The settings of a finished run. No test changes its folder."""
    config = config_of(text.parent / "finished", text)
    assert run(config.output, text) == 0
    return config
