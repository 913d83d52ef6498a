"""`examples/benchmark.py` on tiny problems. Times of such problems mean nothing, so no test asserts a time."""

import gc
import itertools
import json
import sys

import jax
import numpy as np
import pytest
from covering import slow

import benchmark
from benchmarks import core_report as report
from benchmarks import timing
from benchmarks.core_cases import contenders, core_problems, random_problem
from benchmarks.linear_cases import problems
from benchmarks.settings import DEFAULT_CONFIG, parse

SHAPE = [8, 5]
QUICK = ["--shapes", "8", "5", "--rounds", "2", "--at-least-ms", "0.01"]


@pytest.fixture(scope="module", autouse=True)
def frozen_garbage():
    """Freezes the objects of pytest and JAX. Else each round's garbage collection would visit all of them."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    assert benchmark.main([*QUICK, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def file(folder):
    (file,) = folder.glob("core-*.json")
    return file


@pytest.fixture
def results(file):
    return json.loads(file.read_text(encoding="utf-8"))


def test_file_names_contain_part_and_platform(folder):
    name = f"core-{jax.default_backend()}"
    assert {path.name for path in folder.iterdir()} == {f"{name}.json", f"{name}.png"}
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_results_describe_machine_and_settings(results, folder):
    machine = results["machine"]
    assert machine["versions"]["jax"] == jax.__version__
    assert {"python", "jaxlib", "optax", "torch"} <= machine["versions"].keys()
    assert {"platform", "device", "cpu_count", "date"} <= machine.keys()
    assert results["settings"]["shapes"] == [SHAPE]
    assert str(folder) not in json.dumps(results)


def test_problems_are_all_shapes_in_all_dtypes():
    settings = parse(["--shapes", "8", "5", "3", "7", "--growth-features", "4", "--growth-samples", "8", "16",
                      "--growth-classes", "10", "20", "--linear-shapes", "6", "2", "9"]).settings  # fmt: skip
    assert core_problems(settings) == [(s, t) for s in ((8, 5), (3, 7)) for t in ("float32", "bfloat16")]
    growth = [((8, 4, 20), "float32"), ((16, 4, 20), "float32"), ((8, 4, 10), "float32")]
    assert problems("growth", settings) == growth
    in_bfloat16 = [(shape, "bfloat16") for shape in settings.linear_bfloat16_shapes]
    assert problems("linear", settings) == problems("chunks", settings) == [((6, 2, 9), "float32"), *in_bfloat16]


def test_each_case_has_each_contender_and_every_round(results):
    cases = results["cases"]
    run = [[case["rows"], case["classes"], case["dtype"]] for case in cases]
    assert run == [[*SHAPE, dtype] for dtype in ("float32", "bfloat16")]
    for case in cases:
        timed = {(t["library"], t["quantity"]) for t in case["timings"]}
        assert timed >= {*itertools.product(("softjax", "optax"), report.QUANTITIES), report.PASS}
        for t in case["timings"]:
            assert len(t["seconds"]) == 2
            assert t["quartiles"][0] <= t["median"] <= t["quartiles"][1]


def test_jitted_calls_have_temporary_memory(results):
    sizes = {t["quantity"]: t["temporary_bytes"] for t in results["cases"][0]["timings"] if t["library"] == "optax"}
    assert sizes["eager value"] is None
    if jax.default_backend() == "cpu":
        assert isinstance(sizes["value"], int)


def test_all_libraries_compute_the_same_loss(results):
    for case in results["cases"]:
        rtol = {"float32": 1e-4, "bfloat16": 3e-2}[case["dtype"]]
        losses = case["losses_in_nats"]
        np.testing.assert_allclose([*losses.values()], losses["softjax"], rtol=rtol)


def test_ratios_are_ratios_of_medians(results):
    for case in results["cases"]:
        medians = {(t["library"], t["quantity"]): t["median"] for t in case["timings"]}
        for r in case["softjax_ratios"]:
            expected = medians["softjax", r["quantity"]] / medians[r["library"], r["quantity"]]
            np.testing.assert_allclose(r["median_ratio"], expected, rtol=2e-4)
        assert {("optax", q) for q in report.QUANTITIES} <= {
            (r["library"], r["quantity"]) for r in case["softjax_ratios"]
        }


def test_markdown_is_rendered_from_the_file(file, capsys, results):
    assert benchmark.main(["--markdown", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| 8 × 5 | float32")]
    assert [len(row) for row in rows] == [11, 6]
    median = results["cases"][0]["timings"][0]["median"]
    assert rows[0][2] == report.format_three_digits(1e3 * median)
    for header, rule in itertools.pairwise(lines):
        if rule.startswith("| ---"):
            assert header.count("|") == rule.count("|")


def test_the_results_page_is_rendered_from_the_committed_files(capsys):
    folder = DEFAULT_CONFIG.parents[1] / "examples" / "results"
    assert benchmark.main(["--markdown", str(folder)]) == 0
    page = capsys.readouterr().out
    assert page == (folder / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in folder.glob("*.png") if path.name not in page} == set()


def test_benchmark_runs_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = {c.library for c in contenders(*random_problem(8, 5, "float32", 0), torch_threads=2)}
    assert found == {"softjax", "optax", report.PASS[0]}


def test_default_config_has_the_published_problems():
    settings = parse([]).settings
    assert settings.shapes == ((64, 5), (4096, 5), (8192, 1000), (4096, 32768), (1024, 131072))
    assert settings.dtypes == ("float32", "bfloat16")
    assert settings.torch_threads == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 0", "sead = 0", "unknown key `sead`"),
        ("seed = 0", "", "`seed` is missing"),
        ("seed = 0", "seed = -1", "`seed` must be at least 0, got -1"),
        ("rounds = 9", "rounds = true", "`rounds` must be a whole number, got True"),
        ("rounds = 9", "rounds = 0", "`rounds` must be at least 1"),
        ("[64, 5]", "[64]", "`shapes` must be [a whole number, a whole number], got [64]"),
        ("[64, 5]", "[64, 0]", "`shapes` must be pairs of positive integers"),
        ('"bfloat16"]', '"int8"]', "`dtypes` must be one of"),
        ("at_least_ms = 20.0", "at_least_ms = nan", "`at_least_ms` must be above 0 and finite"),
        ("seed = 0", "seed =", "Invalid value"),
    ],
)
def test_a_wrong_config_prints_one_line(tmp_path, capsys, old, new, message):
    text = DEFAULT_CONFIG.read_text(encoding="utf-8")
    assert old in text
    config = tmp_path / "wrong.toml"
    config.write_text(text.replace(old, new), encoding="utf-8")
    assert error_line(["--config", str(config)], capsys).count(message) == 1


def test_other_wrong_input_prints_one_line(tmp_path, capsys):
    existing = tmp_path / "a file"
    existing.write_text("{}")
    assert "cannot read the config" in error_line(["--config", str(tmp_path / "absent.toml")], capsys)
    assert "cannot write to the output folder" in error_line(["--output", str(existing)], capsys)
    for content in ("{}", "[]", "3", "null", '"text"', '{"cases": 3}', "", "\x00"):
        existing.write_text(content)
        assert "not a results file" in error_line(["--markdown", str(existing)], capsys)
    assert "absent.json" in error_line(["--markdown", str(tmp_path / "absent.json")], capsys)
    assert "--rounds" in error_line(["--rounds", "many"], capsys)


def error_line(argv, capsys):
    assert benchmark.main(argv) not in (0, None)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_an_interrupted_run_keeps_the_earlier_files(tmp_path, capsys, monkeypatch):
    earlier = tmp_path / f"core-{jax.default_backend()}.json"
    earlier.write_text("earlier")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(benchmark.CASES, "core", interrupted)
    assert benchmark.main([*QUICK, "--output", str(tmp_path)]) == 130
    assert earlier.read_text() == "earlier"
    assert [*tmp_path.iterdir()] == [earlier]
    assert "interrupted" in capsys.readouterr().err


def test_each_round_has_its_own_order(monkeypatch):
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)

    def order(seed):
        called = []
        calls = {name: lambda name=name: called.append(name) for name in "abcde"}
        timings = timing.interleaved(calls, rounds=4, at_least=1e-12, seed=seed)
        assert all(len(t.seconds) == 4 and t.calls_per_round == 1 for t in timings.values())
        return [tuple(called[i : i + 5]) for i in range(len(called) - 20, len(called), 5)]  # without the warm-up

    rounds = order(seed=3)
    assert all(sorted(each) == list("abcde") for each in rounds)
    assert len(set(rounds)) > 1
    assert order(seed=3) == rounds != order(seed=4)


def test_a_fast_call_is_repeated_without_garbage_collection(monkeypatch):
    clock = itertools.count()  # each reading is one tick later
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    seen = []
    was_enabled = gc.isenabled()
    timings = timing.interleaved(
        {"call": lambda: (seen.append(gc.isenabled()), [next(clock) for _ in range(3)])}, rounds=2, at_least=20, seed=0
    )
    # A call takes 3 ticks and reading the clock takes 1. The first power of two that takes 20 ticks is 8 calls.
    assert timings["call"].calls_per_round == 8
    assert timings["call"].seconds == (25 / 8, 25 / 8)
    assert not any(seen)
    assert gc.isenabled() == was_enabled


def test_medians_quartiles_and_ratios():
    ours, theirs = timing.Timing((1.0, 2.0, 3.0, 4.0, 90.0), 1), timing.Timing((2.0, 2.0, 2.0, 2.0, 100.0), 1)
    assert (ours.median, ours.quartiles) == (3, (2, 4))
    assert timing.ratio(ours, theirs) == timing.Ratio(1.5, (0.9, 1.5))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (99.96, "100"), (12.345, "12.3"), (0.5, "0.500"), (1.2345e-7, "0.000000123"), (0.0, "0")],
)
def test_three_significant_digits(value, text):
    assert report.format_three_digits(value) == text


TINY = ["--linear-shapes", "24", "4", "30", "--linear-bfloat16-shapes", "24", "4", "30", "--growth-features", "4"]
TINY += ["--growth-samples", "8", "16", "--growth-classes", "10", "--block-sizes", "8"]


def test_the_distil_part(tmp_path, capsys):
    quick = ["--rounds", "1", "--at-least-ms", "0.01", "--output", str(tmp_path), "--distil-shapes", "24", "4", "30"]
    assert benchmark.main(["--part", "distil", *quick]) == 0
    (file,) = tmp_path.iterdir()
    (case,) = json.loads(file.read_text(encoding="utf-8"))["cases"]
    found = case["divergences_in_nats"]
    for kind in ("forward_kl", "reverse_kl", "jensen_shannon"):
        values = [value for name, value in found.items() if name.endswith(kind)]
        assert len(values) >= 2
        np.testing.assert_allclose(values, values[0], rtol=1e-5)
    (tmp_path / "distil-cpu.json").write_bytes(file.read_bytes())
    capsys.readouterr()
    assert benchmark.main(["--markdown", str(tmp_path)]) == 0
    assert "The lower bound is four matmuls" in capsys.readouterr().out


def test_the_packing_part(tmp_path, capsys):
    quick = ["--rounds", "1", "--at-least-ms", "0.01", "--output", str(tmp_path), "--packing-shapes", "600", "4", "30"]
    assert benchmark.main(["--part", "packing", *quick]) == 0
    (file,) = tmp_path.iterdir()
    (case,) = json.loads(file.read_text(encoding="utf-8"))["cases"]
    assert case["active"]["1.0"] == 600 > case["active"]["0.7"] > case["active"]["0.3"] > 100
    assert len(case["timings"]) == 4 * 4
    (tmp_path / "packing-cpu.json").write_bytes(file.read_bytes())
    capsys.readouterr()
    assert benchmark.main(["--markdown", str(tmp_path)]) == 0
    assert "With 30% kept, a step takes" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["chunks", *slow("growth", "linear")])
def test_parts_of_the_last_layer(part, tmp_path, capsys):
    quick = ["--rounds", "1", "--at-least-ms", "0.01", "--output", str(tmp_path)]
    assert benchmark.main(["--part", part, *TINY, *quick]) == 0
    results = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))
    assert results["part"] == part
    for case in results["cases"]:
        timed = {t["name"]: t for t in case["timings"]}
        assert "three matmuls" in timed
        assert all(t["median"] > 0 and len(t["seconds"]) == 1 for t in timed.values())
        if part == "linear":
            losses = case["losses_in_nats"]
            assert losses.keys() >= {
                "softjax",
                "softjax, reduction=none",
                "unfused baseline (optax)",
                "hand-written chunked loss",
            }
            np.testing.assert_allclose(
                [*losses.values()], losses["softjax"], rtol=1e-5 if case["dtype"] == "float32" else 0.02
            )
    if part == "linear":
        assert results["peak_resident_bytes"]["softjax"] > 10**7
    assert (tmp_path / f"growth-{jax.default_backend()}.png").exists() == (part == "growth")
    capsys.readouterr()
    assert benchmark.main(["--markdown", str(next(tmp_path.glob("*.json")))]) == 0
    assert "three matmuls" in capsys.readouterr().out
