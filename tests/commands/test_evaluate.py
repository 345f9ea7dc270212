"""`acdc evaluate`: its quantities against the oracle's whole patched passes, and the command as a user sees it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from acdc.commands.evaluate import evaluate
from acdc.evaluation.bootstrap import estimate, share
from acdc.evaluation.faithfulness import (
    complement,
    faithfulness,
    prompt_faithfulness,
    prompt_values,
    random_circuit,
    values_without,
)
from acdc.files.circuit import edges_of, read_circuit, write_circuit
from acdc.files.evaluation import DRAWS, LEGEND
from acdc.files.parts import GraphPart
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.io.files import to_json
from acdc.model.checkpoint import open_checkpoint
from acdc.model.load import Model
from acdc.report.evaluation import to_text
from acdc.setup.config import resolve
from acdc.setup.inputs import Inputs, load
from acdc.task.tokenize import Data
from tests.support.golden import LIST
from tests.support.oracle import Naive
from tests.support.random_models import random_model, random_prompts

GIVEN = dict.fromkeys(("task", "model", "examples", "seed", "device"))


def random_inputs(seed: int, ablation: str, metric: str, part: int | None = None) -> Inputs:
    """A random model and prompts for it, in the place of a task's."""
    model = random_model(seed)
    prompts = random_prompts(seed, model, batch=5)
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "ablation": ablation, "dtype": "float64"}, None, None)
    config = config.model_copy(update={"metric": metric, "part": part})
    return Inputs(config, task, Model(open_checkpoint("tiny"), "", model, None), Data(prompts, prompts, ""))


def random_kept(graph: Graph, seed: int, direct: bool) -> Circuit:
    draw = np.random.default_rng(seed)
    kept = graph.edges & (draw.random(graph.edges.shape) < 0.6)
    return Circuit(graph, kept, graph.direct & (draw.random(len(graph.direct)) < 0.7) if direct else None)


def whole_names(circuit: Circuit) -> set[str]:
    """Names of the edges that are there: none into a receiver whose direct edge is removed."""
    closed = () if circuit.direct is None else np.flatnonzero(circuit.graph.direct & ~circuit.direct)
    receivers = {circuit.graph.receivers[j].name for j in closed}
    return {name for name in circuit.edge_names() if name.split("->")[1] not in receivers}


@pytest.mark.parametrize("part", [None, 2])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(("ablation", "metric"), [("corrupted", "kl"), ("zero", "logit-diff"), ("mean", "nll")])
def test_faithfulness_completeness_and_minimality_are_those_of_whole_patched_passes(ablation, metric, direct, part):
    inputs = random_inputs(3, ablation, metric, part)
    graph = inputs.model.transformer.config.graph()
    circuit = random_kept(graph, 3, direct)
    naive = Naive(inputs.model.transformer, inputs.data.held_out, metric, ablation)
    every, kept = {graph.edge_name(s, r) for s, r in np.argwhere(graph.edges)}, whole_names(circuit)
    assert kept < every

    def values(which):
        return prompt_values(inputs, "held_out", which, metric)

    full, own, ablated, rest = map(values, (None, circuit, Circuit.empty(graph), complement(circuit)))
    truth = {name: naive.metric(edges) for name, edges in
             {"full": every, "own": kept, "ablated": set(), "rest": every - kept}.items()}  # fmt: skip
    for found, name in ((full, "full"), (own, "own"), (ablated, "ablated"), (rest, "rest")):
        assert found.mean() == pytest.approx(truth[name], abs=1e-9)
    span = truth["ablated"] - truth["full"]
    assert faithfulness(own, full, ablated).value == pytest.approx((truth["ablated"] - truth["own"]) / span)
    assert faithfulness(rest, full, ablated).value == pytest.approx((truth["ablated"] - truth["rest"]) / span)
    edges = [graph.parse_edge(name) for name in sorted(kept)]
    without = values_without(inputs, "held_out", circuit, edges, metric)
    for name, rise in zip(sorted(kept), (without - own).mean(1), strict=True):
        assert rise == pytest.approx(naive.metric(kept - {name}) - truth["own"], abs=1e-9), name


@pytest.mark.parametrize("n", [50, 100])
@pytest.mark.parametrize("kind", ["normal", "skewed", "ratio"])
def test_95_of_100_intervals_hold_the_truth(kind, n):
    """1,000 draws, 250 for each of four sets of resamples: 95 ± 2 of a hundred are three standard deviations."""
    draw, held = np.random.default_rng(n), 0
    for seed in np.repeat(range(4), 250).tolist():  # in a row: the last resamples are kept
        if kind == "ratio":
            span = draw.gamma(2, size=n)
            truth, found = 0.6, faithfulness((0.4 + 0.2 * draw.standard_normal(n)) * span, np.zeros(n), span, seed)
        else:
            truth = 1
            values = draw.exponential(size=n) if kind == "skewed" else 1 + draw.standard_normal(n)
            found = estimate(values, seed=seed)
        held += found.low <= truth <= found.high
    assert 930 <= held <= 970


def test_each_end_of_an_interval_leaves_a_fortieth():
    """Of many symmetric, normal values they are ± 1.96 standard errors; the mean over seeds, as ends are drawn."""
    values = np.random.default_rng(0).standard_normal(100)
    values = np.concatenate([values, -values])
    found = np.array([estimate(values, seed=seed) for seed in range(12)])
    ends = found[:, 1:] / (values.std() / len(values) ** 0.5)
    assert ends.mean(0) == pytest.approx([-1.96, 1.96], abs=0.08)


def test_estimates_of_little():
    assert estimate(np.full(9, 0.3)) == pytest.approx((0.3, 0.3, 0.3))
    assert all(math.isnan(x) for x in estimate(np.ones(3), np.zeros(3)))
    assert math.isnan(estimate(np.ones(1)).low)
    one = np.zeros(20)
    one[0] = 1  # one prompt of twenty
    value, low, high = estimate(one)
    assert value == 0.05
    assert 0.05 < high < 0.5
    assert low < 0
    assert share(1.0, 100) == pytest.approx((1, 0.963, 1), abs=1e-3)
    assert share(0.5, 10) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    assert math.isnan(share(np.nan, 10).high)


def test_prompts_without_anything_to_recover_have_no_faithfulness():
    each = prompt_faithfulness(np.array([1.0, 3.0, 2.0, 4.0]), np.zeros(4), np.array([4.0, 4.0, 0.0, -1.0]))
    assert each[:2].tolist() == [0.75, 0.25]
    assert np.isnan(each[2:]).all()


def test_prompts_with_next_to_nothing_to_recover_have_no_faithfulness():
    with np.errstate(all="raise"):  # no division by what isn't there
        nothing = prompt_faithfulness(np.zeros(2), np.zeros(2), np.zeros(2))
        rounding = prompt_faithfulness(np.zeros(2), np.zeros(2), np.array([4.0, 1e-6]))
    assert np.isnan(nothing).all()
    assert rounding.tolist() == pytest.approx([1.0, np.nan], nan_ok=True)


@pytest.mark.parametrize("mlp", [True, False])
def test_random_circuits_are_connected_and_of_the_size_asked_for(mlp):
    graph, draw = Graph(3, 2, mlp), np.random.default_rng(0)
    seen = set()
    for n in (1, 2, 5, 20, graph.n_edges - 1, graph.n_edges):
        for _ in range(5):
            circuit = random_circuit(graph, n, draw)
            assert circuit.n_edges == n == circuit.pruned().n_edges
            seen.add(circuit.kept.tobytes())
    assert len(seen) > 15
    again = [random_circuit(graph, 9, np.random.default_rng(4)).kept for _ in range(2)]
    assert (again[0] == again[1]).all()


def test_random_circuits_leave_a_dead_end():
    """After `input->logits` no single edge is left that lies on a path: a circuit of two has to be begun anew."""
    graph, draw = Graph(1, 1, mlp=False), np.random.default_rng(0)
    for _ in range(8):
        names = random_circuit(graph, 2, draw).edge_names()
        assert names[1] == "a0.h0->logits"
        assert names[0].startswith("input->a0.h0<")


def test_the_complement_has_what_a_removed_direct_edge_removes():
    graph = Graph(1, 1)
    circuit = Circuit.full(graph)
    circuit.direct[graph.receiver_index["a0.h0<q>"]] = False
    assert complement(circuit).edge_names() == ["input->a0.h0<q>"]
    assert complement(Circuit.empty(graph)).n_edges == graph.n_edges


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """The golden circuit of greater-than in tiny, in a folder of its own."""
    folder = tmp_path_factory.mktemp("good")
    shutil.copy(LIST.parent / "golden" / "greater-than.json", folder / "circuit.json")
    return folder / "circuit.json"


def changed(path: Path, into: Path, change) -> Path:
    """A circuit.json with other residual edges: `change` gets and returns Bool[sender receiver]."""
    file = read_circuit(path)
    old = file.circuit()
    kept = change(old.kept.copy(), old.graph)
    circuit = Circuit(old.graph, kept, None, old.scores)
    write_circuit(into, file.model_copy(update={"graph": GraphPart.of(circuit), "edges": tuple(edges_of(circuit))}))
    return into


def assess(path: Path, most: int = 0, **given):
    return evaluate(path, {**GIVEN, **given}, None, most, lambda _: None)


def damaged(circuit: Circuit, draw) -> Circuit:
    """A tenth of its edges swapped for others."""
    kept, graph = circuit.kept.copy(), circuit.graph
    inside, outside = np.argwhere(kept), np.argwhere(graph.edges & ~kept)
    n = round(len(inside) / 10)
    kept[tuple(draw.permutation(inside)[:n].T)] = False
    kept[tuple(draw.permutation(outside)[:n].T)] = True
    return Circuit(graph, kept)


def test_a_damaged_circuit_is_told_from_the_good_one():
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "examples": 50}, None, None)
    inputs, good = load(config, task), read_circuit(LIST.parent / "golden" / "ioi.json").circuit()

    def values(which):
        return prompt_values(inputs, "held_out", which, "kl")

    full, own, ablated = map(values, (None, good, Circuit.empty(good.graph)))
    best, draw = faithfulness(own, full, ablated), np.random.default_rng(0)
    for _ in range(10):
        worse = values(damaged(good, draw))
        assert faithfulness(worse, full, ablated).high < best.low
        assert estimate(worse - own).low > 0


def test_edges_without_effect_are_superfluous(good, tmp_path):
    """Ten edges into heads that nothing reads, beside those that were found."""
    added = []

    def more(kept, graph):
        read = kept.any(1)
        unread = [i for i, s in enumerate(graph.senders) if s.kind == "head" and s.layer and not read[i]]
        for i in unread:
            for r in graph.own_receivers[i]:
                if len(added) < 10:
                    kept[0, r] = True
                    added.append(graph.edge_name(0, r))
        return kept

    path = changed(good, tmp_path / "c.json", more)
    assert len(added) == 10
    found = assess(path, most=200, examples=20)
    flagged = {e.name for e in found.minimality.edges if e.superfluous}
    assert set(added) <= flagged
    assert len(flagged - set(added)) < 5
    assert found.random.edges == found.edges - 10  # a dead edge is no match for a live one
    assert all(e.rise.value == 0 for e in found.minimality.edges if e.name in added)
    few = assess(path, most=7, examples=10).minimality
    scores = read_circuit(path).circuit().scores
    assert (few.kept, len(few.edges)) == (found.edges, 7)
    assert {e.name for e in few.edges} <= set(added)  # they have no score, and count as the smallest
    assert np.isfinite(scores).sum() > 7


def test_the_edges_with_the_smallest_scores_are_those_that_are_removed(good):
    told = []
    few = evaluate(good, {**GIVEN, "examples": 5}, None, 4, told.append).minimality
    circuit = read_circuit(good).circuit()
    scores = dict(zip(circuit.edge_names(), circuit.scores[circuit.kept], strict=True))
    assert {e.name for e in few.edges} == set(sorted(scores, key=scores.get)[:4])
    assert [e.rise.value for e in few.edges] == sorted(e.rise.value for e in few.edges)
    for stage, total in (("minimality", 4), ("random circuits", DRAWS)):
        assert [(p.done, p.total) for p in told[1:] if p.stage == stage] == [(i + 1, total) for i in range(total)]


def test_a_rise_within_rounding_is_none(good, monkeypatch):
    """By less than 100 times its precision no value is larger than another."""
    own, precision = 3.0, np.finfo(read_circuit(good).method.dtype).eps
    monkeypatch.setattr("acdc.commands.evaluate.DRAWS", 1)
    monkeypatch.setattr("acdc.commands.evaluate.prompt_values", lambda *_: np.full(5, own))
    monkeypatch.setattr(
        "acdc.commands.evaluate.measure_rows",
        lambda _, half, rows, metrics: {metric: dict.fromkeys(rows, np.full(5, own)) for metric in metrics},
    )
    for rise, useless in ((50, True), (200, False), (-200, True)):
        after = np.full((1, 5), own * (1 + rise * precision))
        monkeypatch.setattr("acdc.commands.evaluate.values_without", lambda *_, after=after: after)
        (edge,) = assess(good, most=1, examples=5).minimality.edges
        assert edge.superfluous == useless, rise


def test_quartiles_are_of_the_prompts_that_have_a_faithfulness(good, monkeypatch):
    monkeypatch.setattr("acdc.commands.evaluate.DRAWS", 1)
    for each, quartiles, undefined in (([0.5, np.nan, 0.5, 0.5, 0.5], (0.5,) * 5, 1), ([np.nan] * 5, (np.nan,) * 5, 5)):
        monkeypatch.setattr("acdc.commands.evaluate.prompt_faithfulness", lambda *_, each=each: np.array(each))
        spread = assess(good, examples=5).spread
        assert spread.faithfulness == pytest.approx(quartiles, nan_ok=True)
        assert spread.undefined == undefined


def test_the_whole_evaluation_of_a_circuit(good):
    e = assess(good, most=3)
    file = read_circuit(good)
    m, stated = e.measured, file.metrics
    for name, where in (("full", "model"), ("circuit", "circuit"), ("ablated", "ablated")):
        estimated = getattr(m, name)
        assert estimated.value == pytest.approx(stated[f"held_out.{where}.kl"], abs=1e-9)
        assert estimated.low <= estimated.value <= estimated.high
        assert m.accuracy[name].value == stated[f"held_out.{where}.accuracy"]
    assert m.faithfulness.low > 0.7
    assert m.completeness.high < 0.2
    assert (e.random.rank, len(e.random.metric), e.random.edges) == (1, DRAWS, file.graph.edges.kept)
    assert e.random.advantage.low > 0
    assert [x.ablation for x in (m, *e.others)] == ["corrupted", "zero", "mean"]
    (note,) = e.notes  # without the circuit's edges, what zero ablation leaves still does most
    assert note.endswith("under corrupted and mean ablation only, not under zero")
    assert list(e.spread.metric) == sorted(e.spread.metric)
    assert e.spread.worst[0].metric == e.spread.metric[-1]
    raw = json.loads(to_json(e))
    assert raw["measured"]["faithfulness"] == list(m.faithfulness)
    assert raw["legend"] == LEGEND


@pytest.mark.parametrize(("memory", "part"), [(None, 4), (1e9, None)])
def test_prompts_are_held_in_parts_as_in_the_run_unless_memory_is_given(good, monkeypatch, memory, part):
    class Asked(Exception):
        """Ends it where prompts would be loaded."""

    def load(config, *_):
        raise Asked(config.part)

    found_with, *_ = resolve({"task": "greater-than", "model": "tiny", "part": 4}, None, None)
    monkeypatch.setattr("acdc.commands.evaluate.load", load)
    with pytest.raises(Asked) as asked:
        evaluate(read_circuit(good), GIVEN, memory, 0, lambda _: None, found_with)
    assert asked.value.args == (part,)


def test_one_prompt_and_no_edges(tmp_path):
    found = assess(LIST.parent / "golden" / "or-gate.json")
    assert found.half == "discovery"
    assert any("one set of prompts" in note for note in found.notes)
    assert "nan" not in to_text(found)
    file = read_circuit(LIST.parent / "golden" / "or-gate.json")
    none = Circuit(file.model.graph, np.zeros_like(file.model.graph.edges))
    write_circuit(tmp_path / "c.json", file.model_copy(update={"graph": GraphPart.of(none), "edges": ()}))
    empty = assess(tmp_path / "c.json", most=200)
    assert (empty.random, empty.minimality) == (None, None)
    assert empty.measured.faithfulness.value == 0
    assert any("under no ablation" in note for note in empty.notes)
    assert "edges superfluous" not in to_text(empty)


@pytest.fixture
def command(acdc):
    """`acdc evaluate` in an empty folder."""
    return lambda *arguments, do="evaluate": acdc(do, *arguments)


def test_a_run_states_its_faithfulness_and_is_evaluated(command, tmp_path):
    ran = command("--task", "greater-than", "--model", "tiny", "--examples", "20", "--out", "run", do="run")
    stated = json.loads((tmp_path / "run" / "metrics.json").read_text())["faithfulness"]
    assert set(stated) == {"held_out", "discovery"}
    value, low, high = stated["held_out"]
    (line,) = [line for line in ran.out.splitlines() if line.startswith("held out kl ↓")]
    assert line.endswith(f"{value:.4f} [{low:.4f}, {high:.4f}]")
    result = command("run/circuit.json", "--out", "e.json")
    assert (result.code, result.err.count("\n")) == (0, 1)
    assert "not under zero" in result.err
    for name in ("faithfulness ↑", "completeness ↓", "minimality", "random", "per prompt", "ablation"):
        assert name in result.out
    written = (tmp_path / "e.json").read_text()
    assert command("run/circuit.json", "--json").out == written
    assert json.loads(written)["measured"]["faithfulness"] == pytest.approx(stated["held_out"])
    assert len(json.loads(written)["minimality"]["edges"]) == json.loads(written)["edges"]
    parts = json.loads(command("run/circuit.json", "--json", "--memory", "12MB", "--minimality", "2").out)
    assert parts["measured"]["faithfulness"] == pytest.approx(stated["held_out"], abs=1e-5)


def test_other_prompts_are_noted(command, good):
    result = command(good, "--examples", "60", "--minimality", "0", "--json")
    assert result.code == 0
    note, claim = json.loads(result.out)["notes"]
    assert "--examples 60" in note
    assert "found with 40 of these 60" in note
    assert result.err == f"note: {note}\nnote: {claim}\n"
    assert assess(good, seed=7, examples=5).notes[0].startswith("--examples 5, --seed 7: other prompts")


def edit(good: Path, into: Path, change) -> Path:
    raw = json.loads(good.read_text())
    change(raw)
    into.write_text(json.dumps(raw))
    return into


def test_mistakes_are_one_clear_line(command, good, tmp_path):
    (tmp_path / "damaged.json").write_text(good.read_text()[:300])
    newer = edit(good, tmp_path / "newer.json", lambda raw: raw.update(format_version=4))
    hashed = edit(good, tmp_path / "hash.json", lambda raw: raw["model"].update(hash="0123"))
    prompts = edit(good, tmp_path / "prompts.json", lambda raw: raw["task"].update(data_hash="0123"))
    metric = edit(good, tmp_path / "metric.json", lambda raw: raw["method"].update(metric="lk"))
    mine = edit(good, tmp_path / "mine.json", lambda raw: raw["task"].update(name="mine"))
    (tmp_path / "sub").mkdir()
    shutil.copy(good, tmp_path / "sub" / "circuit.json")
    (tmp_path / "sub" / "config.yaml").write_text("task: [a]\n")
    for arguments, hint in (
        (["none.json"], "can't be read"),
        (["damaged.json"], "is not JSON"),
        ([newer], "newer acdc"),
        ([hashed], "the circuit was found in other weights"),
        ([good, "--model", "or-gate"], "4 layers, 4 heads, 479 edges; that of or-gate has 1 layers"),
        ([prompts], "the prompts are not the circuit's"),
        ([metric], "Did you mean"),
        ([mine], "ending in .yaml"),
        (["sub/circuit.json"], "not a run config"),
        ([good, "--memory", "much"], "--memory"),
        ([good, "--minimality", "-1"], "--minimality"),
        ([good, "--examples", "0"], "--examples"),
        ([good, "--device", "gpu"], "--device"),
    ):
        result = command(*arguments)
        assert (result.code, result.out) == (2, ""), (arguments, result.out)
        assert result.err.count("\n") == 1, result.err
        assert hint in result.err, result.err


def test_help_has_an_example(command):
    assert "Example: acdc evaluate" in command("--help").out


def test_the_inputs_are_those_of_the_run(good):
    file = read_circuit(good)
    config, task, _ = resolve({"task": "greater-than", "model": "tiny", "dtype": "float64"}, None, None)
    assert load(config, task).config.data_hash == file.task.data_hash
