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
    # without the name that jaxtyping's import hook adds in the tests
    found = [n for n, v in vars(softjax).items() if getattr(v, "__module__", "").startswith("softjax")]
    assert sorted(found) == PUBLIC


def test_typed_user_calls_every_public_function():
    """.ci/run checks typed_user.py with pyright in strict mode."""
    text = Path(typed_user.__file__).read_text(encoding="utf8")
    functions = [*PUBLIC, *(f"{m.__name__}.{n}"[8:] for m, known in NAMESPACES.items() for n in known)]
    assert [name for name in functions if f"softjax.{name}" not in text] == []
    (hidden, kernel, _), labels = cases.layer(5), cases.class_ids(5)
    typed_user.every_call(hidden @ kernel, labels, cases.weights(), hidden, kernel, labels[:, None])


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_documented(name):
    public = getattr(softjax, name)
    assert public.__doc__
    if inspect.isfunction(public):
        assert ">>>" in public.__doc__
        assert "Raises:" in public.__doc__
        positional = [p for p in inspect.signature(public).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
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
    found = {name: value for name, value in found.items() if inspect.isfunction(value)}
    assert found.keys() == NAMESPACES[namespace].keys()
    for name, function in found.items():
        shown = [str(p.replace(annotation=p.empty)) for p in inspect.signature(function).parameters.values()]
        assert shown == NAMESPACES[namespace][name]
        for section in (">>>", "Args:", "Returns:", "Raises:"):
            assert section in function.__doc__, f"{name} {section}"


def test_signatures():
    layer_options = dict.fromkeys(
        ("bias", "where", "logit_softcap", "block_size", "precision", "axis_name", "batch_axis_name")
    ) | {"temperature": 1.0}
    divergence_options = {"kind": "forward_kl", "beta": 0.5, "temperature": 1.0, "base": 10.0, "weights": None}
    divergence_options |= {"reduction": "mean"}
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
            "class_weights": None,
            "label_smoothing": 0.0,
            "z_loss": 0.0,
            "logit_softcap": None,
            "temperature": 1.0,
            "reduction": "mean",
            "block_size": None,
            "precision": None,
            "axis_name": None,
            "batch_axis_name": None,
        },
        "log_probabilities": {"base": 10.0, "axis": -1, "where": None, "axis_name": None},
        "linear_log_probabilities": layer_options | {"base": 10.0},
        "linear_top_k": layer_options | {"base": 10.0},
        "linear_statistics": layer_options,
        "linear_loss": {
            "bias": None,
            "where": None,
            "weights": None,
            "logit_softcap": None,
            "temperature": 1.0,
            "reduction": "sum",
            "has_aux": False,
            "block_size": None,
            "precision": None,
            "axis_name": None,
            "batch_axis_name": None,
        },
        "divergence": divergence_options | {"axis": -1, "where": None, "axis_name": None, "batch_axis_name": None},
        "linear_divergence": divergence_options | layer_options | {"teacher_bias": None, "teacher_logit_softcap": None},
        "cross_entropy": {
            "base": 10.0,
            "axis": -1,
            "where": None,
            "weights": None,
            "class_weights": None,
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


def test_private_modules_are_in_the_folders():
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
        # `import jax` does not import `jax.extend`, which loads Pallas and takes as long as softjax itself
        "heavy = {'optax', 'chex', 'scipy.stats', 'matplotlib', 'beartype', 'jax.extend'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import jax\n"
        "jax.config.update('jax_platforms', 'none_such')\n"  # has no effect after a backend was started
        "try: jax.devices()\n"
        "except RuntimeError: pass\n"
        "else: raise SystemExit('a backend was started by the import')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
