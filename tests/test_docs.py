"""The documentation does what it says: its files and commands are run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from acdc.cli import app
from acdc.errors import TaskError
from acdc.task import load_task, make_data
from tests.test_task import Fast

ROOT = Path(__file__).parent.parent
DOCS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
OWN_DATA, SWEEPS = ROOT / "docs" / "own-data.md", ROOT / "docs" / "sweeps.md"


def blocks(language: str, path: Path = OWN_DATA) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_what_the_docs_link_to_exists(path: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")) if "://" not in t]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    missing = [t for t in targets if (path.parent / t).resolve().relative_to(ROOT).as_posix() not in tracked]
    assert not missing
    assert targets or path.name != "README.md"


def test_the_sweep_of_the_docs_runs_and_its_table_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str, str]]
) -> None:
    (text,) = blocks("yaml", SWEEPS)
    file = re.match(r"# (\S+): acdc sweep (\S+)\n", text)
    assert file and file[1] == file[2]
    (tmp_path / file[1]).write_text(text, encoding="utf-8")
    code, out, err = call("sweep", file[1], "--workers", "2", "--no-plots")
    assert code == 0 and "12 runs: 12 done" in out, err
    commands = [shlex.split(line)[1:] for line in SWEEPS.read_text().splitlines() if line.startswith("acdc results")]
    assert len(commands) == 2
    for command in commands:
        code, out, err = call(*(word.replace("sweep-tiny", "mine-sweep") for word in command))
        assert code == 0 and len(out.splitlines()) > 3, err


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
