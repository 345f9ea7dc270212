"""What commands write: never over what they read, over files of others, or through links; nothing is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from acdc.io.sizes import in_name

RUN = ["run", "--task", "or-gate", "--model", "or-gate", "--threshold", "0.1"]
SWEEP = "base: {task: or-gate, model: or-gate, threshold: 0.1}\ngrid: {seed: [0]}\n"
STABILITY = ["stability", *RUN[1:], "--seeds", "1", "--resamples", "0", "--orders", "0"]
COMPARE = ["compare", "--tasks", "or-gate", "--model", "or-gate", "--methods", "acdc", "--sizes", "1", "--no-plots"]
COMMANDS = {"run": RUN, "sweep": ["sweep", "s.yaml"], "stability": STABILITY, "compare": COMPARE}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, to be copied."""
    from acdc.commands.run import run
    from acdc.setup.config import resolve
    from acdc.setup.inputs import load

    out = tmp_path_factory.mktemp("finished") / "r"
    run(load(*resolve({"task": "or-gate", "model": "or-gate", "threshold": 0.1}, None, None)[:2]), out)
    return out


@pytest.fixture
def r(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "r"))


def refused(result, *words):
    assert result.code == 2, result.err
    (line,) = [line for line in result.err.splitlines() if not line.startswith("memory: ")]
    assert line.startswith("acdc: ")
    for word in words:
        assert word in result.err


OUTPUTS = {
    "evaluate": ("evaluate", "r/circuit.json", "-o"),
    "export": ("export", "r/circuit.json", "--to", "svg", "-o"),
    "check": ("check", "r/circuit.json", "--against", "r/circuit.json", "--junit"),
    "check of a list": ("check", "list.yaml", "--junit"),
}


@pytest.mark.parametrize("name", ["r/circuit.json", "./r/../r/circuit.json", "link", "hard"])
@pytest.mark.parametrize("command", OUTPUTS)
def test_what_is_read_is_not_written(acdc, r, tmp_path, command, name):
    (tmp_path / "list.yaml").write_text("checks: [{name: a, circuit: r/circuit.json, against: r/circuit.json}]")
    (tmp_path / "link").symlink_to(r / "circuit.json")
    (tmp_path / "hard").hardlink_to(r / "circuit.json")
    before = (r / "circuit.json").read_bytes()
    refused(acdc(*OUTPUTS[command], name), Path(name).name, "is read, too")
    assert (r / "circuit.json").read_bytes() == before


def test_models_and_the_files_of_a_page_are_not_written_either(acdc, r, tmp_path):
    from acdc.model.find import BUNDLED

    shutil.copytree(BUNDLED / "or-gate", tmp_path / "m")
    weights = (tmp_path / "m" / "model.safetensors").read_bytes()
    refused(acdc("evaluate", "r/circuit.json", "--model", "m", "-o", "m/model.safetensors"), "is read, too")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == weights
    metrics = (r / "metrics.json").read_bytes()
    refused(acdc("export", "r/circuit.json", "--to", "html", "-o", "r/metrics.json"), "is read, too")
    assert (r / "metrics.json").read_bytes() == metrics


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["results.csv", "report.html", "table.csv", "compare.json", "core.svg", "config.yaml"])
def test_a_folder_of_others_is_not_written(acdc, tmp_path, command, name):
    (tmp_path / "s.yaml").write_text(SWEEP)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    for more in ([], ["--force"]) if command == "run" else ([],):
        refused(acdc(*COMMANDS[command], "--out", "mine", *more), "mine", name)
    assert [(p.name, p.read_text()) for p in (tmp_path / "mine").iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_name_is_not_the_current_folder(acdc, tmp_path, command):
    (tmp_path / "s.yaml").write_text(SWEEP)
    refused(acdc(*COMMANDS[command], "--out", ""), "--out: is empty")
    assert {p.name for p in tmp_path.iterdir()} == {"s.yaml"}


def test_an_empty_folder_is_taken_and_a_copy_without_hidden_files_goes_on(acdc, r, tmp_path):
    (tmp_path / "empty").mkdir()
    assert acdc(*RUN, "--out", "empty").code == 0
    (r / ".lock").unlink()
    before = (r / "circuit.json").stat().st_mtime_ns
    assert acdc(*RUN, "--out", "r").code == 0
    assert (r / "circuit.json").stat().st_mtime_ns == before


def test_force_removes_no_config_that_is_read(acdc, r, tmp_path):
    before = (r / "config.yaml").read_bytes()
    refused(acdc("run", "--config", "r/config.yaml", "--threshold", "0.2", "--out", "r", "--force"), "--force")
    assert (r / "config.yaml").read_bytes() == before and (r / "circuit.json").exists()


def test_force_keeps_what_is_not_of_the_run(acdc, r):
    (r / "notes.txt").write_text("mine")
    assert acdc(*RUN, "--out", "r", "--force").code == 0
    assert (r / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["circuit.svg", "report.html", "metrics.json", "log.jsonl"])
def test_a_run_writes_through_no_link(acdc, r, tmp_path, name):
    """As in a repository of somebody else: the run is to be finished, and one of its files leads elsewhere."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (r / "circuit.json").unlink()
    (r / name).unlink()
    (r / name).symlink_to(victim)
    acdc(*RUN, "--out", "r")
    assert victim.read_text() == "mine"


def test_a_lock_that_is_a_link_is_refused(acdc, r, tmp_path):
    (tmp_path / "victim").write_text("mine")
    (r / ".lock").unlink()
    (r / ".lock").symlink_to(tmp_path / "victim")
    refused(acdc(*RUN, "--out", "r"), "is a link")
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "link"),
    [
        ("sweep", "runs"),
        ("sweep", "results.csv"),
        ("sweep", "logs"),
        ("compare", "or-gate"),
        ("compare", "or-gate/acdc"),
        ("stability", "base"),
        ("stability", "core.json"),
    ],
)
def test_folders_below_are_no_links(acdc, tmp_path, command, link):
    (tmp_path / "s.yaml").write_text(SWEEP)
    out = tmp_path / "out"
    (out / link).parent.mkdir(parents=True)
    (out / ".lock").touch()
    victim = tmp_path / "victim"
    (victim / "a").mkdir(parents=True) if "." not in link else victim.write_text("mine")
    (out / link).symlink_to(victim)
    result = acdc(*COMMANDS[command], "--out", "out")
    if "." in link:
        assert result.code == 0 and victim.read_text() == "mine"
    else:
        refused(result, link, "is a link")
        assert [p.name for p in victim.iterdir()] == ["a"]


def test_two_results_have_two_names(acdc, tmp_path):
    assert [in_name(x) for x in (0.01, 1.0, 1e-05, 0.12345671, 0.12345672)] == [
        "0.01", "1", "1e-05", "0.12345671", "0.12345672",
    ]  # fmt: skip
    many = [*RUN[:-1], "0.12345671,0.12345672", "--out", "o"]
    assert acdc(*many).code == 0
    found = [json.loads((folder / "circuit.json").read_text()) for folder in sorted((tmp_path / "o").iterdir())]
    assert [file["method"]["threshold"] for file in found] == [0.12345671, 0.12345672]


@pytest.mark.parametrize("threshold", ["1e-40", "1e-300"])
def test_a_refused_run_leaves_nothing(acdc, tmp_path, threshold):
    refused(acdc(*RUN[:-1], threshold, "--out", "deep/er"), "--threshold")
    assert list(tmp_path.iterdir()) == []
