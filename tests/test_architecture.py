"""The public names, the order of the folders, and the cost of importing."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import typed_user

import softjax

PACKAGE = Path(softjax.__file__).parent
MODULES = sorted(PACKAGE.glob("**/*.py"))
PUBLIC = [
    "SparseLabels",
    "Statistics",
    "TopK",
    "cross_entropy",
    "distribution_cross_entropy",
    "divergence",
    "linear_cross_entropy",
    "linear_divergence",
    "linear_log_probabilities",
    "linear_loss",
    "linear_statistics",
    "linear_top_k",
    "log_probabilities",
    "log_softmax",
    "softmax",
    "statistics",
    "validate_labels",
]
FOLDERS = ("_api", "_linear", "_rows", "_mesh", "_xla", "_args")  # each imports from itself and from those after it


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            yield from (f"{node.module}.{name}" for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_public_names():
    # ours alone: the hook that checks annotations in the tests adds a name of its own
    ours = [n for n, v in vars(softjax).items() if getattr(v, "__module__", "").startswith("softjax")]
    assert sorted(ours) == PUBLIC


def test_a_users_typed_file_calls_every_one_of_them():
    """pyright checks that file strictly, in a step of its own."""
    text = Path(typed_user.__file__).read_text(encoding="utf8")
    functions = [*PUBLIC, *(f"{m.__name__}.{n}"[8:] for m, known in NAMESPACES.items() for n in known)]
    assert [name for name in functions if f"softjax.{name}" not in text] == []
    (hidden, kernel, _), labels = cases.layer(5), cases.class_ids(5)
    typed_user.every_call(hidden @ kernel, labels, cases.weights(), hidden, kernel, labels[:, None])


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_documented(name):
    thing = getattr(softjax, name)
    assert thing.__doc__
    if inspect.isfunction(thing):
        assert ">>>" in thing.__doc__
        assert "Raises:" in thing.__doc__
        positional = [p for p in inspect.signature(thing).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert len(positional) <= (4 if "linear" in name else 2)


NAMESPACES = {
    softjax.losses: {
        "additive_margin": ["s", "margin", "scale"],
        "angular_margin": ["s", "margin", "scale"],
        "focal": ["s", "gamma=2.0"],
        "generalized": ["s", "exponent=0.7"],
        "poly": ["s", "epsilon=1.0"],
    },
    softjax.metrics: {
        "accuracy": ["s", "weights=None"],
        "brier_score": ["s", "weights=None"],
        "calibration": ["s", "bins=15", "weights=None"],
        "fit_temperature": ["logits", "labels", "weights=None"],
        "perplexity": ["s", "weights=None"],
        "top_k_accuracy": ["s", "k", "weights=None"],
    },
}


@pytest.mark.parametrize("namespace", NAMESPACES, ids=lambda module: module.__name__)
def test_namespaces(namespace):
    """The functions of the two public modules: their names, arguments and documentation."""
    found = {name: getattr(namespace, name) for name in namespace.__all__}
    found = {name: thing for name, thing in found.items() if inspect.isfunction(thing)}
    assert found.keys() == NAMESPACES[namespace].keys()
    for name, function in found.items():
        shown = [str(p.replace(annotation=p.empty)) for p in inspect.signature(function).parameters.values()]
        assert shown == NAMESPACES[namespace][name]
        for part in (">>>", "Args:", "Returns:", "Raises:"):
            assert part in function.__doc__, f"{name} {part}"


def test_signatures():
    of_layer = dict.fromkeys(
        ("bias", "where", "logit_softcap", "block_size", "precision", "axis_name", "batch_axis_name")
    )
    of_kind = {"kind": "forward_kl", "beta": 0.5, "temperature": 1.0, "base": 10.0, "weights": None}
    of_kind |= {"reduction": "mean"}
    defaults = {
        "softmax": {"axis": -1, "where": None, "axis_name": None},
        "log_softmax": {"base": 10.0, "axis": -1, "where": None, "axis_name": None},
        "statistics": {"axis": -1, "where": None, "axis_name": None},
        "distribution_cross_entropy": {"base": 10.0, "axis": -1},
        "validate_labels": {"weights": None},
        "linear_cross_entropy": {
            "bias": None,
            "where": None,
            "base": 10.0,
            "weights": None,
            "label_smoothing": 0.0,
            "z_loss": 0.0,
            "logit_softcap": None,
            "reduction": "mean",
            "block_size": None,
            "precision": None,
            "axis_name": None,
            "batch_axis_name": None,
        },
        "log_probabilities": {"base": 10.0, "axis": -1, "where": None, "axis_name": None},
        "linear_log_probabilities": of_layer | {"base": 10.0},
        "linear_top_k": of_layer | {"base": 10.0},
        "linear_statistics": of_layer,
        "linear_loss": {
            "bias": None,
            "where": None,
            "weights": None,
            "logit_softcap": None,
            "reduction": "sum",
            "has_aux": False,
            "block_size": None,
            "precision": None,
            "axis_name": None,
            "batch_axis_name": None,
        },
        "divergence": of_kind | {"axis": -1, "where": None, "axis_name": None, "batch_axis_name": None},
        "linear_divergence": of_kind | of_layer | {"teacher_bias": None, "teacher_logit_softcap": None},
        "cross_entropy": {
            "base": 10.0,
            "axis": -1,
            "where": None,
            "weights": None,
            "label_smoothing": 0.0,
            "z_loss": 0.0,
            "reduction": "mean",
            "axis_name": None,
            "batch_axis_name": None,
        },
    }
    for name, expected in defaults.items():
        parameters = inspect.signature(getattr(softjax, name)).parameters.values()
        assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == expected


def test_private_modules_stand_in_the_folders():
    assert {path.name for path in PACKAGE.glob("_*") if path.is_dir()} - {"__pycache__"} == set(FOLDERS)
    assert [path.name for path in PACKAGE.glob("_*.py")] == ["__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE).with_suffix("")))
def test_imports_follow_the_order_of_the_folders(path):
    folder = path.relative_to(PACKAGE).parts[0]
    above = FOLDERS[: FOLDERS.index(folder)] if folder in FOLDERS else ()
    for name in _imports(path):
        assert not name.startswith("jax._src")
        assert not (name.startswith("softjax.") and name.split(".")[1] in above), f"{path.name} imports {name}"


def test_the_package_reads_no_environment():
    for path in MODULES:
        text = path.read_text(encoding="utf8")
        assert "environ" not in text
        assert "open(" not in text


def test_importing_costs_little_and_runs_nothing_on_a_device():
    code = (
        "import softjax, sys\n"
        # `jax.extend`, which `import jax` leaves alone, loads all of Pallas: as long as softjax itself takes
        "heavy = {'optax', 'chex', 'scipy.stats', 'matplotlib', 'beartype', 'jax.extend'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import jax\n"
        "jax.config.update('jax_platforms', 'none_such')\n"  # would be too late, had a backend been started
        "try: jax.devices()\n"
        "except RuntimeError: pass\n"
        "else: raise SystemExit('a backend was started by the import')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
