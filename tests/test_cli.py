"""The command line as a user sees it: streams, exit codes, and one clear line for every mistake."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import networkx as nx
import pytest
import yaml
from typer.main import get_command

from acdc import cli
from acdc.commands.check import read_checks
from acdc.commands.compare_plan import make_plan
from acdc.commands.options import PLAN
from acdc.errors import UserError
from acdc.files.circuit import read_circuit
from acdc.model.find import bundled_models
from acdc.setup import config
from acdc.setup.config import Config, resolve
from acdc.sweep.file import read_sweep
from acdc.sweep.grid import runs_of
from acdc.task.load import task_names
from tests.support import ROOT
from tests.support.checkpoints import checkpoint
from tests.support.tasks import TASK

GATE = ["run", "--task", "or-gate"]
GOLDEN = ROOT / "configs/golden/ioi.json"


BAD_OPTIONS = {
    "a flat metric": (
        ["--method", "eap", "--edges", "5"],
        "use --metric logit-diff (or prob-diff, nll) with --edges N",
    ),
    "a flat metric of the filter": (["--prefilter", "hisp:0.1"], "hisp can't rank edges by it"),
    "an option of another method": (["--steps", "5"], "--steps: does not apply to acdc, which has"),
    "no number of edges": (["--method", "hisp", "--metric", "logit-diff"], "--edges N"),
    "both bounds": (["--method", "eap-ig", "--edges", "3", "--threshold", "0.1"], "one of the two"),
    "more edges than there are": (["--method", "eap-ig", "--edges", "4000"], "4000 of 479"),
    "growth without a size": (["--method", "eap-ig", "--greedy"], "--edges N"),
    "unknown method": (["--method", "eep"], "Did you mean 'eap'"),
    "an ablation without pairs": (["--method", "eap-ig", "--ablation", "zero"], "--ablation zero"),
    "a filter without a share": (["--prefilter", "eap"], "eap-ig:0.05"),
    "a filter by acdc": (["--prefilter", "acdc:0.1"], "unknown method"),
    "a share above 1": (["--prefilter", "eap-ig:2"], "up to 1"),
    "a sparsity of 1": (["--method", "edge-pruning", "--sparsity", "1"], "less than 1"),
    "no faithfulness": (["--faithfulness", "0"], "--faithfulness: is 0; it must be above 0 and up to 1"),
    "more than all of it": (["--faithfulness", "0.9,1.2"], "--faithfulness: is 1.2; it must be above 0 and up to 1"),
    "a faithfulness that is no number": (["--faithfulness", "nan"], "--faithfulness: is nan; it must be above 0"),
    "a target of another method": (
        ["--method", "eap-ig", "--faithfulness", "0.9"],
        "--faithfulness: does not apply to eap-ig",
    ),
    "a target and a threshold": (["--faithfulness", "0.9", "--threshold", "1"], "one of the two"),
    "two targets": (["--faithfulness", "0.9", "--edges", "9"], "one of the two"),
    "a target of too many edges": (["--edges", "4000"], "--edges: 4000 of 479 residual edges"),
    "an order with a target": (["--edges", "9", "--order", "random"], "--order: is for deciding by a threshold"),
    "magnitudes with a target": (["--faithfulness", "0.9", "--abs"], "--abs: is for deciding by a threshold"),
    "a batch with a target": (["--faithfulness", "0.9", "--batch", "8"], "--batch: is for deciding by a threshold"),
    "no updates": (["--method", "diffmask", "--updates", "0"], "greater than or equal to 1"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_that_a_method_can_not_have_are_one_line_before_anything_runs(acdc, tmp_path, name):
    options, says = BAD_OPTIONS[name]
    result = acdc("run", "--task", "ioi", "--model", "tiny", "--out", "folder", *options)
    assert result.code == 2 and says in result.err and result.err.count("\n") == 1
    assert not result.out and not (tmp_path / "folder").exists()


def change(text, old, new):
    assert old in text
    return text.replace(old, new)


BAD_TASKS = {
    "malformed YAML": (change(TASK, "version: 1", "version: [1"), "line"),
    "unknown key": (change(TASK, "source:", "sauce:"), "sauce"),
    "wrong type": (change(TASK, "version: 1", "version: one"), "version"),
    "unknown metric": (change(TASK, "metric: kl", "metric: lk"), "lk"),
    "NaN threshold": (change(TASK, "0.01", ".nan"), "threshold"),
    "identical prompts": (change(TASK, '"b b a", correct: " b"', '"a b a", correct: " b"'), "example"),
    "unequal lengths": (change(TASK, '"b b a", correct: " b"', '"b b a b", correct: " b"'), "example"),
    "answer of two tokens": (change(TASK, 'correct: " b"', 'correct: " b b"'), "example"),
    "empty data": (TASK[: TASK.index("  rows:")].replace(", logit-diff", "") + "  rows: []\n", "0 distinct prompts"),
    "too few prompts": (change(TASK, "examples: 2", "examples: 3"), "4"),
    "slot without a list": (
        TASK[: TASK.index("  rows:")] + '  template: "a {x} b"\n  slots: {y: [a, b]}\n'
        'corrupt: {redraw: [y]}\nanswers: {correct: " a", wrong: " b"}\n',
        "x",
    ),
}


@pytest.mark.parametrize("kind", BAD_TASKS)
def test_a_bad_task_is_one_clear_line_and_nothing_written(acdc, tmp_path, kind):
    text, named = BAD_TASKS[kind]
    checkpoint(tmp_path / "model")
    (tmp_path / "mine.yaml").write_text(text)
    result = acdc("run", "--task", "mine.yaml", "--model", "model")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert "mine" in result.err
    assert named in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"vocab_size": 1}, "token id 1 ('b')"), ({"n_positions": 2}, "has 2 positions, but the prompts have 3 tokens")],
)
def test_a_model_that_does_not_fit_the_prompts(acdc, tmp_path, options, message):
    checkpoint(tmp_path / "model", **options)
    (tmp_path / "mine.yaml").write_text(TASK)
    result = acdc("run", "--task", "mine.yaml", "--model", "model")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert not (tmp_path / "runs").exists()


def test_the_good_task_runs(acdc, tmp_path):
    checkpoint(tmp_path / "model")
    (tmp_path / "mine.yaml").write_text(TASK)
    result = acdc("run", "--task", "mine.yaml", "--model", "model")
    assert result.code == 0, result.err
    assert "mine in model" in result.out


BAD_COMMANDS = {
    "unknown command": (["rnu"], "run"),
    "unknown option": (["run", "--taks", "ioi"], "--task"),
    "no task": (["run"], "acdc tasks"),
    "unknown task": (["run", "--task", "greater-thn"], "Did you mean 'greater-than'"),
    "unknown model": ([*GATE, "--model", "tyny"], "Did you mean 'tiny'"),
    "unreachable hub": ([*GATE, "--model", "someone/some-model"], "the hub doesn't give it"),
    "no such directory": ([*GATE, "--model", "./some"], "no such directory"),
    "unknown metric": ([*GATE, "--metric", "l3"], "Did you mean 'l2'"),
    "metric without answers": ([*GATE, "--metric", "prob-diff", "--threshold", "1"], "has no answers for prob-diff"),
    "metric without threshold": (["run", "--task", "ioi", "--metric", "logit-diff", "--model", "tiny"], "--threshold"),
    "unknown method": ([*GATE, "--method", "adcd"], "Did you mean 'acdc'"),
    "unknown ablation": ([*GATE, "--ablation", "zeros"], "Did you mean 'zero'"),
    "unknown order": ([*GATE, "--order", "papers"], "Did you mean 'paper'"),
    "unknown dtype": ([*GATE, "--dtype", "float16"], "float32"),
    "unknown device": ([*GATE, "--device", "gpu"], "cpu"),
    "NaN threshold": ([*GATE, "--threshold", "nan"], "--threshold"),
    "negative threshold": ([*GATE, "--threshold=-1"], "--threshold"),
    "thresholds twice": ([*GATE, "--threshold", "0.1,0.10"], "twice"),
    "threshold is no number": ([*GATE, "--threshold", "small"], "--threshold"),
    "negative seed": (
        ["run", "--task", "ioi", "--model", "tiny", "--seed", "-1"],
        "--seed: should be greater than or",
    ),
    "too large a seed": (
        ["run", "--task", "ioi", "--model", "tiny", "--seed", "9" * 30],
        "--seed: should be less",
    ),
    "negative seed of another command": (
        ["stability", "--task", "ioi", "--seed", "-3"],
        "--seed: should be greater than or",
    ),
    "a name that no file can have": (["evaluate", "x" * 300], "File name too long"),
    "a task of such a name": (["run", "--task", "y" * 300 + ".yaml", "--model", "tiny"], "File name too long"),
    "an empty threshold": ([*GATE, "--threshold", ""], "--threshold: is empty"),
    "an empty model": ([*GATE, "--model", ""], "--model: is empty"),
    "an empty model, at once": ([*GATE, "--model="], "--model: is empty"),
    "an empty revision": ([*GATE, "--revision", " "], "--revision: is empty"),
    "an empty device": ([*GATE, "--device", ""], "--device: is empty"),
    "no memory": ([*GATE, "--memory", "0GB"], "'0GB': should be 1 MB or more"),
    "endless memory": ([*GATE, "--memory", "9" * 400 + "GB"], "should be 1 MB or more, and less than"),
    "a device that this machine has not": ([*GATE, "--device", "mps"], "--device mps: not on this machine"),
    "too many examples": (["run", "--task", "ioi", "--model", "tiny", "--examples", "1000000"], "equal to 100000"),
    "too many steps": ([*GATE, "--method", "eap-ig", "--steps", "1" + "0" * 30], "--steps: should"),
    "too many updates": ([*GATE, "--method", "diffmask", "--updates", "1" + "0" * 30], "--updates: should be less"),
    "too large a batch": ([*GATE, "--batch", "1" + "0" * 30], "--batch: should be less"),
    "a NaN tolerance": (["diff", GOLDEN, GOLDEN, "--tolerance", "nan"], "--tolerance: is nan"),
    "a negative tolerance": (["diff", GOLDEN, GOLDEN, "--tolerance", "-1"], "--tolerance: is -1"),
    "a negative filter of lines": ([*GATE, "--prefilter", "eap:0.1\n"], "--prefilter: has the character"),
    "a title in the model's name": ([*GATE, "--model", "./a\x1b]0;b\x07"], "--model: has the character"),
    "a number that YAML reads as a text": (
        ["run", "--config", "text.yaml"],
        "text.yaml: threshold: should be a valid number, not the text '1e-2': write 0.01",
    ),
    "a task of a config, seen from elsewhere": (["run", "--config", "far.yaml"], "in the current folder, /"),
    "no examples": (["run", "--task", "ioi", "--model", "tiny", "--examples", "0"], "--examples"),
    "words it does not know": (["run", "--task", "ioi", "--model", "or-gate"], "or-gate"),
    "out path is a file": ([*GATE, "--out", "file/run"], "can't be written"),
    "missing config": (["run", "--config", "c.yaml"], "c.yaml"),
    "unknown key in config": (["run", "--config", "bad.yaml"], "Did you mean 'threshold'"),
    "wrong type in config": (["run", "--config", "type.yaml"], "examples"),
    "unknown format": (["export", "c.json", "--to", "gif"], "svg"),
    "missing circuit": (["export", "c.json", "--to", "svg"], "c.json"),
    "missing circuit to compare": (["diff", "c.json", "c.json"], "c.json"),
    "details of an unknown task": (["tasks", "ioy"], "Did you mean 'ioi'"),
    "details of an unknown method": (["methods", "adcd"], "Did you mean 'acdc'"),
    "details of an unknown model": (["models", "tyny"], "Did you mean 'tiny'"),
}


@pytest.mark.parametrize("kind", BAD_COMMANDS)
def test_a_mistake_is_one_clear_line_and_nothing_written(acdc, tmp_path, kind):
    command, hint = BAD_COMMANDS[kind]
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.yaml").write_text("task: or-gate\ntreshold: 1\n")
    (tmp_path / "type.yaml").write_text("task: or-gate\nexamples: many\n")
    (tmp_path / "text.yaml").write_text("task: or-gate\nmodel: or-gate\nthreshold: 1e-2\n")
    (tmp_path / "far.yaml").write_text("task: tasks/mine.yaml\nmodel: or-gate\n")
    result = acdc(*command)
    assert (result.code, result.out) == (2, "")
    *before, mistake = result.err.splitlines()  # what can be said before it is looked at where the result goes
    assert hint in mistake and all(line.startswith("memory: ") for line in before), result.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.yaml", "far.yaml", "file", "text.yaml", "type.yaml"]


def test_stdout_is_the_result_and_json_is_the_file(acdc, tmp_path):
    result = acdc(*GATE, "--out", "run")
    assert result.code == 0
    assert "3 of 13 residual edges" in result.out
    assert "4 of 19 with direct edges" in result.out
    assert re.fullmatch(r"memory: about 0\.\d GB\n", result.err)
    again = acdc(*GATE, "--out", "run", "--json")
    assert again.out == (tmp_path / "run" / "circuit.json").read_text()
    assert json.loads(again.out)["command"].startswith("acdc run --task or-gate --model or-gate")


def test_the_default_model_falls_back_and_says_so_first_and_last(acdc):
    result = acdc("run", "--task", "gendered-pronoun", "--examples", "5", "--out", "run", "--json")
    assert result.code == 0
    note, *_, last = result.err.splitlines()
    assert note == last
    assert "bundled model tiny" in note
    file = json.loads(result.out)
    assert file["model"]["name"] == "tiny"
    assert file["notes"] == [note]


def test_command_line_over_config_over_task(acdc, tmp_path):
    (tmp_path / "c.yaml").write_text("task: or-gate\nthreshold: 0.3\nablation: zero\ndtype: float64\n")
    result = acdc("run", "--config", "c.yaml", "--threshold", "0.2", "--out", "run")
    assert result.code == 0
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (saved["threshold"], saved["dtype"], saved["metric"], saved["order"]) == (0.2, "float64", "l2", "paper")


def test_null_in_a_config_is_the_default_where_that_is_null(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("task: ioi\nmodel: tiny\n")
    plain = resolve({}, path, None)[0]
    free = [key for key, field in Config.model_fields.items() if field.default is None]
    assert {"threshold", "edges", "part", "model_hash"} <= set(free)
    for keys in [[key] for key in free] + [free]:
        path.write_text("task: ioi\nmodel: tiny\n" + "".join(f"{key}: null\n" for key in keys))
        assert resolve({}, path, None)[0] == plain, keys
    for key in Config.model_fields.keys() - set(free):
        path.write_text("\n".join({"task": "task: ioi", "model": "model: tiny", key: f"{key}: null"}.values()))
        with pytest.raises(UserError, match=key):
            resolve({}, path, None)


def test_export_in_every_format(acdc, tmp_path):
    acdc(*GATE, "--out", "run")
    for to, starts in {"svg": b"<?xml", "png": b"\x89PNG", "html": b"<!doctype html", "dot": b""}.items():
        result = acdc("export", "run/circuit.json", "--to", to, "-o", f"c.{to}")
        assert (result.code, result.out, result.err) == (0, f"c.{to}\n", "")
        assert (tmp_path / f"c.{to}").read_bytes()[:15].lower().startswith(starts.lower())
    acdc("export", "run/circuit.json", "--to", "graphml", "-o", "c.graphml")
    assert nx.read_graphml(tmp_path / "c.graphml").number_of_edges() == 3
    acdc("export", "run/circuit.json", "--to", "eap-ig", "-o", "c.json")
    raw = json.loads((tmp_path / "c.json").read_text())
    assert list(raw) == ["cfg", "nodes", "edges"]
    assert len(raw["edges"]) == 13
    assert acdc("export", "run/circuit.json", "--to", "dot", "-o", "-").out.startswith("digraph")


def test_a_nested_circuit_of_the_path_is_exported_without_a_new_run(acdc, tmp_path):
    greater_than = ("run", "--task", "greater-than", "--model", "tiny", "--examples", "20")
    assert acdc(*greater_than, "--faithfulness", "0.8", "--out", "r").code == 0
    rows = list(csv.DictReader((tmp_path / "r/frontier.csv").open()))
    found = read_circuit(tmp_path / "r/circuit.json")
    assert str(found.graph.edges.kept) in [row["edges"] for row in rows]
    row = rows[len(rows) // 2]
    assert acdc("export", "r/circuit.json", "--to", "circuit", "--edges", row["edges"]).out == (
        f"r/circuit-{row['edges']}.circuit.json\n"
    )
    smaller = read_circuit(tmp_path / f"r/circuit-{row['edges']}.circuit.json")
    assert smaller.graph.edges.kept == int(row["edges"]) and not smaller.metrics
    result = acdc("evaluate", f"r/circuit-{row['edges']}.circuit.json", "--json")
    assert json.loads(result.out)["measured"]["faithfulness"][0] == pytest.approx(float(row["held_out_faithfulness"]))
    beyond = acdc("export", "r/circuit.json", "--to", "svg", "--edges", "400")
    assert (beyond.code, beyond.err.count("\n")) == (2, 1) and "edges have a score above 0" in beyond.err
    acdc(*GATE, "--out", "gate")
    without = acdc("export", "gate/circuit.json", "--to", "svg", "--edges", "2")
    assert (without.code, without.err.count("\n")) == (2, 1) and "scores.safetensors is missing" in without.err


def test_several_thresholds_make_a_run_each(acdc, tmp_path):
    command = ["run", "--task", "gendered-pronoun", "--model", "tiny", "--examples", "10"]
    result = acdc(*command, "--threshold", "0.3,0.03", "--out", "both")
    assert result.code == 0, result.err
    _, head, *rows = result.out.splitlines()
    assert head.split()[0] == "τ" and "faithfulness" in head and len(rows) == 2
    for value, row in zip(("0.3", "0.03"), rows, strict=True):
        metrics = json.loads((tmp_path / f"both/threshold-{value}/metrics.json").read_text())
        value_, low, high = (f"{x:.4f}" for x in metrics["faithfulness"]["held_out"])
        assert f" {metrics['metrics']['held_out.circuit.kl']:.4f} " in row and f"{value_} [{low}, {high}]" in row
        acdc(*command, "--threshold", value, "--out", "alone")
        alone, one = (tmp_path / f / "circuit.json" for f in ("alone", f"both/threshold-{value}"))
        assert alone.read_bytes() == one.read_bytes()
        shutil.rmtree(tmp_path / "alone")
    assert len(json.loads(acdc(*command, "--threshold", "0.3,0.03", "--out", "both", "--json").out)) == 2


def test_the_directory_of_a_run_stands_for_its_circuit(acdc, tmp_path):
    runs = {"a": (), "b": ("--order", "heads-ascending")}
    for out, options in runs.items():
        assert acdc(*GATE, "--out", f"runs/{out}", *options).code == 0
    checks = (
        "checks: [{name: same, circuit: runs/a, against: runs/a}, {name: other, circuit: runs/b, against: or-gate}]"
    )
    (tmp_path / "list.yaml").write_text(checks)
    a, b = "runs/a", "runs/b"
    commands = (
        ["evaluate", a],
        ["check", a, "--against", a],
        ["check", a, "--against", "or-gate"],
        ["export", a, "--to", "dot", "--out", "-"],
        ["diff", a, b],
    )
    for command in commands:
        whole = [f"{word}/circuit.json" if word in (a, b) else word for word in command]
        short, long = acdc(*command), acdc(*whole)
        assert short.code == 0 and (short.out, short.err) == (long.out, long.err), short.err
    assert acdc("check", "list.yaml").out.splitlines()[-1] == "2 passed, 0 failed"
    plan, _ = make_plan({"model": "tiny"}, WANTED | {"reference": a}, None)
    assert plan.references == {"ioi": Path(a, "circuit.json")}
    none = acdc("evaluate", "runs")
    assert none.code == 2 and none.err == "acdc: runs: has no circuit.json; name one of its runs, as runs/a\n"
    unfinished = acdc("diff", ".", a)
    assert unfinished.code == 2 and "name one of its runs, as runs/a" in unfinished.err


WANTED = dict.fromkeys(PLAN) | {"tasks": "ioi", "greedy": False}


def test_compare_says_when_a_method_takes_another_metric():
    _, notes = make_plan({"model": "tiny"}, WANTED, None)
    assert notes == ["note: ioi: where kl won't do, logit-diff ranks edges: eap, relp, hisp"]
    _, notes = make_plan({"model": "tiny", "metric": "logit-diff", "threshold": 0.1}, WANTED, None)
    assert notes == ["note: ioi: where logit-diff won't do, kl ranks edges: diffmask"]


def test_a_copied_task_needs_no_name(acdc, tmp_path):
    (tmp_path / "copy.yaml").write_text((ROOT / "tasks/ioi.yaml").read_text())
    (tmp_path / "other.yaml").write_text("{include: copy.yaml, defaults: {examples: 5}}")
    assert acdc("tasks", "copy.yaml").out.startswith("name         copy (version 1)\n")
    (tmp_path / "copy.yaml").write_text("name: copy\n" + (ROOT / "tasks/ioi.yaml").read_text())
    assert acdc("tasks", "other.yaml").out.startswith("name         other (version 1)\n")
    wrong = acdc("tasks", "copy.yaml")
    assert wrong.code == 0
    (tmp_path / "copy.yaml").write_text("name: ioi\n" + (ROOT / "tasks/ioi.yaml").read_text())
    wrong = acdc("tasks", "copy.yaml")
    assert wrong.code == 2 and "it may be left out" in wrong.err and wrong.err.count("\n") == 1


def test_diff_lists_what_changed(acdc, tmp_path):
    acdc(*GATE, "--out", "a")
    acdc(*GATE, "--out", "b", "--order", "heads-ascending")
    result = acdc("diff", "a/circuit.json", "b/circuit.json")
    assert result.code == 0
    lines = result.out.splitlines()
    assert "+ a0.h1->m0" in lines
    assert "- a0.h0->m0" in lines
    a, b = (json.loads((tmp_path / name / "circuit.json").read_text()) for name in "ab")
    names = [{edge["name"] for edge in circuit["edges"]} for circuit in (a, b)]
    both = len(names[0] & names[1])
    share = both / len(names[0] | names[1])
    assert lines[0].startswith(f"{both} edges in both (with direct edges), Jaccard index {share:.2f}; ")
    distances = [f"{circuit['metrics']['discovery.circuit.l2']:.4f}" for circuit in (a, b)]
    assert next(line for line in lines if line.startswith("discovery l2 ↓")).split()[-2:] == distances
    same = acdc("diff", "a/circuit.json", "a/circuit.json").out.splitlines()[0]
    assert same.endswith("Jaccard index 1.00; 0 added, 0 removed, 0 re-scored")


COMMANDS = get_command(cli.app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_and_an_example_that_can_be_called(acdc, name):
    first, *_, example = COMMANDS[name].help.strip().split("\n\n")
    assert first.endswith(".") and len(first) <= 60  # more is cut off in the list of `acdc --help`
    shown = acdc(name, "--help")
    assert (shown.code, shown.err) == (0, "") and first in shown.out and example in shown.out
    start, program, called, *arguments = shlex.split(example)
    assert (start, program, called) == ("Example:", "acdc", name)
    given = COMMANDS[name].make_context(name, arguments).params
    for value, known in (
        (given.get("task"), task_names()),
        (given.get("tasks"), task_names()),
        (given.get("model"), bundled_models()),
    ):
        assert set(value.split(",") if value else ()) <= set(known)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_has_a_help_text(name):
    for parameter in COMMANDS[name].params:
        assert parameter.help, parameter.name


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_and_version_do_not_load_torch_and_are_quick(words):
    program = (
        f"import sys; sys.argv = ['acdc', *{words}]\nfrom acdc import cli\n"
        "try: cli.main()\nfinally: print(*sys.modules)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 5  # generous: the machine may be busy
    loaded = done.stdout.split("\n")[-2].split()
    assert "acdc.cli" in loaded
    heavy = {"torch", "transformers", "numpy", "networkx", "matplotlib"}
    if words == ["--help"]:  # typer itself loads pydantic for an option's value
        heavy.add("pydantic")
    assert not heavy & set(loaded)


def test_every_shipped_config_resolves():
    folder = ROOT / "configs"
    files = sorted(folder.glob("**/*.yaml"))
    assert files
    for file in files:
        if "checks:" in file.read_text(encoding="utf-8"):
            assert len(read_checks(file)) > 0
        elif file.name.startswith("sweep-"):
            assert len(runs_of(read_sweep(file), None)) > 1
        else:
            stated = yaml.safe_load(file.read_text(encoding="utf-8"))
            resolved = config.resolve({}, file, None)[0].model_dump()
            assert stated and {key: resolved[key] for key in stated} == stated


def test_a_lack_of_memory_is_one_line(acdc, monkeypatch):
    """A circuit of Llama 3.1's largest model has 800 million pairs of a sender and a receiver."""

    def circuit(_):
        raise MemoryError("Unable to allocate 5.9 GiB for an array with shape (16255, 48509)")

    monkeypatch.setattr("acdc.files.circuit.CircuitFile.circuit", circuit)
    result = acdc("export", GOLDEN, "--to", "dot", "-o", "c.dot")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("acdc: not enough memory: Unable to allocate 5.9 GiB") and result.err.count("\n") == 1


def test_an_interrupt_says_how_to_go_on(acdc, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("acdc.commands.run.find", interrupted)
    result = acdc(*GATE, "--out", "folder")
    assert result.code == 130 and "rerun the same command to resume" in result.err


def test_check_says_what_differs_and_its_exit_code_says_whether(acdc, tmp_path):
    acdc(*GATE, "--out", "a")
    same = acdc("check", "a/circuit.json", "--against", "a/circuit.json", "--junit", "report.xml")
    assert (same.code, same.err) == (0, "") and same.out.startswith("passed")
    assert (tmp_path / "report.xml").read_text().startswith("<?xml")
    missed = acdc("check", "a/circuit.json", "--against", "or-gate", "--recall", "1")
    assert missed.code == 1 and "recall" in missed.out
    for command, says in (
        (["check", "a/circuit.json"], "missing --against"),
        (["check", "a/circuit.json", "--against", "or-gatee"], "Did you mean 'or-gate'"),
        (["check", "a/circuit.json", "--against", "or-gate", "--recall", "2"], "recall"),
        (["check", "list.yaml", "--edits", "1"], "is a list"),
        (["check", "list.yaml"], "can't be read"),
        (["check", "b.json", "--against", "or-gate"], "can't be read"),
    ):
        result = acdc(*command)
        assert result.code == 2 and says in result.err and result.err.count("\n") == 1


def test_how_well_a_model_does_a_task(acdc):
    result = acdc("tasks", "ioi", "--model", "tiny")
    assert result.code == 0
    assert "tiny on 100 prompts, seed 0: accuracy 100.0% (96.3% to 100.0%), by chance 50.0%" in result.out
    clean, corrupted = (float(x) for x in re.search(r"logit-diff ↑ +(\S+) +(\S+)", result.out).groups())
    assert clean > 5
    assert abs(corrupted) < 1
    assert "warning" not in result.out + result.err
    assert "name a task" in acdc("tasks", "--model", "tiny").err


def test_a_model_that_cannot_do_the_task_is_warned_of_once(acdc, tmp_path):
    """The answers are exchanged: tiny gives the other name."""
    task = "name: wrong\nversion: 1\nsource: test\ndescription: test\nmetrics: [kl, logit-diff]\n"
    task += "defaults: {metric: kl, threshold: 1, examples: 3}\ndata:\n  rows:\n"
    for a, b in ("Mary", "John"), ("John", "Mary"), ("Tom", "Mary"), ("Mary", "Tom"), ("Tom", "John"), ("John", "Tom"):
        text = "Then, {} and {} went to the store. {} gave a drink to"
        task += f"    - {{clean: '{text.format(a, b, a)}', corrupted: '{text.format(a, b, b)}', "
        task += f"correct: ' {a}', wrong: ' {b}'}}\n"
    (tmp_path / "wrong.yaml").write_text(task)
    task = ("--tasks", "wrong.yaml", "--model", "tiny")
    several = acdc("run", "--task", *task[1:], "--threshold", "1,0.5", "--out", "out")
    assert several.code == 0, several.err
    again = acdc("run", "--task", *task[1:], "--threshold", "0.5", "--out", "out/threshold-0.5")
    compared = acdc(
        "compare", *task, "--methods", "eap-ig", "--sizes", "5", "--reference", "out/threshold-0.5", "--no-plots"
    )
    reruns = ("--seeds", "1", "--resamples", "0", "--orders", "0")
    found = acdc("stability", "--task", *task[1:], "--threshold", "0.5", *reruns)
    for result in (several, again, compared, found):
        lines = [line for line in (result.out + result.err).splitlines() if "can't do wrong: accuracy" in line]
        assert len(lines) == 1 and lines[0] in result.err
    notes = json.loads((tmp_path / "out/threshold-0.5/circuit.json").read_text())["notes"]
    assert lines[0] in notes
