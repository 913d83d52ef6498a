"""A finished run of the language model, and the text that it was trained on."""

import gc

import pytest
from lm_runs import config_of, run, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("lm") / "text")


@pytest.fixture(scope="module")
def finished(text):
    """The settings of a finished run."""
    config = config_of(text.parent / "finished", text)
    assert run(config.output, text) == 0
    return config


@pytest.fixture(autouse=True)
def _what_a_killed_save_leaves(request):
    """Orbax's coroutines of a save that died are collected here, not in whatever test comes after."""
    request.node.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
    yield
    gc.collect()
