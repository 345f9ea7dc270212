"""Prompts in parts, on disk, give the decisions of all prompts at once."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from acdc.commands import run as runner
from acdc.methods.acdc import Options, discover
from acdc.methods.log import Journal
from acdc.patching.engine import Engine
from acdc.patching.offload import PartedEngine, Parts
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support.random_models import random_model, random_prompts
from tests.support.runs import Killed, killer

ABLATIONS = ["corrupted", "zero", "mean"]


@pytest.mark.parametrize(
    ("size", "seed", "ablation"),
    [
        *product([3, 7], range(5), ABLATIONS),
        *(pytest.param(1, seed, ABLATIONS[seed % 3], marks=pytest.mark.slow) for seed in range(5)),
    ],
)
def test_same_decisions(size, seed, ablation):
    model = random_model(seed, n_layers=3, n_heads=2, split_position=seed == 4)
    prompts = random_prompts(seed, model, batch=7, pad=seed % 2 == 1, scored=["last", "two", "all"][seed % 3])
    graph = model.config.graph()
    logs = []
    for parts in (Parts(model, prompts, ablation), Parts(model, prompts, ablation, size)):
        whole = len(parts) == 1
        metric = parts.metric("kl")
        engine = Engine(model, graph, parts[0], metric) if whole else PartedEngine(model, graph, parts, metric, None)
        journal = Journal()
        circuit = discover(engine, Options(0.01), journal)
        logs.append([(d.edge, d.kept, pytest.approx(d.metric, abs=1e-10)) for d in journal.decisions])
        logs.append(circuit.edge_names())
    assert logs[:2] == logs[2:]


def test_a_run_in_parts_is_recorded_resumes_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    given = {"task": "ioi", "model": "tiny", "examples": 10, "dtype": "float64", "device": "cpu"}
    files = {}
    for name, part in {"whole": None, "parts": 4, "resumed": 4}.items():
        config, task, _ = resolve({**given, "part": part}, None, None)
        loaded = load(config, task)
        if name == "resumed":
            with pytest.raises(Killed):
                runner.run(loaded, tmp_path / name, progress=killer(9))
            loaded = load(config, task)
        files[name] = runner.run(loaded, tmp_path / name)[0]
        del loaded
    assert [e.name for e in files["parts"].edges] == [e.name for e in files["whole"].edges]
    assert files["parts"].metrics == pytest.approx(files["whole"].metrics, abs=1e-9)
    assert "part: 4\n" in (tmp_path / "parts" / "config.yaml").read_text()
    for name in ("circuit.json", "log.jsonl"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert list(Path(tmp_path / "scratch").iterdir()) == []
