"""All tests run under JAX's strict promotion rules. Warnings are errors (pyproject.toml)."""

import gc
import itertools
import os
import sys
import tempfile
from importlib.metadata import version

# These tests mostly compile, and each program runs once or twice, so LLVM need not optimise it. The processes that
# tests start inherit this setting: some tests compare their results bit for bit with those of this process.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Two flags that make XLA compile faster. Only jaxlib 0.10 is known to have them, and an unknown flag ends the process.
if version("jaxlib").startswith("0.10."):
    _flags = os.environ.get("XLA_FLAGS", "")
    if "fusion_emitters" not in _flags:
        _flags += " --xla_cpu_use_fusion_emitters=false"  # the older loop emitter takes a third of the time
    if "codegen_split_count" not in _flags:
        _flags += " --xla_cpu_parallel_codegen_split_count=1"  # one LLVM module per program: a quarter less CPU time
    os.environ["XLA_FLAGS"] = _flags
# JAX's compilation cache serves a program that is traced again, here or in a process that a test starts.
# JAX does not write a cache entry atomically, so each xdist worker has its own folder. The folder is temporary.
if "SOFTJAX_TESTS_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="softjax-tests-")
    os.environ["SOFTJAX_TESTS_CACHE"] = _cache.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = (
    f"{os.environ['SOFTJAX_TESTS_CACHE']}/{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# The processes that tests start import the same softjax as this one.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))

import as_users
import jax
import pytest

from softjax._xla import one_cpu

# Tracing makes many small objects that live long. With Python's default thresholds the garbage collector takes a sixth
# of the time.
gc.set_threshold(50_000, 20, 100)

# These tests need eight devices: test_mesh.py runs them in a process that simulates eight.
collect_ignore = [] if jax.device_count() >= 8 else ["on_mesh"]

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Modules that read the text, the memory or the cost of a compiled program. They compile with the options of a user.
READ_COMPILED_PROGRAMS = {
    "test_barrier",
    "test_cross_entropy",
    "test_every_mode",
    "test_layer",
    "test_mesh_cost",
    "test_one_cpu",
    "test_remat",
    "test_statistics",
    "test_transpose",
}

# The modules that take longest, longest first: with `--dist=loadfile`, no worker starts a long module at the end.
LONGEST = ["test_mesh", "test_divergence", "test_edges", "test_distil", "test_train_classifier", "test_lm_loss"]
LONGEST += [
    "test_linear",
    "test_train_lm",
    "test_processes",
    "test_statistics",
    "test_recipes",
    "test_law",
    "test_flags",
]
LONGEST += ["test_train_classifier_refusals", "test_transforms", "test_target", "test_benchmark", "test_softmax"]


def pytest_configure(config):
    """Has xdist give each module to one worker, in the order above. Does nothing without xdist or without `-n`.

    A module's fixtures and what JAX has compiled for it then live in one process.
    """
    if getattr(config.option, "dist", "no") == "load":  # what `-n` alone selects
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    position = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: position.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def _module_programs(request):
    """Drops a module's programs at its end. A module that reads compiled programs gets a user's compiler options."""
    compile_quickly = jax.stages.Lowered.compile

    def compile_as_users(lowered, compiler_options=None):
        return compile_quickly(lowered, {**as_users.OPTIONS, **(compiler_options or {})})

    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem in READ_COMPILED_PROGRAMS:
            patch.setattr(jax.stages.Lowered, "compile", compile_as_users)
        yield
    jax.clear_caches()


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def _recent_programs():
    """Also drops all programs after every 20 tests. A program takes about a megabyte."""
    yield
    if next(_tests) % 20 == 0:
        jax.clear_caches()


@pytest.fixture(params=["one CPU", "elsewhere"])
def route(request, monkeypatch):
    """The two ways to sum rows and to pick labels: on a single CPU device, and on all other platforms."""
    is_one_cpu = request.param == "one CPU"
    monkeypatch.setattr(one_cpu, "on_one_cpu", lambda x: is_one_cpu)
    # A program traced for one route must not serve the other. The matmul precision is part of JAX's cache key, and
    # these tests have no matmul that depends on it: it separates the two routes without clearing the caches.
    with jax.default_matmul_precision("default" if is_one_cpu else "highest"):
        yield request.param


@pytest.fixture
def x64():
    """Enables 64-bit types for one test."""
    with jax.enable_x64(True):
        yield
