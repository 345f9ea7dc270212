"""What a model is called, and the command that makes a run again."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from acdc.errors import UserError
from acdc.model.find import BUNDLED
from acdc.setup.config import Config, resolve
from acdc.setup.inputs import load
from tests.support import ROOT

CASES = {  # as typed, and as results call it
    "tiny": "tiny",
    "mine": "mine",
    "org/model": "org/model",
    "org/model@step1000": "org/model@step1000",
    "./mine": "mine",
    "../some/mine/": "mine",
    "~/mine": "mine",
    "/somewhere/secret/mine": "mine",
    "some/where/mine": "mine",
    "./m.gguf": "m.gguf",
    "..": "..",
    "./": "model",
}


def config(model: str) -> Config:
    return resolve({"task": "greater-than", "model": model}, None, None)[0]


@pytest.mark.parametrize("typed", CASES)
def test_the_name_of_a_model_does_not_depend_on_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    before = config(typed)
    assert before.model_name == CASES[typed]
    (tmp_path / "full" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "full" / "x")
    for name in ("mine", "org/model", "some/where/mine", "../some/mine"):
        Path(name).mkdir(parents=True)
    after = config(typed)
    assert (after.model_name, after.folder) == (before.model_name, before.folder)


@pytest.mark.parametrize("typed", ["./my models/it's mine", "my-model"])
def test_the_command_of_a_run_can_be_pasted(acdc, tmp_path: Path, typed: str) -> None:
    """The folder and the task's file have blanks and quotes; nothing else of this machine is in the results."""
    shutil.copytree(BUNDLED / "or-gate", tmp_path / typed)
    (tmp_path / "my tasks").mkdir()
    shutil.copy(ROOT / "tasks" / "or-gate.yaml", tmp_path / "my tasks")
    given = ["--task", "my tasks/or-gate.yaml", "--model", typed, "--threshold", "0.1"]
    assert acdc("run", *given, "--out", "first").code == 0
    text = (tmp_path / "first" / "circuit.json").read_text()
    found = json.loads(text)
    assert found["model"]["name"] == Path(typed).name
    words = shlex.split(found["command"])
    assert words[:6] == ["acdc", "run", "--task", "my tasks/or-gate.yaml", "--model", typed]
    assert acdc(*words[1:], "--out", "second").code == 0
    assert (tmp_path / "second" / "circuit.json").read_text() == text
    for file in (tmp_path / "first").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name


def test_more_edges_than_the_graph_has_are_refused():
    given = {"task": "or-gate", "model": "or-gate", "method": "edge-patching", "edges": 10_000}
    config, task, _ = resolve(given, None, None)
    with pytest.raises(UserError, match=r"--edges: 10000 of .* residual edges; ask for fewer"):
        load(config, task)
