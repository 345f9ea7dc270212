"""Regression checks: what passes, what fails, and what can't be compared."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from safetensors.torch import load_file, save_file

from acdc.commands.check import Bounds, check_circuit, check_list, junit
from acdc.errors import UserError
from acdc.files.circuit import read_circuit, write_circuit
from acdc.model.find import BUNDLED
from tests.support.runs import made


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return made(tmp_path_factory.mktemp("golden") / "run")


def test_the_same_circuit_passes(golden, tmp_path):
    outcome = check_circuit(made(tmp_path / "again"), str(golden), Bounds())
    assert outcome.passed and not outcome.facts


def edited(path: Path, to: Path, n: int) -> Path:
    """A circuit without its first n edges, at other scores, or other metrics."""
    file = read_circuit(path)
    kept = file.edges[n:]
    graph = file.graph.of(file.model_copy(update={"edges": kept}).circuit(), file.graph.dead)
    write_circuit(to, file.model_copy(update={"edges": kept, "graph": graph}))
    return to


@pytest.mark.parametrize(("edits", "passes"), [(0, False), (1, False), (2, True)])
def test_edits_are_counted_and_named(golden, tmp_path, edits, passes):
    other = edited(golden, tmp_path / "other.json", 2)
    gone = [e.name for e in read_circuit(golden).edges[:2]]
    outcome = check_circuit(other, str(golden), Bounds(edits=edits))
    assert outcome.passed == passes
    assert [f"- {name}" for name in gone] == list(outcome.facts)
    back = check_circuit(golden, str(other), Bounds(edits=edits))
    assert back.passed == passes and [f"+ {name}" for name in gone] == list(back.facts)


def test_metrics_and_scores_are_compared_within_the_tolerance(golden, tmp_path):
    file = read_circuit(golden)
    first = file.edges[0].model_copy(update={"score": file.edges[0].score + 1e-3})
    metrics = dict(file.metrics)
    key = min(metrics)
    metrics[key] += 1e-3
    other = tmp_path / "other.json"
    write_circuit(other, file.model_copy(update={"edges": (first, *file.edges[1:]), "metrics": metrics}))
    tight, loose = (check_circuit(other, str(golden), Bounds(tolerance=t)) for t in (1e-4, 1e-2))
    assert loose.passed and not tight.passed
    assert any("re-scored" in p for p in tight.problems) and any(key in p for p in tight.problems)


def test_a_changed_weight_is_a_regression_with_the_edges_named(tmp_path):
    given = {"task": "ioi", "examples": 8, "threshold": 0.05}
    golden = made(tmp_path / "golden", model="tiny", **given)
    copy = tmp_path / "tiny"
    shutil.copytree(BUNDLED / "tiny", copy)
    name = "transformer.h.0.attn.c_attn.weight"
    weights = load_file(copy / "model.safetensors")
    name = next(n for n in weights if n.endswith("h.0.attn.c_attn.weight"))
    weights[name][:, :32] *= 0.2
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    outcome = check_circuit(made(tmp_path / "now", model=str(copy), **given), str(golden), Bounds())
    assert not outcome.passed
    assert any(fact[0] in "+-" and "->" in fact for fact in outcome.facts)
    assert any("weights differ" in fact for fact in outcome.facts)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"metric": "l2", "threshold": 0.3}, "threshold"),
        ({"ablation": "mean"}, "ablation"),
        ({"direct": False}, "direct"),
    ],
)
def test_another_question_can_not_be_compared(golden, tmp_path, given, says):
    with pytest.raises(UserError, match=f"golden circuit has another .*{says}"):
        check_circuit(made(tmp_path / "run", **given), str(golden), Bounds())


def test_a_published_circuit_bounds_recall_precision_classes_and_auc(golden, tmp_path):
    right = check_circuit(golden, "or-gate", Bounds(precision=1.0, classes=1))
    assert right.passed and any("component types" in f for f in right.facts)
    wrong = check_circuit(golden, "or-gate", Bounds(recall=1.0))
    assert [p for p in wrong.problems if "recall" in p]  # ACDC keeps one input of an OR gate
    with pytest.raises(UserError, match="auc needs the scores"):
        check_circuit(golden, "or-gate", Bounds(auc=0.5))
    scored = made(tmp_path / "ig", method="eap-ig-activations", edges=4)
    assert check_circuit(scored, "or-gate", Bounds(auc=0.9)).passed
    for bounds, against in ((Bounds(recall=1.0), str(golden)), (Bounds(edits=1), "or-gate")):
        with pytest.raises(UserError, match="can't be used against"):
            check_circuit(golden, against, bounds)


PUBLISHED = "circuit: golden.json"
LIST = """
checks:
  - {name: same, run: {task: or-gate, model: or-gate, dtype: float64, device: cpu}, against: golden.json}
  - {name: less, circuit: less.json, against: golden.json}
  - {name: published, circuit: golden.json, against: or-gate, precision: 1}
"""


def test_a_list_runs_all_and_reports_in_junit(golden, tmp_path):
    shutil.copy(golden, tmp_path / "golden.json")
    edited(golden, tmp_path / "less.json", 1)
    (tmp_path / "checks.yaml").write_text(LIST)
    outcomes = check_list(tmp_path / "checks.yaml")
    assert [o.passed for o in outcomes] == [True, False, True]
    suite = ElementTree.fromstring(junit(outcomes))
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    assert [case.find("failure") is None for case in suite] == [True, False, True]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("name: less", "name: same"), "two checks have this name"),
        (("circuit: less.json, against: golden.json", "against: golden.json"), "either run"),
        (("precision: 1", "precision: 2"), "precision"),
        (("precision: 1", "edits: 2"), "can't be used against"),
        (("precision: 1", "precison: 1"), "precison"),
        (("dtype: float64", "dtype: float16"), "dtype"),
        (("task: or-gate, model: or-gate", "task: ioi"), "name the model"),
        (("checks:", "tests:"), "checks"),
        (
            ("less.json, against: golden.json", "less.json, against: gone.json"),
            r"checks.yaml: less: .*gone.json: can't",
        ),
        (("circuit: golden.json", "circuit: gone.json"), r"checks.yaml: published: .*gone.json: can't be read"),
        (("against: or-gate", "against: or-gat"), r"checks.yaml: published: unknown published circuit 'or-gat'"),
        (("against: or-gate", "against: ioi"), r"checks.yaml: published: ioi: is of a graph of 12 layers"),
        ((PUBLISHED, "run: {task: or-gate, model: tyny}"), r"checks.yaml: published: --model tyny: "),
        ((PUBLISHED, "run: {task: ioi, model: or-gate}"), r"checks.yaml: published: .*or-gate"),
        (
            (
                f"{PUBLISHED}, against: or-gate, precision: 1",
                "run: {task: or-gate, threshold: 9.0}, against: golden.json",
            ),
            r"checks.yaml: published: .*another threshold: .*, not 9.0",
        ),
    ],
)
def test_a_bad_list_is_one_message_before_anything_runs(golden, tmp_path, change, says):
    assert change[0] in LIST
    shutil.copy(golden, tmp_path / "golden.json")
    edited(golden, tmp_path / "less.json", 1)
    (tmp_path / "checks.yaml").write_text(LIST.replace(*change, 1))
    with pytest.raises(UserError, match=says):
        check_list(tmp_path / "checks.yaml", say=lambda _: pytest.fail("ran"))
