"""`acdc run --faithfulness` and `--edges`: the target is met, a run goes on after a kill, and mistakes are one line."""

from __future__ import annotations

import csv
import json
import random

import numpy as np
import pytest

from acdc.commands import run as runner
from acdc.errors import FileError
from acdc.files.circuit import read_circuit
from acdc.graph.circuit import Circuit
from acdc.graph.scores import read_scores
from acdc.methods import discover
from acdc.methods.discover import LOG, SCORES, SUPERSET
from tests.support.moments import TASK, Moments, contents, named
from tests.support.runs import Killed, inputs

TINY = {"task": "ioi", "model": "tiny", "examples": 5, "ablation": "corrupted", "dtype": "float32"}


def loaded(**given):
    return inputs(**{"batch": None, **given})


def ended(inp, out):
    """Run, and return the steps at which files changed, and all files."""
    steps = []
    with Moments(out, lambda _, step: steps.append(step)).watched():
        runner.run(inp, out)
    return named(steps), contents(out)


def killed(inp, out, number):
    """Kill a run at a step of writing, and start it again."""

    def act(now, _):
        if now == number:
            raise Killed

    with Moments(out, act).watched(), pytest.raises(Killed):
        runner.run(inp, out)
    runner.run(inp, out)
    return contents(out)


# ---------------------------------------------------------------- what is found


def reached(file, half="discovery"):
    """The metric of everything ablated, what ablation costs, and the circuit's faithfulness."""
    full, circuit, ablated = (file.metrics[f"{half}.{what}.kl"] for what in ("model", "circuit", "ablated"))
    return ablated, ablated - full, (ablated - circuit) / (ablated - full)


@pytest.mark.parametrize("many", [256, 0], ids=["exact", "acdc first"])
def test_the_circuit_is_as_faithful_as_asked_for_and_no_edge_can_go(tmp_path, monkeypatch, many):
    monkeypatch.setattr(discover, "MANY", many)
    file, out = runner.run(loaded(**TINY, faithfulness=0.9), tmp_path / "run")
    ablated, span, faithfulness = reached(file)
    assert 0.9 <= faithfulness < 1
    changes = [e.change for e in file.edges if e.change is not None]
    assert len(changes) == file.graph.edges.kept
    assert faithfulness - min(changes) / span < 0.9
    (note,) = [note for note in file.notes if note.startswith("1-minimal")]
    assert f"any one of its {file.graph.edges.kept} edges" in note
    assert {p.name for p in out.iterdir()} == {*runner.FILES, ".lock"} - {"masks.safetensors"}
    # An edge may use up what is left to the target or, in ACDC, a hundredth of what is left to a higher one.
    first = json.loads((out / LOG).read_text().splitlines()[0])
    before = first["metric"] - (0 if first["kept"] else first["change"])
    allowed = first["margin"] + first["change"]
    limit = (ablated - before - (allowed if many else 100 * allowed)) / span
    assert limit == pytest.approx(0.9 if many else 1 - 0.1 * discover.BY_ACDC, abs=1e-5)


def test_at_most_so_many_edges_are_kept_and_the_path_is_nested(tmp_path):
    inp = loaded(**TINY, edges=25)
    file, out = runner.run(inp, tmp_path / "run")
    n = file.graph.edges.kept
    assert 0 < n <= 25
    rows = list(csv.DictReader((out / "frontier.csv").open()))
    sizes = [int(row["edges"]) for row in rows]
    assert sizes == sorted(set(sizes))
    (own,) = [row for row in rows if int(row["edges"]) == n]
    assert float(own["discovery_metric"]) == pytest.approx(file.metrics["discovery.circuit.kl"], abs=1e-6)
    graph = inp.model.transformer.config.graph()
    scores = read_scores(out / SCORES, graph).edges
    nested = {graph.edge_name(s, r) for s, r in np.argwhere(scores >= 1 / n - 1e-9)}
    assert nested == {e.name for e in file.edges if e.name not in graph.direct_index}


@pytest.mark.parametrize("many", [256, 0], ids=["exact", "acdc first"])
def test_several_targets_give_each_the_bytes_of_one_alone(acdc, tmp_path, monkeypatch, many):
    monkeypatch.setattr(discover, "MANY", many)
    command = ("run", "--task", "tracr-reverse", "--model", "tracr-reverse", "--device", "cpu", "--faithfulness")
    assert acdc(*command, "0.9,0.5", "--out", "both").code == 0
    for target in ("0.9", "0.5"):
        assert acdc(*command, target, "--out", f"alone-{target}").code == 0
        assert contents(tmp_path / "both" / f"faithfulness-{target}") == contents(tmp_path / f"alone-{target}")


def test_acdc_that_leaves_too_few_edges_is_not_tried_for_ever(tmp_path, monkeypatch):
    tries = []

    def nothing(inp, *_):
        tries.append(1)
        return Circuit.empty(inp.model.transformer.config.graph()), 1

    monkeypatch.setattr(discover, "MANY", 0)
    monkeypatch.setattr(discover, "_acdc", nothing)
    file, _ = runner.run(loaded(edges=10), tmp_path / "run")
    assert 0 < file.graph.edges.kept <= 10 and 0 < len(tries) <= 5


# ---------------------------------------------------------------- killed


CASES = {
    "faithfulness": ({"faithfulness": 0.9}, 256),
    "faithfulness, acdc first": ({"faithfulness": 0.9}, 0),
    "edges": ({"edges": 7}, 256),
    "edges behind a filter": ({"edges": 5, "prefilter": "edge-patching:0.4"}, 256),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(tmp_path, monkeypatch, case):
    given, many = CASES[case]
    monkeypatch.setattr(discover, "MANY", many)
    inp = loaded(**given)
    steps, files = ended(inp, tmp_path / "whole")
    last = {step: number for number, step in enumerate(steps, 1)}
    some = {last[f"half {name}"] for name in (SUPERSET, LOG)}
    for number in sorted(some.union(random.Random(case).sample(range(2, len(steps)), 2))):
        assert killed(inp, tmp_path / str(number), number) == files, steps[number - 1]


@pytest.mark.slow
@pytest.mark.parametrize("many", [256, 0])
def test_a_log_cut_at_any_byte_goes_on_to_the_same_bytes(tmp_path, monkeypatch, many):
    monkeypatch.setattr(discover, "MANY", many)
    inp = loaded(**TINY, faithfulness=0.9)
    runner.run(inp, tmp_path)
    files = contents(tmp_path)
    rng = random.Random(many)
    for at in rng.sample(range(len(files[LOG])), 6):
        for name in ("circuit.json", "report.html", SCORES):
            (tmp_path / name).unlink()
        (tmp_path / LOG).write_bytes(files[LOG][:at])
        runner.run(inp, tmp_path)
        assert contents(tmp_path) == files


def test_a_log_of_another_search_is_refused(tmp_path):
    inp = loaded(faithfulness=0.9)
    runner.run(inp, tmp_path)
    (tmp_path / "circuit.json").unlink()
    log = (tmp_path / LOG).read_text().splitlines(keepends=True)
    tests = sum('"batch": 1,' in line for line in log)
    for broken in (log[::-1], log[1:], log[:1] + log[2:], log[: tests - 1] + log[tests:]):
        (tmp_path / LOG).write_text("".join(broken))
        with pytest.raises(FileError, match=r"log.jsonl.*use --force"):
            runner.run(inp, tmp_path)


@pytest.mark.parametrize("data", [b"", b"x" * 100], ids=["empty", "text"])
def test_a_superset_that_is_no_file_of_edges_is_refused(tmp_path, data):
    inp = loaded(faithfulness=0.9)
    runner.run(inp, tmp_path)
    (tmp_path / "circuit.json").unlink()
    (tmp_path / SUPERSET).write_bytes(data)
    with pytest.raises(FileError, match=r"superset.safetensors: not a file of edges; remove the folder or use --force"):
        runner.run(inp, tmp_path)
    _, out = runner.run(inp, tmp_path, force=True)
    assert read_circuit(out / "circuit.json")


# ---------------------------------------------------------------- mistakes


def test_a_target_in_a_file_is_checked(acdc, tmp_path):
    for value, says in (("2", "less than or equal to 1"), (".nan", "nan"), ("0", "greater than 0")):
        (tmp_path / "run.yaml").write_text(f"{{task: ioi, model: tiny, faithfulness: {value}}}")
        result = acdc("run", "--config", "run.yaml", "--out", "folder")
        assert result.code == 2 and result.err.count("\n") == 1 and not result.out
        assert result.err.startswith("acdc: run.yaml: faithfulness: ") and says in result.err
        assert not (tmp_path / "folder").exists()


def refused(result):
    """The message that a search ends with; notes come before it."""
    assert result.code == 2 and not result.out
    *notes, message = result.err.splitlines()
    assert {note.split(":")[0] for note in notes} <= {"memory", "warning"}
    return message


def test_a_filter_that_leaves_too_little_is_refused(acdc, tmp_path):
    command = ("run", "--task", "ioi", "--model", "tiny", "--examples", 4, "--device", "cpu", "--out", "run")
    result = acdc(*command, "--faithfulness", 0.9, "--prefilter", "eap-ig:0.02")
    message = refused(result)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.yaml", ".lock", SCORES}
    assert message.startswith("acdc: --faithfulness 0.9: the edges that --prefilter eap-ig:0.02 leaves are ")
    assert message.endswith(" faithful on the discovery half; leave more")


@pytest.mark.parametrize("target", [("--faithfulness", 0.9), ("--edges", 4)])
def test_a_task_that_the_model_does_as_well_without_any_edge_is_refused(acdc, tmp_path, target):
    """The model says the first token last, and the answers are the other way round."""
    answers = TASK.replace("correct", "right").replace("wrong", "correct").replace("right", "wrong")
    (tmp_path / "reverse.yaml").write_text(answers)
    result = acdc("run", "--task", "reverse.yaml", "--device", "cpu", *target, "--out", "run")
    message = refused(result)
    assert not (tmp_path / "run").exists()
    flag = " ".join(map(str, target[:1] if target[0] == "--edges" else target))
    assert message.startswith(f"acdc: {flag}: tracr-reverse does reverse as well with everything ablated (logit-diff ")
