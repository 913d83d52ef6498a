"""Everything runs under JAX's strict promotion rules; warnings are errors (pyproject.toml)."""

import gc
import itertools
import os
import sys
import tempfile
from importlib.metadata import version

# Most of the time of these tests is the compiler's, and a program runs once or twice: LLVM need not optimise it. Also
# for the processes that tests start, whose results are compared bit for bit with those of this one.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's older emitter of loops takes a third of the time. A jaxlib that does not know the flag would end the process.
if version("jaxlib").startswith("0.10.") and "fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
# What a process has compiled, it loads where it has dropped it (below) or traced it anew; so do those that it starts.
# JAX does not write its cache in one move, so that no two that run at once share one: each worker of xdist has its own.
# The folder is new in each run, and gone after it.
if "SOFTJAX_TESTS_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="softjax-tests-")
    os.environ["SOFTJAX_TESTS_CACHE"] = _cache.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = (
    f"{os.environ['SOFTJAX_TESTS_CACHE']}/{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# A process that a test starts imports the softjax that this one does.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))

import as_users
import jax
import pytest

from softjax._xla import one_cpu

# What JAX traces is many small objects that live long: at Python's own thresholds, to look for cycles among them takes
# a sixth of all time.
gc.set_threshold(50_000, 20, 100)

# These need eight devices; test_mesh.py runs them in a process that simulates as many.
collect_ignore = [] if jax.device_count() >= 8 else ["on_mesh"]

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Modules that read what the compiler made of a program: its text, its memory, its work. They read what users have.
OF_THE_COMPILED = {
    "test_barrier",
    "test_cross_entropy",
    "test_every_mode",
    "test_layer",
    "test_mesh_cost",
    "test_one_cpu",
    "test_remat",
    "test_rows",
    "test_transpose",
}

# The modules that take longest, the longest first: with `--dist=loadfile` no worker is left with one at the end.
LONGEST = ["test_mesh", "test_linear", "test_edges", "test_transforms", "test_train_lm", "test_lm_loss"]
LONGEST += ["test_benchmark", "test_processes", "test_law", "test_train_classifier", "test_softmax"]


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module(request):
    """Programs do not stay in memory for the next module, and those that are read are compiled as users have them."""
    compile_quickly = jax.stages.Lowered.compile

    def compile_as_users(lowered, compiler_options=None):
        return compile_quickly(lowered, {**as_users.OPTIONS, **(compiler_options or {})})

    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem in OF_THE_COMPILED:
            patch.setattr(jax.stages.Lowered, "compile", compile_as_users)
        yield
    jax.clear_caches()


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def _programs_of_a_few_tests():
    """Nor, in a long module, for all of its tests: a program of any size takes a megabyte."""
    yield
    if next(_tests) % 20 == 0:
        jax.clear_caches()


@pytest.fixture(params=["one CPU", "elsewhere"])
def route(request, monkeypatch):
    """The two ways that rows are summed and labels picked: on one CPU device, and wherever else."""
    here = request.param == "one CPU"
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: here)
    # What JAX has traced for one route must not serve the other. A setting that nothing here depends on (there is no
    # matrix product) tells its caches apart, and so leaves each route what it has compiled.
    with jax.default_matmul_precision("default" if here else "highest"):
        yield request.param


@pytest.fixture
def x64():
    """64-bit types, for one test."""
    with jax.enable_x64(True):
        yield
