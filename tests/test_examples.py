"""How the examples are laid out: who may import whom, and that a program can be taken out of the tree."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lm_runs import options, write_text

import softjax
from common import program, settings

EXAMPLES = Path(program.__file__).parents[1]
# Each folder, and those that it may use.
FOLDERS = {
    "common": set(),
    "language_model": {"common"},
    "classifier": {"common"},
    "benchmarks": {"common"},
    "margin": {"common"},
}
PROGRAMS = {
    "train_lm": {"language_model"},
    "train_classifier": {"classifier"},
    "benchmark": {"benchmarks"},
    "compare_lm_routes": {"benchmarks", "language_model", "train_lm"},
    "distil": {"benchmarks", "language_model", "train_lm"},
    "max_margin": {"margin", "train_classifier", "benchmarks"},
    "mesh_cost": {"benchmarks"},
    "document": set(),
}


def imported(path):
    """The first names of what a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)


def own(name):
    return [EXAMPLES / f"{name}.py"] if name in PROGRAMS else [*(EXAMPLES / name).glob("*.py")]


@pytest.mark.parametrize(("name", "below"), [*FOLDERS.items(), *PROGRAMS.items()])
def test_imports_go_down_only(name, below):
    ours = {path.name.removesuffix(".py") for path in EXAMPLES.iterdir()}
    used = set().union(*(imported(path) for path in own(name))) & ours
    assert used <= {name, "common"} | below


def test_the_programs_have_three_modules_in_common():
    assert {path.stem for path in own("common")} == {"__init__", "program", "runs", "settings"}


@pytest.mark.slow
def test_the_language_model_runs_where_it_is_copied(tmp_path):
    """What the README has a user copy is all that it needs: its help, a run, and going on after a loss."""
    copied = tmp_path / "copied"
    for source in (EXAMPLES / "language_model", EXAMPLES / "common", settings.CONFIGS):
        shutil.copytree(source, copied / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(EXAMPLES / "train_lm.py", copied)
    paths = [path for path in sys.path if Path(path) != EXAMPLES]
    python_path = os.pathsep.join([str(Path(softjax.__file__).parents[1]), *paths])
    environment = {**os.environ, "PYTHONPATH": python_path, "COLUMNS": "1000"}  # a line of help holds a path

    def run(*words):
        command = [sys.executable, "train_lm.py", *map(str, words)]
        done = subprocess.run(command, cwd=copied, env=environment, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert str(copied / "configs") in run("--help")
    words = options(tmp_path / "run", write_text(tmp_path / "text"), steps=3, checkpoint_every=1)
    assert "Results: " in run(*words)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    assert "Resumed after step 2" in run(*words, "--resume")
