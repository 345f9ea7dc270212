"""The result table: metrics as people read them, faithfulness by each of them, and counts that add up."""

from __future__ import annotations

import json
import re

import pytest

from acdc.report.text import heading, readable_estimate, when_removed

GREATER_THAN = ("run", "--task", "greater-than", "--model", "tiny", "--examples", "20", "--out", "run")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Text, circuit.json and metrics.json of a run."""
    from acdc.commands.run import run
    from acdc.report.run import to_text
    from tests.support.runs import inputs

    folder = tmp_path_factory.mktemp("ran") / "run"
    given = {"task": "greater-than", "model": "tiny", "ablation": "corrupted", "dtype": "float32", "batch": None}
    file, _ = run(inputs(**given, examples=20), folder)
    return to_text(file, folder), file, json.loads((folder / "metrics.json").read_text())


def rows(text):
    """Label → full model, circuit, ablated, and faithfulness where there is one."""
    lines = [re.match(r"((?:held out|discovery) \S+ [↓↑]) +(.*)", line) for line in text.splitlines()]
    return {m[1]: [float(x) for x in re.findall(r"-?\d+\.\d+", m[2])] for m in lines if m}


def test_differences_are_large_where_the_model_is_right(ran):
    text, file, _ = ran
    table = rows(text)
    assert file.metrics["held_out.model.accuracy"] == 1
    for metric in ("logit-diff", "prob-diff"):
        full, circuit, ablated = table[f"held out {metric} ↑"][:3]
        assert full > circuit > ablated and full > 0
        assert full == pytest.approx(-file.metrics[f"held_out.model.{metric}"], abs=1e-4)
    assert table["held out kl ↓"][0] == 0
    assert "-0.0000" not in text


def test_faithfulness_is_given_by_every_metric(ran):
    text, file, measured = ran
    for half in ("held_out", "discovery"):
        for metric in ("kl", "logit-diff", "prob-diff", "nll"):
            full, circuit, ablated = (
                file.metrics[f"{half}.{what}.{metric}"] for what in ("model", "circuit", "ablated")
            )
            expected = (ablated - circuit) / (ablated - full)
            assert measured["by_metric"][half][metric][0] == pytest.approx(expected)
            shown = rows(text)[f"{half.replace('_', ' ')} {heading(metric)}"]
            assert shown[3:] == pytest.approx(measured["by_metric"][half][metric], abs=1e-4)
        assert measured["by_metric"][half]["kl"] == measured["faithfulness"][half]
    first = next(line for line in rows(text) if line.startswith("held out"))
    assert first == "held out kl ↓"


def test_a_measure_of_an_older_version_has_the_faithfulness_by_its_own_metric(ran, tmp_path):
    from acdc.files.metrics import read_metrics

    _, _, measured = ran
    del measured["by_metric"]
    (tmp_path / "metrics.json").write_text(json.dumps(measured))
    read = read_metrics(tmp_path / "metrics.json")
    assert read.by_metrics("kl") == {half: {"kl": tuple(x)} for half, x in measured["faithfulness"].items()}


def test_an_evaluation_has_the_faithfulness_by_every_metric(acdc):
    acdc(*GREATER_THAN)
    result = acdc("evaluate", "run/circuit.json", "--json", "--minimality", "0")
    found = json.loads(result.out)
    with open("run/metrics.json") as file:
        measured = json.load(file)["by_metric"]["held_out"]
    assert found["by_metric"] == {metric: pytest.approx(values, abs=1e-6) for metric, values in measured.items()}
    by_logits = json.loads(
        acdc("evaluate", "run/circuit.json", "--json", "--minimality", "0", "--metric", "logit-diff").out
    )
    assert by_logits["measured"]["faithfulness"] == pytest.approx(measured["logit-diff"], abs=1e-6)
    text = acdc("evaluate", "run/circuit.json", "--minimality", "0", "--metric", "logit-diff").out
    full = float(re.search(r"logit-diff ↑ +(\S+)", text)[1])
    assert full == pytest.approx(-by_logits["measured"]["full"][0], abs=1e-4) and full > 0


def test_a_circuit_without_edges_says_that_the_threshold_is_above_the_whole_effect(acdc):
    result = acdc(*GREATER_THAN, "--threshold", "3")
    with open("run/circuit.json") as file:
        metrics = json.load(file)["metrics"]
    effect = metrics["discovery.ablated.kl"] - metrics["discovery.model.kl"]
    assert result.code == 0
    assert f"worse by {effect:.4g} nats" in result.err
    assert "--threshold 3 is too large" in result.err and "smaller --threshold" in result.err
    assert "strongest edges" not in result.out


def test_counts_add_up(acdc):
    """Of the edges asked for, those of the file and those on no path; with a threshold, those that ACDC's log keeps."""
    text = acdc(*GREATER_THAN, "--method", "eap-ig", "--edges", "20").out
    with open("run/circuit.json") as file:
        graph = json.load(file)["graph"]
    kept = graph["edges"]["kept"]
    assert f"{kept} of 479 residual edges" in text and f", 20 asked for, {20 - kept} of them on no path; " in text
    text = acdc(*GREATER_THAN[:-1], "other").out
    with open("other/log.jsonl") as log:
        found = sum(json.loads(line)["kept"] for line in log)
    on_path, more = re.search(r"; (\d+) of 527 with direct edges, (\d+) more on no path; ", text).groups()
    assert int(on_path) + int(more) == found


def test_an_estimate_keeps_its_low_end_low():
    assert readable_estimate("logit-diff", (-2.0, -3.0, -1.0)) == (2.0, 1.0, 3.0)
    assert readable_estimate("kl", (2.0, 1.0, 3.0)) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("kl", "increase in KL divergence when removed"),
        ("logit-diff", "decrease in logit difference when removed"),
        ("prob-diff", "decrease in probability difference when removed"),
    ],
)
def test_the_effect_of_an_edge_is_named_as_the_metric_is_read(metric, title):
    assert when_removed(metric) == title
