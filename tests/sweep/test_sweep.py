"""Sweeps: the grid, bad input, the table, and that nothing that is killed is lost or done twice."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from operator import itemgetter
from pathlib import Path

import psutil
import pytest
import yaml

from acdc.errors import UserError
from acdc.files import table
from acdc.files.table import AGAINST, chosen, every_column, found_rows, to_csv
from acdc.io.folder import FOUND
from acdc.model.checkpoint import open_checkpoint
from acdc.report.results import to_text
from acdc.setup import estimate
from acdc.setup.config import Config, resolve
from acdc.sweep import executors
from acdc.sweep.executors import PYTHON
from acdc.sweep.file import AxisRange, read_sweep
from acdc.sweep.grid import runs_of as all_runs_of
from acdc.sweep.tracking import Tracking
from acdc.task.tokenize import make_data
from tests.support import ROOT, slurm
from tests.support.browser import chromium, opened

CONFIGS = ROOT / "configs"
SMALL = {
    "base": {"model": "tiny", "examples": 10, "dtype": "float64"},
    "grid": {"task": ["greater-than", "ioi"], "threshold": [0.03, 0.3]},
}
COSTS = ("seconds", "peak_memory_mb", "evaluations", "threads")


def write(folder: Path, content: object, name: str = "s.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def runs_of(folder: Path, content: object):
    return all_runs_of(read_sweep(write(folder, content)), lambda: ("tiny", None))[0]


def kept(out: Path) -> dict[str, bytes]:
    """What must be the same however often a sweep was interrupted: all files of the runs but for their cost, and the
    table without it."""
    found = {}
    for path in sorted(out.glob("runs/*/*")):
        if path.name == "metrics.json":
            content = json.loads(path.read_text())
            del content["cost"]
            found[str(path.relative_to(out))] = json.dumps(content).encode()
        else:
            found[str(path.relative_to(out))] = path.read_bytes()
    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    found["results.csv"] = repr([{k: v for k, v in row.items() if k not in COSTS} for row in rows]).encode()
    return found


# ---------------------------------------------------------------- the grid


def test_a_grid_is_every_combination_in_order(tmp_path):
    runs = runs_of(tmp_path, SMALL)
    assert [r.name for r in runs] == ["greater-than-0.03", "greater-than-0.3", "ioi-0.03", "ioi-0.3"]
    assert [(r.config.task, r.config.threshold) for r in runs] == [
        ("greater-than", 0.03), ("greater-than", 0.3), ("ioi", 0.03), ("ioi", 0.3),
    ]  # fmt: skip
    assert {r.config.examples for r in runs} == {10}


def test_grids_are_added_up_and_take_what_their_method_has(tmp_path):
    grids = [
        {"threshold": [0.1, 0.2]},
        {"method": ["edge-patching", "random"], "edges": [5, 10]},
    ]
    runs = runs_of(tmp_path, {"base": {"model": "tiny", "task": "ioi"}, "grid": grids})
    assert [r.name for r in runs] == [
        "0.1-acdc", "0.2-acdc", "edge-patching-5", "edge-patching-10", "random-5", "random-10",
    ]  # fmt: skip
    assert runs[0].config.edges is None and runs[2].config.threshold is None


@pytest.mark.parametrize(
    ("given", "whole", "expected"),
    [
        ({"log": [0.001, 1], "count": 4}, False, [0.001, 0.01, 0.1, 1.0]),
        ({"log": [1, 0.01], "count": 3}, False, [1.0, 0.1, 0.01]),
        ({"log": [1, 4], "count": 6}, True, [1, 2, 3, 4]),
        ({"linear": [0, 4], "count": 5}, True, [0, 1, 2, 3, 4]),
        ({"linear": [0.1, 0.2], "count": 3}, False, [0.1, 0.15, 0.2]),
        ({"linear": [1, 1.003], "count": 4}, False, [1.0, 1.001, 1.002, 1.003]),
    ],
)
def test_ranges(given, whole, expected):
    assert AxisRange.model_validate(given).values(whole) == expected


def test_exclusions_are_named_and_must_match(tmp_path):
    out = {"too long": {"task": "ioi", "threshold": [0.03, 0.5]}}
    assert [r.name for r in runs_of(tmp_path, SMALL | {"exclude": out})][2:] == ["ioi-0.3"]
    with pytest.raises(UserError, match=r"s\.yaml line 13: exclude: none: excludes nothing; no run has these options"):
        runs_of(tmp_path, SMALL | {"exclude": {"none": {"task": "docstring"}}})
    with pytest.raises(UserError, match="every run is left out"):
        runs_of(tmp_path, SMALL | {"exclude": {"all": {"model": "tiny"}}})


def test_included_files_are_merged(tmp_path):
    write(tmp_path, SMALL, "base.yaml")
    runs = runs_of(tmp_path, {"include": "base.yaml", "base": {"examples": 20}, "grid": {"threshold": [0.5]}})
    assert [(r.name, r.config.examples) for r in runs] == [("greater-than", 20), ("ioi", 20)]
    assert {r.config.threshold for r in runs} == {0.5}


def test_names_of_runs_can_be_given(tmp_path):
    runs = runs_of(tmp_path, SMALL | {"run_name": "{task} at {threshold}"})
    assert runs[0].name == "greater-than-at-0.03"


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("sweep-*.yaml")))
def test_shipped_sweeps_are_right(name):
    file = read_sweep(CONFIGS / name)
    runs, notes = all_runs_of(file, lambda: pytest.fail("no model"))
    assert len(runs) == file.size > 40 and not notes


# ---------------------------------------------------------------- bad input

BAD = {
    "a misspelt key": (
        "base: {model: tiny}\ngird: {task: [ioi]}\n",
        "s.yaml line 2: unknown key 'gird'. Did you mean 'grid'",
    ),
    "a misspelt key deep in the file": (
        "base:\n  model: tiny\ngrid:\n  - task: [ioi]\n  - task: [ioi]\n    treshold: [0.1]\n",
        "s.yaml line 6: grid.1: unknown option 'treshold'. Did you mean 'threshold'",
    ),
    "a misspelt key of slurm": (
        "base: {model: tiny}\ngrid: {task: [ioi]}\nslurm:\n  partition: a\n  tme: 3\n",
        "s.yaml line 5: slurm: unknown key 'tme'",
    ),
    "a misspelt option in an included file": (
        "include: other.yaml\ngrid: {task: [ioi]}\n",
        "other.yaml line 2: base: unknown option 'modle'",
    ),
    "no grid": ("base: {task: ioi}\n", "s.yaml: grid: is missing"),
    "an empty grid": ("base: {task: ioi}\ngrid: {}\n", "s.yaml line 2: grid: is empty"),
    "an empty list of grids": ("base: {task: ioi}\ngrid: []\n", "s.yaml line 2: grid: is empty"),
    "an empty list": ("grid:\n  task: [ioi]\n  threshold: []\n", "s.yaml line 3: grid.threshold: is an empty list"),
    "a value twice": ("grid: {task: [ioi, ioi]}\n", "s.yaml line 1: grid.task: has a value twice"),
    "a list in a list": ("grid: {task: [[ioi]]}\n", "grid.task: should be a value, a list of values or a range"),
    "a range without count": (
        "grid:\n  task: [ioi]\n  threshold: {log: [1, 2]}\n",
        "s.yaml line 3: grid.threshold: count: is missing",
    ),
    "a log range from zero": (
        "grid: {task: [ioi], threshold: {log: [0, 2], count: 3}}\n",
        "log: is [0.0, 2.0]; both ends should be above 0",
    ),
    "an unknown task": ("base: {model: tiny}\ngrid:\n  task: [iio]\n", "s.yaml line 3: task iio: unknown task 'iio'"),
    "an unknown metric": (
        "base: {model: tiny, task: ioi}\ngrid:\n  metric: [kl, kll]\n",
        "s.yaml line 3: metric kll: --metric: unknown metric 'kll'",
    ),
    "an option that the method has not": (
        "base:\n  model: tiny\n  task: ioi\n  steps: 5\ngrid: {threshold: [0.1]}\n",
        "s.yaml line 4: threshold 0.1: --steps: does not apply to acdc",
    ),
    "two options that say which edges to keep": (
        "base:\n  model: tiny\n  task: ioi\n  edges: 5\ngrid: {threshold: [0.1]}\n",
        "s.yaml line 4: threshold 0.1: --edges: --threshold says already which edges to keep; give one of the two",
    ),
    "a threshold below zero": (
        "grid: {task: [ioi], model: tiny, threshold: [-1.0]}\n",
        "--threshold: should be greater",
    ),
    "an unknown model": ("grid: {task: [ioi], model: [./none]}\n", "s.yaml: run ioi---none"[:7]),
    "more edges than there are": (
        "grid: {task: [ioi], model: [tiny], method: [random], edges: [5, 900]}\n",
        "run 900: --edges: 900 of 479 residual edges",
    ),
    "a task that the tokenizer can't serve": (
        "base: {model: tracr-reverse}\ngrid: {task: [ioi]}\n",
        "s.yaml: run ioi-tracr-reverse-acdc-",
    ),
    "two runs of one name": (
        SMALL | {"run_name": "{task}"},
        "run_name: two runs would be called 'greater-than'; they differ in threshold",
    ),
    "an unknown word in a name": (SMALL | {"run_name": "{taks}"}, "run_name: unknown name 'taks'. Did you mean 'task'"),
    "a format in a name": (
        SMALL | {"run_name": "{task:>999999999}"},
        "run_name: template '{task:>999999999}': fields are",
    ),
    "a name that is no name": (SMALL | {"run_name": ".."}, "run_name: gives '..', not a valid folder name"),
    "an unknown executor": (
        SMALL | {"executor": "kubernetes"},
        "executor: should be 'local' or 'slurm', got 'kubernetes'",
    ),
    "a size that is none": (SMALL | {"memory": "much"}, "memory: 'much' is not a size"),
    "no memory": (SMALL | {"memory": "0MB"}, "memory: '0MB': should be 1 MB or more"),
    "no memory in Slurm": (SMALL | {"slurm": {"memory": "0MB"}}, "slurm.memory"),
    "too many workers": (SMALL | {"workers": 10**30}, "workers: should be less than or equal to 1000"),
    "a number that YAML reads as a text": (
        "grid:\n  task: [ioi]\n  model: [tiny]\n  threshold: [1e-7]\n",
        "threshold 1e-7: --threshold: should be a valid number, not the text '1e-7': write 1.0e-07",
    ),
    "a reference of no task": (
        SMALL | {"references": {"induction": "x.json"}},
        "references: induction: no run is of this task",
    ),
    "a reference that is not there": (SMALL | {"references": {"ioi": "x.json"}}, "references: ioi: "),
    "a published circuit without edges": (SMALL | {"references": {"ioi": "induction"}}, "references: ioi: "),
    "a circle": ("include: s.yaml\ngrid: {task: ioi}\n", "include goes round in a circle"),
    "no mapping": ("- 1\n", "should be a mapping with the keys include, description, base, grid"),
    "no YAML": ("grid: {task: [ioi}\n", "s.yaml: line 1: not valid YAML"),
    "an option without a value": (
        "base: {model: tiny}\ngrid: {task: ioi, seed: null}\n",
        "grid.seed: should be a value",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_message_and_makes_nothing(case, call, tmp_path):
    content, expected = BAD[case]
    write(tmp_path, "base:\n  modle: tiny\n", "other.yaml")
    code, out, err = call("sweep", write(tmp_path, content))
    assert code == 2 and not out, err
    assert err.startswith("acdc: ") and expected in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "sweeps").exists()


def test_a_million_runs_are_asked_about(call, tmp_path):
    grid = {
        "task": ["ioi"],
        "seed": {"linear": [0, 999], "count": 1000},
        "threshold": {"log": [0.001, 1], "count": 1000},
    }
    started = time.monotonic()
    code, _, err = call("sweep", write(tmp_path, {"base": {"model": "tiny"}, "grid": grid}))
    assert code == 2 and "1,000,000 runs; say --yes if you mean it" in err
    assert time.monotonic() - started < 5


def test_options_of_the_command_line_are_checked(call, tmp_path, monkeypatch):
    path = write(tmp_path, SMALL)
    assert "unknown executor 'slrum'" in call("sweep", path, "--executor", "slrum")[2]
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = call("sweep", path, "--executor", "slurm")
    assert code == 2 and "sbatch is not on PATH; run it on a login node of a cluster, or use --executor local" in err
    assert "--workers: is for --executor local" in call("sweep", path, "--executor", "slurm", "--workers", 2)[2]
    assert "--memory: 'lots' is not a size" in call("sweep", path, "--memory", "lots")[2]


def test_a_folder_of_another_run_is_left_alone(call, tmp_path):
    path = write(tmp_path, SMALL)
    other = tmp_path / "sweeps" / "s" / "runs" / "ioi-0.3"
    other.mkdir(parents=True)
    write(other, {"task": "ioi", "model": "tiny", "examples": 99, "metric": "kl"}, "config.yaml")
    code, _, err = call("sweep", path)
    assert code == 2 and "holds a run with another config: " in err and "; examples 99, here " in err
    write(other, "- 1\n", "config.yaml")
    assert "is not the config of a run" in call("sweep", path)[2]


# ---------------------------------------------------------------- a sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep, made by the command, with everything on."""
    folder = tmp_path_factory.mktemp("swept")
    golden = {name: str(CONFIGS / "golden" / f"{name}.json") for name in ("greater-than", "ioi")}
    path = write(folder, SMALL | {"references": golden})
    done = subprocess.run(
        [sys.executable, "-m", "acdc.cli", "sweep", str(path)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, path, done


def test_a_sweep_makes_the_runs_of_acdc_run(swept, call):
    folder, _, done = swept
    assert "4 runs: 4 done" in done.stdout and "sweeps/s/" in done.stdout
    call("run", "--task", "ioi", "--model", "tiny", "--examples", 10, "--dtype", "float64", "--threshold", 0.03)
    (alone,) = Path("runs").iterdir()
    together = folder / "sweeps" / "s" / "runs" / "ioi-0.03"
    for name in ("circuit.json", "log.jsonl", "config.yaml", "circuit.svg", "report.html"):
        assert (alone / name).read_bytes() == (together / name).read_bytes(), name


def test_the_table_has_everything_and_types(swept):
    out = swept[0] / "sweeps" / "s"
    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    assert [row["run"] for row in rows] == ["greater-than-0.03", "greater-than-0.3", "ioi-0.03", "ioi-0.3"]
    for row in rows:
        circuit = json.loads((out / row["folder"] / "circuit.json").read_text())
        assert int(row["kept"]) == circuit["graph"]["edges"]["kept"] and int(row["total"]) == 479
        assert float(row["held_out_circuit_kl"]) == circuit["metrics"]["held_out.circuit.kl"]
        assert float(row["value"]) == pytest.approx(circuit["metrics"]["held_out.circuit.kl"], rel=1e-12)
        assert float(row["value_low"]) <= float(row["value"]) <= float(row["value_high"])
        assert float(row["faithfulness_low"]) <= float(row["faithfulness"]) <= float(row["faithfulness_high"])
        assert float(row["seconds"]) > 0 and float(row["peak_memory_mb"]) > 50 and row["state"] == "done"
        # at the same threshold with more prompts: some edges are the same, and none is counted twice
        assert int(row["true_positives"]) + int(row["false_positives"]) == int(row["kept"])
    parquet = pytest.importorskip("pyarrow.parquet")
    typed = parquet.read_table(out / "results.parquet").to_pydict()
    assert typed["kept"] == [int(row["kept"]) for row in rows] and typed["direct"] == [True] * 4
    assert typed["edges"] == [None] * 4 and typed["threshold"] == [0.03, 0.3, 0.03, 0.3]


def test_the_page_of_a_sweep_leads_to_its_runs(swept):
    out = swept[0] / "sweeps" / "s"
    with chromium() as browser, opened(browser, out / "report.html") as page:
        assert page.locator("#plots .plot").count() == 6  # three kinds, two tasks
        point = page.locator("#plots a").first
        point.hover()
        assert "residual edges kept: " in page.locator("#tip").inner_text()
        assert page.locator("#table tr.marked").count() == 1
        linked = [a.get_attribute("href") for a in page.locator("#plots a").all()]
        assert set(linked) == {f"runs/{f.name}/report.html" for f in (out / "runs").iterdir()}
        assert all((out / link).is_file() for link in linked)
        page.locator("#search").fill("ioi-0.3")
        assert page.locator("#table tbody tr").count() == 1
        page.locator("#search").fill("")
        page.get_by_role("button", name="kept", exact=True).click()
        column = page.locator("#table thead th").all_inner_texts().index("kept")
        kept = [int(r.locator("td").nth(column).inner_text()) for r in page.locator("#table tbody tr").all()]
        assert kept == sorted(kept) and len(kept) == 4
        columns = page.locator("#table thead th").count()
        page.locator("#measures").check()
        assert page.locator("#table thead th").count() > columns + 10
        assert page.locator("#table tbody a").count() == 4


def test_plots_are_drawn(swept):
    out = swept[0] / "sweeps" / "s"
    for name in ("pareto", "thresholds", "roc"):
        assert (out / f"{name}.svg").read_text().count("greater-than in tiny") == 1
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_finished_sweep_is_only_read(swept, call):
    folder, path, _ = swept
    out = folder / "sweeps" / "s"
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}
    code, text, _ = call("sweep", path, "--out", out)
    assert code == 0 and "4 done" in text
    assert {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")} == before
    code, text, _ = call("sweep", path, "--out", out, "--dry-run")
    assert code == 0 and "0 to run" in text


def test_a_dry_run_makes_nothing_and_says_what_it_costs(call, tmp_path):
    code, text, _ = call("sweep", write(tmp_path, SMALL), "--dry-run")
    assert code == 0 and text.count("to do") == 4 and "4 to run, about" in text
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.slow
def test_lost_files_are_made_again(swept, call, tmp_path):
    folder, path, _ = swept
    out = tmp_path / "out"
    shutil.copytree(folder / "sweeps" / "s", out)
    before = kept(out)
    for name in ("results.csv", "runs/ioi-0.3/circuit.json", "runs/greater-than-0.3/metrics.json"):
        (out / name).unlink()
    assert call("sweep", path, "--out", out)[0] == 0
    assert kept(out) == before


def test_results_filter_sort_and_print(swept, call):
    out = swept[0] / "sweeps" / "s"
    _, text, _ = call("results", out, "--where", "task=ioi", "--where", "threshold<0.1")
    _, row = text.splitlines()  # below the names of the columns
    assert "ioi" in row.split() and "0.03" in row.split()
    rows = json.loads(call("results", out, "--where", "task=ioi", "--sort", "-kept", "--json")[1])
    assert [r["task"] for r in rows] == ["ioi"] * 2 and rows[0]["kept"] >= rows[1]["kept"]
    assert call("results", out, "--columns", "run,kept", "--csv")[1].splitlines()[0] == "run,kept"
    printed = list(csv.DictReader(io.StringIO(call("results", out, "--columns", "all", "--csv")[1])))
    assert sorted(printed, key=itemgetter("run")) == [row | dict.fromkeys(AGAINST, "") for row in found_or_failed(out)]
    for bad, expected in (
        (("--where", "taks=ioi"), "--where: unknown column 'taks'. Did you mean 'task'"),
        (("--where", "task"), "--where: 'task' is not a condition"),
        (("--where", "kept<nan"), "--where: kept is a number, not 'nan'"),
        (("--where", "kept=many"), "--where: kept is a number, not 'many'"),
        (("--sort", "sice"), "--sort: unknown column 'sice'"),
        (("--columns", "run,run"), "--columns: 'run,run' has run twice"),
        (("--columns", ""), "--columns: is empty"),
        (("--columns", "run,keptt"), "--columns: unknown column 'keptt'"),
    ):
        code, _, err = call("results", out, *bad)
        assert code == 2 and expected in err
    code, _, err = call("results", out / "runs" / "ioi-0.3" / "none")
    assert code == 2 and "no such directory" in err


def test_results_reads_the_directories_of_single_runs_too(call, tmp_path):
    call("run", "--task", "greater-than", "--model", "tiny", "--examples", 10, "--threshold", "0.1,0.3")
    rows, others = found_rows(tmp_path / "runs")
    assert not others
    assert [row["threshold"] for row in chosen(rows, [], "threshold")] == [0.1, 0.3]
    assert "threshold" in to_text(rows) and to_csv(rows).count("\n") == 3
    (tmp_path / "empty").mkdir()
    assert "has no runs" in call("results", tmp_path / "empty")[2]


def test_results_leaves_out_what_is_not_ours_and_says_so(call, tmp_path):
    call("run", "--task", "or-gate")
    strange = {
        "app": "port: 80\n",
        "list": "- 1\n",
        "broken": "a: [\n",
        "pipe": None,
        "old": "task: ioi\nmodel: tiny\n",
    }
    for name, text in strange.items():
        (tmp_path / "runs" / name).mkdir()
        file = tmp_path / "runs" / name / "config.yaml"
        os.mkfifo(file) if text is None else file.write_text(text)
    code, out, err = call("results", "runs", "--csv")
    assert (code, out.count("\n")) == (0, 2)
    lines = err.splitlines()
    assert len(lines) == len(strange)
    for line, name in zip(lines, sorted(strange), strict=True):
        assert line.startswith(f"note: left out: runs/{name}/config.yaml: "), err
    shutil.rmtree(next((tmp_path / "runs").glob("or-gate*")))
    code, _, err = call("results", "runs")
    assert code == 2 and "runs: has no runs that can be read" in err and "app/config.yaml" in err


# ---------------------------------------------------------------- survival


def test_a_failed_run_is_recorded_does_not_stop_others_and_can_be_retried(call, tmp_path):
    path, bad = write(tmp_path, SMALL), tmp_path / "sweeps" / "s" / "runs" / "ioi-0.03"
    bad.mkdir(parents=True)
    (bad / "log.jsonl").write_text("{}\n")  # of nobody
    for folder in (tmp_path / "sweeps" / "s", bad):  # an earlier sweep was here
        (folder / ".lock").touch()
    code, out, err = call("sweep", path, "--no-plots")
    assert code == 1 and "3 done, 1 failed" in out
    assert "ioi-0.03 failed: " in err and "holds files of a run but no config.yaml" in err
    row = next(r for r in found_or_failed(tmp_path / "sweeps" / "s") if r["run"] == "ioi-0.03")
    assert row["state"] == "failed" and "but no config.yaml" in row["message"]
    (bad / "log.jsonl").unlink()
    code, out, _ = call("sweep", path, "--no-plots")  # a failure is not tried again unasked
    assert code == 1 and "1 failed" in out
    code, out, _ = call("sweep", path, "--no-plots", "--retry-failed")
    assert code == 0 and "4 done" in out and not (bad / "failure.json").exists()


def found_or_failed(out: Path):
    return list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))


def test_two_sweeps_on_one_folder_are_refused(call, tmp_path):
    from acdc.io.folder import locked

    path = write(tmp_path, SMALL)
    code = "import sys, time\nfrom pathlib import Path\nfrom acdc.io.folder import locked\n"
    code += "with locked(Path('sweeps/s')):\n    print('locked', flush=True)\n    time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        status, _, err = call("sweep", path)
        other.kill()
    assert status == 2 and "another acdc process is writing this sweep" in err
    with locked(tmp_path / "sweeps" / "s"):
        pass


def start(path: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "acdc.start", "sweep", str(path), "--out", str(out), "--no-plots", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers_of(parent: psutil.Process, patience: float = 30) -> list[psutil.Process]:
    for _ in range(int(patience * 20)):
        if found := [p for p in parent.children() if "acdc.sweep.worker" in p.cmdline()]:
            return found
        time.sleep(0.05)
    return []


def test_a_killed_worker_is_replaced_and_its_run_goes_on(swept, tmp_path):
    folder, path, _ = swept
    with start(path, tmp_path / "out", "--workers", "1") as sweep:
        (worker,) = workers_of(psutil.Process(sweep.pid))
        for _ in range(600):
            if list((tmp_path / "out").glob("runs/*/config.yaml")):
                break
            time.sleep(0.05)
        worker.kill()
        _, err = sweep.communicate(timeout=100)
    assert sweep.returncode == 0 and "the worker process was killed by signal 9; trying again" in err
    assert kept(tmp_path / "out") == kept(folder / "sweeps" / "s")


def test_workers_end_with_their_parent(swept, tmp_path):
    with start(swept[1], tmp_path / "out") as sweep:
        workers = workers_of(psutil.Process(sweep.pid))
        sweep.kill()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(swept, tmp_path):
    with start(swept[1], tmp_path / "out") as sweep:
        workers = workers_of(psutil.Process(sweep.pid))
        sweep.send_signal(signal.SIGINT)
        _, err = sweep.communicate(timeout=30)
    assert sweep.returncode == 130 and "rerun the same command to resume" in err and "Traceback" not in err
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_a_run_whose_process_is_always_killed_fails_and_the_others_are_made(call, tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, signal, sys\n"
        "from acdc.sweep import worker\n"
        "attempt = worker.Worker.attempt\n"
        "def mine(self, folder, config, say):\n"
        "    if folder.name == 'ioi-0.03':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    attempt(self, folder, config, say)\n"
        "worker.Worker.attempt = mine\n"
        "worker.main()\n"
    )
    monkeypatch.setattr(executors, "COMMAND", (sys.executable, str(script)))
    code, out, err = call("sweep", write(tmp_path, SMALL), "--no-plots")
    assert code == 1 and "3 done, 1 failed" in out
    assert "ioi-0.03 failed: the worker process was killed by signal 9, 3 times" in err and "fewer --workers" in err


def test_workers_that_die_before_they_begin_are_given_up(call, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "COMMAND", (sys.executable, "-c", "import sys; sys.exit('no torch')"))
    code, out, err = call("sweep", write(tmp_path, SMALL))
    assert code == 1 and "4 failed" in out
    assert "ioi-0.03 failed: the worker process ended with code 1: no torch, 3 times" in err
    logs = tmp_path / "sweeps" / "s" / "logs"
    assert "no torch" in "".join(path.read_text() for path in logs.glob("worker-*.log"))
    assert not list(logs.glob("unit-*"))


def test_a_bug_is_a_failure_with_its_traceback(call, tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(
        "from acdc.sweep import worker\n"
        "def broken(self, *args):\n"
        "    raise RuntimeError('out of <memory>')\n"
        "worker.Worker._make = broken\n"
        "worker.main()\n"
    )
    monkeypatch.setattr(executors, "COMMAND", (sys.executable, str(script)))
    code, _, err = call("sweep", write(tmp_path, SMALL), "--no-plots")
    assert code == 1 and "failed: RuntimeError: out of <memory>" in err
    failure = json.loads((tmp_path / "sweeps/s/runs/ioi-0.3/failure.json").read_text())
    assert "raise RuntimeError" in failure["traceback"]


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_and_nothing_is_lost(swept, tmp_path):
    """Files can't grow beyond a size that neither the plot nor the report keeps to; then not at all."""
    folder, path, _ = swept
    out = tmp_path / "out"
    limited = "import resource, sys, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)\n"
    limited += "from acdc.cli import main\nmain()\n"

    def sweep(size: int):
        command = [sys.executable, "-c", limited, str(size), "sweep", str(path), "--out", str(out), "--no-plots"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)

    done = sweep(9000)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert not list(out.glob("runs/*/circuit.json"))
    done = sweep(0)
    assert done.returncode == 2 and "can't be written" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "acdc.cli", "sweep", str(path), "--out", str(out), "--retry-failed"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert kept(out) == kept(folder / "sweeps" / "s")


@pytest.mark.slow
def test_killed_six_times_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
    """The parent is killed with SIGKILL, somewhere from its start to its end, six times."""
    content = {
        "base": {"model": "tiny", "examples": 20},
        "grid": {
            "task": ["greater-than", "induction"],
            "threshold": [0.01, 0.05],
            "ablation": ["corrupted", "zero"],
        },
    }
    path = write(tmp_path, content)
    with start(path, tmp_path / "whole", "--threads", "1") as sweep:
        began = time.monotonic()
        sweep.communicate(timeout=300)
        whole = time.monotonic() - began
    assert sweep.returncode == 0
    rng = random.Random(time.time_ns())
    ended = 0
    for _ in range(6):
        with start(path, tmp_path / "killed", "--threads", "1") as sweep:
            try:
                sweep.wait(rng.uniform(0.3, 0.35 * whole + 2))
                ended += 1
            except subprocess.TimeoutExpired:
                sweep.kill()
    with start(path, tmp_path / "killed", "--threads", "1") as sweep:
        _, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, err
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")
    print(f"{ended} of 6 ended before they were killed")


# ---------------------------------------------------------------- Slurm


@pytest.fixture
def cluster():
    if why := slurm.missing():
        if os.environ.get("ACDC_CI"):
            pytest.fail(why)
        pytest.skip(why)
    with slurm.cluster():
        yield


@pytest.mark.slow
def test_slurm_gives_the_same_results(swept, cluster, tmp_path):
    folder, path, _ = swept
    with start(path, tmp_path / "out", "--executor", "slurm") as sweep:
        out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, err
    assert "4 done" in out
    assert kept(tmp_path / "out") == kept(folder / "sweeps" / "s")


@pytest.mark.slow
def test_jobs_have_the_gpus_that_the_file_asks_for(cluster, tmp_path, monkeypatch):
    """The cluster has two; each job sees its own, and what can't be given is refused."""
    for name in ("site", "seen"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os\n"
        "if 'SLURM_PROCID' in os.environ:\n"
        f"    with open({str(tmp_path / 'seen')!r} + '/' + os.environ['SLURM_JOB_ID'], 'w') as file:\n"
        "        file.write(os.environ.get('CUDA_VISIBLE_DEVICES', 'none'))\n"
    )
    paths = (str(tmp_path / "site"), os.environ.get("PYTHONPATH"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    for gpus, seen in ((1, {"0", "1"}), (2, {"0,1"})):
        path = write(tmp_path, SMALL | {"executor": "slurm", "slurm": {"gpus": gpus, "runs_per_job": 2}})
        with start(path, tmp_path / f"out-{gpus}") as sweep:
            out, err = sweep.communicate(timeout=200)
        assert sweep.returncode == 0 and "4 done" in out, err
        found = [file.read_text() for file in (tmp_path / "seen").iterdir()]
        assert len(found) == 2 and set(found) == seen
        for file in (tmp_path / "seen").iterdir():
            file.unlink()
    path = write(tmp_path, SMALL | {"executor": "slurm", "slurm": {"gpus": 3}})
    with start(path, tmp_path / "out-3") as sweep:
        _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 2 and "sbatch refuses" in err and "configuration is not available" in err


@pytest.mark.slow
def test_a_job_imports_nothing_from_the_current_folder(cluster, tmp_path):
    for name in ("runpy", "torch", "queue", "submitit", "acdc"):
        (tmp_path / f"{name}.py").write_text("open('IMPORTED', 'w')")
    path = write(tmp_path, SMALL | {"executor": "slurm"})
    command = [*PYTHON, "-m", "acdc.start", "sweep", str(path), "--out", "out", "--no-plots"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0 and "4 done" in done.stdout, done.stderr
    assert not (tmp_path / "IMPORTED").exists()


@pytest.mark.slow
def test_a_job_of_slurm_that_is_killed_is_noticed_and_made_again(swept, cluster, tmp_path):
    folder, path, _ = swept
    with start(path, tmp_path / "out", "--executor", "slurm") as sweep:
        victim = None
        for _ in range(2400):
            commands = [(p, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
            own = str(tmp_path / "out")  # another test may have a cluster at the same time
            jobs = [(p, w) for p, w in commands if "submitit.core._submit" in w and own in " ".join(w)]
            found = [p for p, words in jobs if Path(words[0]).name != "srun"]  # that only waits for it
            if found:
                victim = found[0]
                break
            time.sleep(0.05)
        assert victim is not None
        victim.kill()
        _, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, err
    assert re.search(r"the Slurm job ended too early(: .+)?; trying again", err)
    assert kept(tmp_path / "out") == kept(folder / "sweeps" / "s")


@pytest.mark.slow
def test_jobs_stay_in_the_queue_when_the_sweep_is_interrupted_and_are_waited_for(swept, cluster, tmp_path):
    folder, path, _ = swept
    with start(path, tmp_path / "out", "--executor", "slurm") as sweep:
        for _ in range(2400):
            if (tmp_path / "out" / "slurm" / "jobs.json").exists():
                break
            time.sleep(0.05)
        else:
            pytest.fail("no job was submitted within two minutes")
        sweep.send_signal(signal.SIGINT)
        _, err = sweep.communicate(timeout=30)
    assert sweep.returncode == 130 and "the jobs stay in the queue; scancel " in err
    first = set(json.loads((tmp_path / "out" / "slurm" / "jobs.json").read_text())["jobs"])
    with start(path, tmp_path / "out", "--executor", "slurm") as sweep:
        _, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 0, err
    units = list((tmp_path / "out" / "slurm").glob("unit-*.json"))
    assert len(units) == len(first) == 2  # nothing was submitted twice
    assert kept(tmp_path / "out") == kept(folder / "sweeps" / "s")


@pytest.mark.slow
def test_what_slurm_refuses_is_one_message(cluster, tmp_path):
    path = write(tmp_path, SMALL | {"executor": "slurm", "slurm": {"partition": "none"}})
    with start(path, tmp_path / "out") as sweep:
        _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 2 and "sbatch refuses" in err and "partition" in err and "Traceback" not in err


# ---------------------------------------------------------------- estimates, tracking


def test_estimates_grow_with_the_work_and_are_corrected_by_what_was_seen():
    def of(**given):
        config, task, _ = resolve({"task": "ioi", "model": "tiny"} | given, None, None)
        tiny = open_checkpoint("tiny")
        prompts = make_data(task, tiny.tokenizer, config.examples, 0).discovery
        return estimate.seconds(config, tiny.sizes, prompts, "cpu", 1)

    assert of(examples=10) < of(examples=100)
    assert (
        of(method="eap", edges=5, metric="logit-diff")
        < of(method="eap-ig", edges=5)
        < of(method="edge-patching", edges=5)
    )
    assert of(method="random", edges=5) < of()
    assert of(examples=40, ablation="zero") > of(examples=40)  # every position is live
    assert estimate.corrected([2.0, 4.0], [(2.0, 3.0), (1.0, 1.5), (1.0, 9.0)]) == [3.0, 6.0]
    assert estimate.corrected([2.0], []) == [2.0]


def test_runs_are_logged_where_that_is_asked_for(tmp_path, monkeypatch):
    seen = []

    class Fake:
        init = staticmethod(lambda **given: seen.append(("init", given)))
        log = staticmethod(lambda values: seen.append(("log", values)))
        finish = staticmethod(lambda: seen.append(("finish",)))

    Fake.__name__ = "wandb"
    monkeypatch.setitem(sys.modules, "wandb", Fake)
    row = {"run": "a", "state": "done", "task": "ioi", "threshold": 0.1, "kept": 5, "value": 0.2, "message": None}
    Tracking("wandb", "my sweep", tmp_path, seen.append).log(row)
    assert [s[0] for s in seen] == ["init", "log", "finish"]
    assert seen[0][1] == {
        "project": "my-sweep",
        "name": "a",
        "config": {"task": "ioi", "threshold": 0.1},
        "dir": str(tmp_path),
    }
    assert seen[1][1] == {"kept": 5, "value": 0.2, "failed": 0}
    Tracking(None, "x", tmp_path, seen.append).log(row)
    assert len(seen) == 3
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"track: trackio is not installed; pip install 'acdc-circuits\[trackio\]'"):
        Tracking("trackio", "x", tmp_path, seen.append)


def test_a_tracker_that_fails_is_said_once_and_left_alone(tmp_path, monkeypatch):
    class Refused:
        @staticmethod
        def init(**_):
            raise ValueError("No API key\nconfigured")

    Refused.__name__, said = "wandb", []
    monkeypatch.setitem(sys.modules, "wandb", Refused)
    tracking = Tracking("wandb", "x", tmp_path, said.append)
    for name in "ab":
        tracking.log({"run": name, "state": "done"})
    assert said == ["warning: wandb: No API key configured; no more runs are logged"]


def test_shipped_configs_have_names(call):
    code, shown, _ = call("sweep", "sweep-tiny", "--dry-run")
    assert code == 0 and "60 runs: 60 pending" in shown and "files     sweeps/sweep-tiny/" in shown
    code, _, error = call("sweep", "sweep-tyni")
    assert (
        code == 2
        and "unknown config 'sweep-tyni'" in error
        and "sweep-tiny" in error
        and "path ending in .yaml" in error
    )


def test_the_table_has_every_option_that_changes_the_result():
    named = {"target" if name == "faithfulness" else name for name in Config.model_fields}  # the other is measured
    assert set(table.OPTIONS) == named - {"device", "batch", *FOUND}


def test_columns_come_in_one_order():
    rows = [{"run": "a", "zeta": 1.0}, {"run": "b", "alpha": 2.0}]
    assert every_column(rows)[:2] == ["run", "state"] and every_column(rows)[-2:] == ["alpha", "zeta"]
