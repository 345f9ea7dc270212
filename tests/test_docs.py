"""The documentation does what it says: its files and commands are run as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from acdc.cli import app
from acdc.errors import TaskError
from acdc.task import load_task, make_data
from tests.test_task import Fast

OWN_DATA = Path(__file__).parent.parent / "docs" / "own-data.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", OWN_DATA.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files of docs/own-data.md, and in it."""
    monkeypatch.chdir(tmp_path)
    for name, language in (("mine.yaml", "yaml"), ("mine.jsonl", "json")):
        (text,) = blocks(language)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_own_data_runs_and_prints_what_is_shown(mine: Path) -> None:
    (command,) = blocks("sh")
    shown = blocks("text")[0]
    program, *arguments = command.split()
    assert program == "acdc"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for line in shown.splitlines():  # the same lines; their numbers may round differently elsewhere
        label = re.split(r"[\d:]|  +", line)[0]
        assert label in result.output
    assert re.findall("method .*", shown) == re.findall("method .*", result.output)
    (folder,) = (mine / "runs").iterdir()
    files = {path.name for path in folder.iterdir()}
    assert files == {"circuit.json", "log.jsonl", "metrics.json", "circuit.svg", "report.html", "config.yaml"}
    assert all(f"`{name}`" in OWN_DATA.read_text(encoding="utf-8") for name in files)
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    table = dict(re.findall(r"^discovery (\S+) \S +(\S+)", shown, re.M))
    assert {name: round(metrics[f"discovery.model.{name}"], 4) for name in table} == pytest.approx(
        {name: float(value) for name, value in table.items()}, abs=2e-4
    )


def test_own_data_is_padded(mine: Path) -> None:
    split = make_data(load_task("mine.yaml"), Fast("tiny"), 3, 0).discovery
    assert sorted(split.pad) == [0, 0, 1]


def test_errors_of_own_data_are_worded_as_shown(mine: Path) -> None:
    yaml, rows = ((mine / name).read_text() for name in ("mine.yaml", "mine.jsonl"))
    first = rows.splitlines()[0]
    mistakes = [
        (yaml, first + "\n{x}\n"),
        (yaml, first.replace("corrupted", "corupted")),
        (yaml, re.sub('"clean": "[^"]*", ', "", first)),
        (yaml, "\n"),
        (yaml.replace("examples: 3", "examples: 4"), rows),
        (yaml.replace("padding: left", "padding: none"), rows),
    ]
    shown = blocks("text")[1].splitlines()
    for (task, data), line in zip(mistakes, shown, strict=True):
        (mine / "mine.yaml").write_text(task)
        (mine / "mine.jsonl").write_text(data)
        with pytest.raises(TaskError) as error:
            loaded = load_task("mine.yaml")
            make_data(loaded, Fast("tiny"), loaded.defaults.examples, 0)
        # what the JSON library adds differs between versions of Python
        assert str(error.value).split("JSON: ")[0] == line.split("JSON: ")[0]
