"""The documentation is right: its files and commands are run as shown."""

from __future__ import annotations

import json
import pkgutil
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from acdc.cli import app
from acdc.errors import TaskError
from acdc.files.circuit import read_circuit
from acdc.task.load import load_task
from acdc.task.tokenize import make_data
from tests.support import ROOT, assets
from tests.support.browser import chromium, opened
from tests.support.docs import OWN_DATA, blocks
from tests.support.tokenizers import Fast

DOCS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SPANS = ROOT / "docs" / "spans.md"
SWEEPS = ROOT / "docs" / "sweeps.md"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_what_the_docs_link_to_exists(path: Path) -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")) if "://" not in t]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    missing = [t for t in targets if (path.parent / t).resolve().relative_to(ROOT).as_posix() not in tracked]
    assert not missing
    assert targets or path.name != "README.md"


def test_what_texts_refer_to_is_there() -> None:
    """Names (`acdc.graph.graph.Graph`) and files (acdc/graph/graph.py) in docs, docstrings and comments exist."""
    names, files = set[str](), set[str]()
    for path in [*DOCS, *(ROOT / "acdc").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        names |= set(re.findall(r"`(acdc(?:\.\w+)+)", text))
        files |= set(re.findall(r"\b(?:acdc|configs|docs|tasks|tests)/[\w./-]*\w\.(?:py|md|yaml|json)\b", text))
    assert len(names) > 10 and len(files) > 30
    for name in names:
        pkgutil.resolve_name(name)
    assert [file for file in sorted(files) if not (ROOT / file).exists()] == []


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
    """The working directory: a folder with the two files of docs/own-data.md."""
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
    for line in shown.splitlines():  # numbers may round differently on other machines
        label = re.split(r"[\d:]|  +", line)[0]
        assert label in result.output
    assert re.findall("method .*", shown) == re.findall("method .*", result.output)
    (folder,) = (mine / "runs").iterdir()
    files = {path.name for path in folder.iterdir()} - {".lock"}
    assert files == {"circuit.json", "log.jsonl", "metrics.json", "circuit.svg", "report.html", "config.yaml"}
    assert all(f"`{name}`" in OWN_DATA.read_text(encoding="utf-8") for name in files)
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    table = dict(re.findall(r"^discovery (\S+) \S +(\S+)", shown, re.M))
    signs = {"logit-diff": -1}  # which files hold with a minus sign
    assert {name: signs.get(name, 1) * metrics[f"discovery.model.{name}"] for name in table} == pytest.approx(
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
        (yaml, f"[{first}]"),
        (yaml, first.replace('" she"', "673")),
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
        # the JSON library's own words differ between versions of Python
        assert str(error.value).split("JSON: ")[0] == line.split("JSON: ")[0]


def shown_commands() -> list[tuple[str, str]]:
    """Lines of fenced blocks that begin with `acdc `, each with its file."""
    out = []
    for path in DOCS:
        for block in re.findall(r"^```\w*\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()  # commands may continue on the next line
            out += [(path.name, line) for line in lines if line.startswith("acdc ")]
    return out


def test_every_command_is_shown() -> None:
    lines = [line for _, shown in shown_commands() for line in shown.split(" · ")]
    assert {line.split()[1] for line in lines} == set(get_command(app).commands)


@pytest.mark.parametrize(("file", "line"), shown_commands())
def test_commands_that_are_shown_exist(file: str, line: str) -> None:
    """Each is parsed with its options, but not run."""
    line = re.sub(r"[\[\]]", "", re.sub(r"\b[NX]\b", "1", line.split("#", maxsplit=1)[0]))  # [--edits N]
    for command in line.split(" · "):
        name, *arguments = shlex.split(command.strip().removeprefix("acdc "))
        with get_command(app).commands[name].make_context(name, arguments):
            pass


def alike(shown: str, printed: str) -> bool:
    """Whether two lines have the same words, and numbers that differ only in last digits, as on other machines."""
    words, others = shown.split(), printed.split()
    number = re.compile(r"^[\[(]?-?[\d.,]+[%)\];,]*$")
    for a, b in zip_longest(words, others, fillvalue=""):
        if number.match(a) and number.match(b):
            x, y = (float(re.sub(r"[^\d.-]", "", w).rstrip(".")) for w in (a, b))
            if abs(x - y) > 0.02 * max(abs(x), 0.05):
                return False
        elif a != b:
            return False
    return True


def test_the_first_result_of_the_readme_is_what_is_printed(call: Callable[..., tuple[int, str, str]]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"`make run` prints, after the set-up:\n\n```\n(.*?)^```$", text, re.M | re.S)
    assert shown
    code, out, _ = call("run", "--task", "greater-than", "--model", "tiny")
    assert code == 0 and alike(shown[1], out), out
    assert not alike(shown[1], out.replace("33 of", "39 of"))


def test_the_task_of_the_readme_is_one_that_tiny_can_do(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    (text,) = blocks("yaml", ROOT / "README.md")
    file = re.match(r"# (\S+): acdc (.*)\n", text)
    assert file
    (tmp_path / file[1]).write_text(text, encoding="utf-8")
    code, out, err = call(*shlex.split(file[2]), "--model", "tiny")
    assert code == 0 and "warning" not in err, err
    right = re.search(r"^held out accuracy ↑ +(\S+) +(\S+)", out, re.M)
    assert right and float(right[1]) > 0.9 and float(right[2]) > 0.9, out


@pytest.mark.slow(minutes=6)
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every command in order. The lines shown come in that order; … stands for anything."""
    assets.smollm2()
    path = ROOT / "docs" / "tutorial.md"
    commands, outputs = blocks("sh", path), blocks("text", path)
    assert len(commands) == len(outputs) == 3
    for command, shown in zip(commands, outputs, strict=True):
        words = shlex.split(command)
        done = subprocess.run(
            [sys.executable, "-m", "acdc.cli", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        printed = iter(done.stdout.splitlines())
        for line in shown.splitlines():
            assert line == "…" or any(alike(line, other) for other in printed), f"{line}\nnot in\n{done.stdout}"
    file = read_circuit(tmp_path / "pronoun" / "circuit.json")
    with chromium() as browser, opened(browser, tmp_path / "pronoun" / "report.html") as page:
        assert page.locator(".edge").count() == file.graph.edges.kept
        page.locator("[data-node='a26.h2']").click()
        assert "logits directly" in page.locator("#panel").inner_text()


def test_spans_are_as_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (rows,) = blocks("json", SPANS)
    files = dict(zip(("mine.yaml", "named.yaml", "rows.yaml"), blocks("yaml", SPANS), strict=True))
    files |= {"rows.jsonl": rows}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    *shown, errors = blocks("text", SPANS)
    for command, text in zip(blocks("sh", SPANS), shown, strict=True):
        code, out, _ = call(*shlex.split(command)[1:])
        assert code == 0 and f"\n{text}\n" in out
    mistakes = [
        ("named.yaml", ('" and"', '" or"')),
        ("named.yaml", ('gave: " gave a ring"', 'gave: " gave a r"\n    ing: "ing"')),
        ("named.yaml", ('gave: " gave a ring"\n    END: " to"', 'END: " gave a ring to"')),
        ("rows.jsonl", ("[3, 6]", "[1, 6]")),
        ("rows.jsonl", ("[3, 6]", "[3, 12]")),
        ("rows.jsonl", (', "what": [3, 6]', "")),
        ("rows.jsonl", (r', "spans": {"name": \[1, 2\], "what": \[3, .\]}', "")),
    ]
    for (name, (old, new)), line in zip(mistakes, errors.splitlines(), strict=True):
        changed = re.sub(old, new, files[name]) if "\\" in old else files[name].replace(old, new)
        (tmp_path / name).write_text(changed, encoding="utf-8")
        with pytest.raises(TaskError) as error:
            task = load_task(name.replace("jsonl", "yaml"))
            make_data(task, Fast("tiny"), task.defaults.examples, 0, positions=True)
        assert str(error.value) == line
        (tmp_path / name).write_text(files[name], encoding="utf-8")


def test_the_counts_by_span_in_the_docs_are_those_of_the_golden_circuit() -> None:
    file = read_circuit(ROOT / "configs" / "golden" / "ioi-by-position.json")
    at = Counter(edge.span for edge in file.edges if edge.span)
    text = " ".join((ROOT / "docs" / "positions.md").read_text(encoding="utf-8").split())
    n = sum(at.values())
    others = ", ".join(f"{at[span]} at `{span}`" for span in ("END", "S1", "IO"))
    assert f"{at['S2']} of the {n} edge-spans lie at `S2`, {others}" in text and len(at) == 4
    assert f"{file.graph.edges} residual edges (9.60%) at {n} of 5,748 edge-spans" in text
