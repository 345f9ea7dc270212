"""Under load: long logs, large circuits, sweeps of many runs, many prompts, many layers. Times are in
docs/benchmarks.md; here is what has to hold on any machine: nothing is lost, and files stay small."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from html import unescape

import numpy as np
import pytest

from acdc.commands.export import convert
from acdc.files.circuit import read_circuit, write_circuit
from acdc.files.diff import diff
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.methods.acdc import Options, discover
from acdc.methods.log import Decision, Journal
from acdc.patching.activations import prepare
from acdc.patching.engine import Engine
from acdc.patching.patch import circuit_edges, patched_rows
from acdc.registry import FORMATS
from acdc.report.page import LOG_ROWS, render_report
from acdc.report.picture import MOST, to_svg
from tests.support.circuits import assert_same, file_of
from tests.support.random_models import random_model, random_prompts

LINES, EDGES, RUNS, PROMPTS, LAYERS = 100_000, 5_000, 1_000, 1_000, 24
GPT2 = Graph(12, 12)


@pytest.fixture(scope="module")
def large():
    """A circuit of 5,000 edges of GPT-2 small's graph."""
    rng = np.random.default_rng(0)
    kept = np.zeros_like(GPT2.edges)
    kept[tuple(rng.permutation(np.argwhere(GPT2.edges))[:EDGES].T)] = True
    scores = np.where(kept, rng.exponential(0.01, kept.shape), np.nan)
    direct = GPT2.direct & kept.any(0)
    return Circuit(GPT2, kept, direct, scores, np.where(direct, 0.01, np.nan))


def decisions(n):
    rng = np.random.default_rng(0)
    names = [GPT2.edge_name(s, r) for s, r in np.argwhere(GPT2.edges)]
    changes = rng.normal(0, 0.01, n).tolist()
    return [Decision(1 + i // 50, names[i % len(names)], x, 0.01 - x, 0.5, x >= 0.01) for i, x in enumerate(changes)]


def test_a_log_of_100_000_lines_is_gone_on_with(tmp_path):
    path, written = tmp_path / "log.jsonl", decisions(LINES)
    text = "".join(json.dumps(asdict(d)) + "\n" for d in written)
    path.write_text(text[:-20])  # killed in the middle of the last line
    journal, last = Journal(path), written[-1].batch
    assert journal.decisions == [d for d in written if d.batch < last]
    for number in range(1, last):
        batch = [d for d in written[50 * number - 50 : 50 * number]]
        assert journal.begin([d.edge for d in batch]) == batch
    assert journal.begin(["input->logits"]) is None
    journal.write([d for d in written if d.batch == last])
    assert path.read_text() == text


def test_the_page_of_a_long_log_stays_small(large):
    log = [asdict(d) for d in decisions(LINES)]
    page = render_report(file_of(large), log)
    assert len(page) < 6e6
    rows = json.loads(page.split('id="log">')[1].split("</script>")[0])
    assert len(rows) == LOG_ROWS and sum(row[4] for row in rows) == sum(d["kept"] for d in log)
    assert f"{LINES:,} edges were tested" in page and f"{LOG_ROWS:,} in all" in page


def test_a_circuit_of_5_000_edges_is_read_compared_and_exported(large, tmp_path):
    file = file_of(large)
    write_circuit(tmp_path / "circuit.json", file)
    assert (tmp_path / "circuit.json").stat().st_size < 1e6
    back = read_circuit(tmp_path / "circuit.json")
    assert_same(back.circuit(), large)
    fewer = large.kept.copy()
    fewer[tuple(np.argwhere(fewer)[:10].T)] = False
    found = diff(file, file_of(Circuit(GPT2, fewer, large.direct, large.scores, large.direct_scores)))
    assert len(found.removed) == 10 and not found.added and not found.rescored
    for to in set(FORMATS) - {"svg", "png", "pdf", "tikz", "parameters"}:
        content = convert(back, to)
        assert len(content) < 5e6
        text = unescape(content if isinstance(content, str) else content.decode())
        if to == "html":
            assert f"{EDGES:,} of the" in text
        else:
            assert set(re.findall(r"[\w.]+->[\w.<>]+", text)) >= set(large.edge_names()), to


@pytest.mark.slow
def test_a_picture_of_5_000_edges_has_the_strongest(large):
    svg = to_svg(large)
    assert svg.count('class="edge"') >= MOST and f"the {MOST} strongest are drawn" in svg and len(svg) < 1e6


@pytest.mark.slow
def test_a_sweep_of_1_000_runs_is_planned_and_read(call, tmp_path):
    grid = f"base: {{model: or-gate, task: or-gate}}\ngrid: {{threshold: {{linear: [0.001, 1], count: {RUNS}}}}}\n"
    (tmp_path / "many.yaml").write_text(grid)
    code, text, err = call("sweep", "many.yaml", "--dry-run")
    assert code == 0 and f"{RUNS:,} to run" in text, err
    assert call("run", "--task", "or-gate", "--model", "or-gate", "--out", "one")[0] == 0
    config = (tmp_path / "one" / "config.yaml").read_text()
    stated = next(line for line in config.splitlines() if line.startswith("threshold:"))
    for i in range(RUNS):
        folder = tmp_path / "runs" / f"run-{i:04}"
        folder.mkdir(parents=True)
        for name in ("circuit.json", "metrics.json"):
            shutil.copy(tmp_path / "one" / name, folder)
        (folder / "config.yaml").write_text(config.replace(stated, f"threshold: {0.001 * (i + 1):g}"))
    code, text, err = call("results", "runs", "--sort", "-threshold", "--csv")
    rows = text.splitlines()
    assert code == 0 and len(rows) == 1 + RUNS and rows[1].startswith("run-0999,done"), err


@pytest.mark.parametrize(
    ("prompts", "sizes"),
    [
        pytest.param(PROMPTS, {"n_layers": 3}, id="1,000 prompts", marks=pytest.mark.slow),
        pytest.param(4, {"n_layers": LAYERS, "n_heads": 4, "d_model": 16}, id="24 layers", marks=pytest.mark.slow),
    ],
)
def test_many_prompts_and_many_layers(prompts, sizes):
    """What the engine says of the circuit in the end is what the whole patched model says."""
    model = random_model(0, **sizes)
    graph, runs = model.config.graph(), prepare(model, random_prompts(0, model, batch=prompts), "corrupted")
    engine, journal = Engine(model, graph, runs, runs.metric("kl", model)), Journal()
    circuit = discover(engine, Options(0.02 if prompts > 4 else 0.0005), journal)
    assert 0 < circuit.n_edges < graph.n_edges / 2
    patched = runs.metric("kl", model)(patched_rows(model, graph, runs, circuit_edges(circuit, model)))
    assert float(patched.mean()) == pytest.approx(journal.decisions[-1].metric, abs=1e-9)
