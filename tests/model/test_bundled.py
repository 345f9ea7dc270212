"""The bundled models: known mechanisms are found, and every task ends in a small circuit that works."""

from __future__ import annotations

import json
import re
from string import Formatter

import numpy as np
import pytest

from acdc.commands import run as runner
from acdc.methods.acdc import Options, discover
from acdc.model.checkpoint import open_checkpoint
from acdc.model.find import BUNDLED
from acdc.patching.activations import prepare
from acdc.patching.engine import Engine
from acdc.patching.patch import circuit_edges, patched_rows
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from acdc.task.load import load_task
from acdc.task.tokenize import make_data
from tests.recipes.compile_tracr import PROGRAMS, load_model, save_model, structure
from tests.recipes.make_or_gate import BASIS, WORDS, make_or_gate
from tests.recipes.train_tiny import CARD, GOALS, TASKS, VARIANTS, build_tokenizer, save_tokenizer, variant_task
from tests.support.oracle import Naive, naive_acdc

LANGUAGE = ["greater-than", "ioi", "induction", "docstring", "gendered-pronoun", "subject-verb-agreement"]


def found(tmp_path, **given):
    config, task, _ = resolve({"dtype": "float64", "device": "cpu", **given}, None, None)
    return runner.run(load(config, task), tmp_path / "run")[0]


def residual(file):
    return {e.name for e in file.edges} - file.model.graph.direct_index.keys()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("threshold", [1e-6, 1e-3, 0.05])
def test_zero_ablation_finds_the_mechanism_of_the_compiled_models(tmp_path, program, direct, threshold):
    """All edges that are real by the weights but those that never change an output behind BOS (see the model cards)."""
    file = found(tmp_path, task=program.name, ablation="zero", direct=direct, threshold=threshold)
    real = set(structure(load_model(BUNDLED / program.name)))
    assert real == set(json.loads((BUNDLED / program.name / "structure.json").read_text())["edges"])
    assert residual(file) == real - program.inert
    assert file.metrics["discovery.circuit.l2"] < 1e-12


@pytest.mark.parametrize(("order", "kept"), [("paper", "a0.h0"), ("heads-ascending", "a0.h1")])
def test_acdc_keeps_exactly_one_input_of_the_or_gate(tmp_path, order, kept):
    file = found(tmp_path, task="or-gate", order=order)
    assert residual(file) == {f"input->{kept}<v>", f"{kept}->m0", "m0->logits"}


@pytest.mark.parametrize("task", LANGUAGE)
def test_tiny_has_a_small_circuit_for_every_language_task(tmp_path, task):
    file = found(tmp_path, task=task, model="tiny", dtype="float32")
    assert 0 < file.graph.edges.kept < 0.25 * file.graph.edges.total
    assert file.metrics["held_out.model.accuracy"] > 0.95
    assert file.metrics["held_out.circuit.kl"] < 0.35 * file.metrics["held_out.ablated.kl"]
    assert file.metrics["held_out.circuit.accuracy"] > 0.9


@pytest.mark.parametrize("task", ["greater-than", "ioi", "induction"])
@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
def test_tiny_gives_the_edges_of_the_naive_algorithm(task, ablation):
    config, spec, _ = resolve(
        {"task": task, "model": "tiny", "dtype": "float64", "device": "cpu", "examples": 3, "ablation": ablation},
        None,
        None,
    )
    loaded = load(config, spec)
    model, prompts = loaded.model.transformer, loaded.data.discovery
    runs = prepare(model, prompts, ablation)
    engine = Engine(model, model.config.graph(), runs, runs.metric("kl", model))
    circuit = discover(engine, Options(0.02))
    edges, direct, value, margin = naive_acdc(Naive(model, prompts, "kl", ablation), 0.02, True)
    assert margin > 1e-10
    assert (set(circuit.edge_names()), set(circuit.direct_names())) == (edges, direct)
    patched = runs.metric("kl", model)(patched_rows(model, engine.graph, runs, circuit_edges(circuit, model)))
    assert float(patched.mean()) == pytest.approx(value, abs=1e-10)


def test_float32_decides_as_float64_but_within_rounding(tmp_path):
    """The log's margins say how close each decision was; at these sizes none is near enough for rounding to turn it."""
    logs = {}
    for dtype in ("float32", "float64"):
        found(tmp_path / dtype, task="ioi", model="tiny", dtype=dtype, examples=20)
        lines = (tmp_path / dtype / "run" / "log.jsonl").read_text().splitlines()
        logs[dtype] = [json.loads(line) for line in lines]
    assert [(d["edge"], d["kept"]) for d in logs["float32"]] == [(d["edge"], d["kept"]) for d in logs["float64"]]
    pairs = zip(logs["float32"], logs["float64"], strict=True)
    assert np.abs([a["change"] - b["change"] for a, b in pairs]).max() < 1e-4


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    hashes = []
    for seed in (0, 0, 1):
        config, task, _ = resolve({"task": "ioi", "model": "tiny", "examples": 5, "seed": seed}, None, None)
        hashes.append(load(config, task).data.hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.task)
def test_every_variant_that_tiny_is_trained_on_makes_prompts_with_its_tokenizer(variant):
    """Of a changed word list or rule of a task, the recipe of the bundled model would be told only when it is run."""
    data = make_data(variant_task(variant), open_checkpoint("tiny").tokenizer, min(variant.examples, 4), seed=1)
    assert data.discovery.texts
    assert data.held_out.texts


def test_the_recipe_of_tiny_makes_the_tokenizer_that_is_bundled(tmp_path):
    save_tokenizer(build_tokenizer([load_task(name) for name in TASKS]), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (BUNDLED / "tiny" / name).read_bytes()


def test_the_card_of_tiny_is_the_recipes():
    stated = (BUNDLED / "tiny" / "README.md").read_text()
    pattern = ""
    for words, field, *_ in Formatter().parse(CARD):
        pattern += re.escape(words)
        if field:
            pattern += f"(?P={field})" if f"<{field}>" in pattern else f"(?P<{field}>.*?)"
    facts = re.fullmatch(pattern, stated, re.DOTALL)
    assert facts, "the card has other words than the recipe writes"
    assert int(facts["steps"]) < int(facts["limit"])
    measured = re.findall(r"^\| ([a-z-]+) \| ([\d.]+)% \| ([\d.]+) ", facts["table"], re.MULTILINE)
    assert [name for name, *_ in measured] == list(TASKS)
    assert all(float(difference) >= GOALS[name] for name, _, difference in measured)


def test_the_recipe_of_the_or_gate_makes_the_bytes_that_are_bundled(tmp_path):
    save_model(tmp_path, make_or_gate(), WORDS, BASIS)
    bundled = {path.name for path in (BUNDLED / "or-gate").iterdir()} - {"README.md"}
    assert {path.name for path in tmp_path.iterdir()} == bundled
    for name in bundled:
        assert (tmp_path / name).read_bytes() == (BUNDLED / "or-gate" / name).read_bytes()
