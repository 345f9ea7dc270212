"""A run: its files, resuming, same bytes, and who owns its directory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from acdc.commands import run as runner
from acdc.errors import FileError
from acdc.graph.circuit import Circuit
from acdc.graph.scores import read_scores
from acdc.methods.discover import CHECKPOINT, SCORES, SUPERSET
from acdc.methods.log import read_log
from acdc.patching.activations import prepare
from acdc.patching.patch import circuit_edges, patched_rows
from acdc.registry import METHODS
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support import ROOT
from tests.support.runs import COMPARED, Killed, inputs, killer, of_work, scoring

OF_TARGET = {SUPERSET, "frontier.csv"}  # files of runs with a target only


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in COMPARED}


@pytest.fixture(scope="module")
def loaded():
    return inputs()


@pytest.fixture(scope="module")
def reference(loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "run"
    runner.run(loaded, folder)
    return contents(folder)


def test_a_run_writes_its_files(loaded, tmp_path):
    file, out = runner.run(loaded, tmp_path / "run")
    assert {p.name for p in out.iterdir()} == {*runner.FILES, ".lock"} - OF_TARGET - {SCORES, CHECKPOINT}
    assert file == runner.read_circuit(out / "circuit.json")
    decisions = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {d["edge"] for d in decisions if d["kept"]} >= {e.name for e in file.edges}
    assert all((d["margin"] <= 0) == d["kept"] for d in decisions)


@pytest.mark.parametrize("after", [1, 2, 3, 5, 8, 13, 20])
@pytest.mark.parametrize("torn", [b"", b'{"batch": 3, "edge": "a', b"\x00\xff"])
def test_a_killed_run_goes_on_to_the_same_bytes(loaded, reference, tmp_path, after, torn):
    with pytest.raises(Killed):
        runner.run(loaded, tmp_path, progress=killer(after))
    with (tmp_path / "log.jsonl").open("ab") as f:
        f.write(torn)
    runner.run(loaded, tmp_path)
    assert contents(tmp_path) == reference


def test_a_run_killed_at_every_batch_ends_with_the_same_bytes(loaded, reference, tmp_path):
    for _ in range(200):
        try:
            runner.run(loaded, tmp_path, progress=killer(3))  # one batch is taken again, one replayed, one is new
        except Killed:
            continue
        break
    else:
        lines = (tmp_path / "log.jsonl").read_text().count("\n")
        runner.run(loaded, tmp_path)
        assert lines <= reference["log.jsonl"].count(b"\n")
    assert contents(tmp_path) == reference


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"acdc"}))
def test_every_method_runs_and_goes_on_after_a_kill_to_the_same_bytes(method, tmp_path):
    files = ("circuit.json", "config.yaml", "circuit.svg", SCORES)
    file, out = runner.run(scoring(method), tmp_path / "whole")
    assert {p.name for p in out.iterdir()} == {*runner.FILES, ".lock"} - OF_TARGET - {"log.jsonl", CHECKPOINT}
    assert file.graph.edges.kept + file.graph.dead >= 30
    residual = [e for e in file.edges if e.name not in file.model.graph.direct_index]
    assert all(e.score is not None for e in residual) and all(e.change is None for e in file.edges)
    if method == "random":
        return
    with pytest.raises(Killed):
        runner.run(scoring(method), tmp_path / "killed", progress=killer(1))
    runner.run(scoring(method), tmp_path / "killed")
    for name in files:
        assert (tmp_path / "killed" / name).read_bytes() == (out / name).read_bytes(), name


def test_acdc_behind_a_filter_keeps_filtered_edges_only_and_goes_on_after_a_kill(tmp_path):
    chosen = scoring("acdc", prefilter="eap-ig:0.1")
    file, out = runner.run(chosen, tmp_path / "whole")
    graph = file.model.graph
    best = read_scores(out / SCORES, graph).top(round(0.1 * graph.n_edges), magnitude=True)
    assert 0 < file.graph.edges.kept <= best.sum()
    assert not (file.circuit().kept & ~best).any()
    for after in (1, 2, 5, 9):
        with pytest.raises(Killed):
            runner.run(chosen, tmp_path / str(after), progress=killer(after))
        runner.run(scoring("acdc", prefilter="eap-ig:0.1"), tmp_path / str(after))
        for name in ("circuit.json", "log.jsonl", SCORES):
            assert (tmp_path / str(after) / name).read_bytes() == (out / name).read_bytes()


def test_scores_of_another_graph_are_refused(loaded, tmp_path):
    _, out = runner.run(scoring("random"), tmp_path)
    with pytest.raises(FileError, match="no scores of a graph"):
        read_scores(out / SCORES, loaded.model.transformer.config.graph())
    (out / SCORES).write_bytes(b"nothing")
    with pytest.raises(FileError, match="not a file of scores"):
        read_scores(out / SCORES, loaded.model.transformer.config.graph())


PROGRAM = """
import os, signal, sys
from pathlib import Path
from acdc.commands import run as runner
from tests.support.runs import inputs, of_work
n = int(sys.argv[2])
def progress(p):
    global n
    n -= of_work(p)
    if n == 0 and of_work(p):
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
try:
    runner.run(inputs(), Path(sys.argv[1]), progress=progress)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -signal.SIGKILL), ("SIGINT", 130)])
def test_signals(reference, tmp_path, name, code):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run([*command, "6", name], cwd=ROOT, check=False, stderr=subprocess.PIPE)
    assert done.returncode == code, done.stderr.decode()
    assert not (folder / "circuit.json").exists()
    subprocess.run([*command, "-1", name], cwd=ROOT, check=True)
    assert contents(folder) == reference


def test_a_log_that_is_not_ours_is_refused(loaded, tmp_path):
    with pytest.raises(Killed):
        runner.run(loaded, tmp_path, progress=killer(4))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    lines[1] = "{}"
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(FileError, match="line 2: not a decision"):
        runner.run(loaded, tmp_path)


def test_a_log_of_other_decisions_is_refused(loaded, tmp_path):
    with pytest.raises(Killed):
        runner.run(loaded, tmp_path, progress=killer(4))
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text().replace("a3.h0->logits", "m2->logits", 1))
    with pytest.raises(FileError, match="tests other edges"):
        runner.run(loaded, tmp_path)


def touched(folder: Path) -> dict[str, int]:
    """When each file of a run was written last; the lock's is the business of filelock, whose versions differ."""
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != ".lock"}


def test_a_finished_run_is_not_run_again(loaded, tmp_path):
    first, out = runner.run(loaded, tmp_path)
    before = touched(out)
    again, _ = runner.run(loaded, tmp_path, progress=lambda _: pytest.fail("ran again"))
    assert again == first
    assert touched(out) == before
    runner.run(loaded, tmp_path, force=True)
    assert (out / "circuit.json").stat().st_mtime_ns != before["circuit.json"]


def test_a_directory_belongs_to_one_config(loaded, tmp_path):
    runner.run(loaded, tmp_path)
    before = contents(tmp_path)
    other = inputs(threshold=0.5)
    with pytest.raises(FileError, match=r"another config: threshold 0\.001, here 0\.5; choose another --out"):
        runner.run(other, tmp_path)
    assert contents(tmp_path) == before
    file, _ = runner.run(other, tmp_path, force=True)
    assert file.method.threshold == 0.5


def test_two_processes_never_write_one_directory(loaded, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(FileError, match="another acdc process"):
        runner.run(loaded, tmp_path / "run")


def test_the_saved_config_makes_the_same_bytes(loaded, reference, tmp_path):
    (tmp_path / "c.yaml").write_bytes(reference["config.yaml"])
    config, task, _ = resolve({}, tmp_path / "c.yaml", None)
    assert config == loaded.config
    runner.run(load(config, task), tmp_path / "run")
    assert contents(tmp_path / "run") == reference


def test_changed_weights_or_prompts_are_refused(loaded):
    for key in ("model_hash", "data_hash"):
        with pytest.raises(FileError, match=f"{key} is 0123"):
            load(loaded.config.model_copy(update={key: "0123"}), loaded.task)


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
def test_the_full_graph_is_the_model_and_the_empty_one_the_ablated_run(ablation):
    loaded = inputs(task="tracr-xproportion", ablation=ablation)
    model = loaded.model.transformer
    graph = model.config.graph()
    runs = prepare(model, loaded.data.discovery, ablation)
    full = patched_rows(model, graph, runs, circuit_edges(Circuit.full(graph), model))
    assert torch.allclose(full, runs.targets.clean, atol=1e-12)
    empty = patched_rows(model, graph, runs, circuit_edges(Circuit.empty(graph), model))
    written = sum(model.written(runs.ablated, s) for s in graph.senders)
    written = written + sum(model.weights[f"layers.{i}.o.bias"] for i in range(graph.n_layers))
    assert torch.allclose(empty, model.normalise(written[tuple(runs.rows.T)]), atol=1e-12)


def test_an_unwritable_directory_is_one_clear_line(loaded, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="can't be written"):
        runner.run(loaded, tmp_path / "file" / "run")


# ---------------------------------------------------------------- progress


def test_a_run_shows_its_stages_in_the_planned_order_and_each_to_its_end(tmp_path):
    seen = []
    runner.run(inputs(), tmp_path, progress=seen.append)
    plan, *reports = seen
    assert list(plan.stages) == ["loading", *dict.fromkeys(p.stage for p in reports)]
    assert list(plan.stages) == ["loading", "activations", "search", "evaluation", "curve", "report"]
    search = [p for p in reports if p.stage == "search"]
    assert [p.done for p in search] == sorted(p.done for p in search)
    assert search[-1].done == pytest.approx(search[-1].total)
    assert not any(p.resumed for p in reports)


def test_a_resumed_run_begins_where_it_was(tmp_path):
    with pytest.raises(Killed):
        runner.run(inputs(), tmp_path, progress=killer(5))
    seen = []
    runner.run(inputs(), tmp_path, progress=seen.append)
    log = read_log(tmp_path / "log.jsonl")
    search = [p for p in seen if of_work(p)]
    again = [p for p in search if p.resumed]
    assert again == search[: len(again)]
    assert len(again) == 4  # the last batch of the log is decided again
    assert {p.resumed for p in again} == {f"{sum(d.batch <= len(again) for d in log):,} decisions from the log"}
    assert 0 < again[-1].done < search[len(again)].done
