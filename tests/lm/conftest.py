"""A finished run of the language model, and the text that it was trained on."""

import pytest
from lm_runs import config_of, run, write_text
from runs import what_a_killed_save_leaves as what_a_killed_save_leaves


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("lm") / "text")


@pytest.fixture(scope="module")
def finished(text):
    """The settings of a finished run."""
    config = config_of(text.parent / "finished", text)
    assert run(config.output, text) == 0
    return config
