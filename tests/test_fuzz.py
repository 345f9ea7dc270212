"""Thousands of broken variants of shipped files: each is read or refused with one message, never with a traceback, and
nothing is written or run. tests/support/hostile.py sets their number."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from acdc.commands.check import read_checks
from acdc.commands.export import convert
from acdc.errors import UserError
from acdc.files.circuit import read_circuit
from acdc.files.diff import diff
from acdc.files.eap_ig import read_any
from acdc.files.metrics import read_metrics
from acdc.files.published import load_published
from acdc.model.checkpoint import open_checkpoint
from acdc.report.run import to_text
from acdc.setup.config import resolve
from acdc.sweep.file import read_sweep
from acdc.sweep.grid import runs_of
from acdc.sweep.plan import MANY
from acdc.task.load import load_task
from acdc.task.tokenize import make_data
from tests.support import ROOT
from tests.support.hostile import INPUTS, NASTY, in_time, mutated, mutated_json, numbers, refusals, watched

IOI = ROOT / "configs/golden/ioi.json"
TOKENIZER = open_checkpoint("tiny").tokenizer


def of_task(path: Path) -> None:
    make_data(load_task(str(path)), TOKENIZER, 3, 0)


def of_rows(path: Path) -> None:
    """Read rows.jsonl or rows.csv as a task's."""
    task = path.with_name("rows.yaml")
    task.write_text(
        "{name: rows, version: 1, source: none, description: none, metrics: [kl, logit-diff],\n"
        f" data: {{file: {path.name}}}, defaults: {{metric: kl, threshold: 0.1, examples: 3}}}}\n"
    )
    of_task(task)


def of_config(path: Path) -> None:
    config, _, _ = resolve({}, path, lambda: ("tiny", None))
    assert Path(config.folder).name == config.folder  # no way out of the folder of runs
    assert all(math.isfinite(x) for x in config.model_dump().values() if isinstance(x, float))


def of_sweep(path: Path) -> None:
    file = read_sweep(path)
    if file.size <= MANY:
        for run in runs_of(file, lambda: ("tiny", None))[0]:
            assert Path(run.name).name == run.name and run.name != ".."


def of_circuit(path: Path) -> None:
    file = read_circuit(path)
    to_text(file, path.parent)
    for to in ("graphml", "node-link", "eap-ig", "html"):
        convert(file, to)
    diff(read_circuit(IOI), file, 1e-6)


def of_eap_ig(path: Path) -> None:
    file = read_any(path, {"task": "ioi", "model": "tiny"})
    for to in ("dot", "eap-ig", "html"):
        convert(file, to)
    diff(read_circuit(IOI), file, 1e-6)


def csv_of_ioi() -> str:
    """Return the prompts of a shipped task as CSV."""
    rows = [json.loads(line) for line in rows_of_ioi().splitlines()]
    lines = [f'"{row["clean"]}","{row["corrupted"]}", Mary, John' for row in rows]
    return "\n".join(["clean,corrupted,correct,wrong", *lines])


def rows_of_ioi() -> str:
    """Return the prompts of a shipped task as JSONL."""
    data = make_data(load_task("ioi"), TOKENIZER, 6, 0)
    return "".join(
        json.dumps({"clean": clean, "corrupted": corrupted, "correct": [" Mary"], "wrong": " John"}) + "\n"
        for half in (data.discovery, data.held_out)
        for clean, corrupted in half.texts
    )


def mutated_rows(text: str, rng: random.Random) -> str:
    """Return the text with a change in one row, or in its characters."""
    if rng.random() < 0.3:
        return mutated(text, rng)
    rows = text.split("\n")
    i = rng.randrange(len(rows) - 1)
    rows[i] = mutated_json(rows[i], rng)
    return "\n".join(rows)


def shipped(pattern: str) -> dict[str, str]:
    """Return the texts of shipped files by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob(pattern))}


Change = Callable[[str, random.Random], str]
KINDS: dict[str, tuple[Callable[[], dict[str, str]], Change, Callable[[Path], object]]] = {
    "task": (lambda: shipped("tasks/*.yaml"), mutated, of_task),
    "rows": (lambda: {"rows.jsonl": rows_of_ioi()}, mutated_rows, of_rows),
    "csv": (lambda: {"rows.csv": csv_of_ioi()}, mutated, of_rows),
    "config": (lambda: shipped("configs/greater-than.yaml"), mutated, of_config),
    "sweep": (lambda: shipped("configs/sweep-*.yaml"), mutated, of_sweep),
    "checks": (lambda: shipped("configs/**/*regression.yaml") | shipped("configs/paper/*.yaml"), mutated, read_checks),
    "published": (lambda: shipped("tasks/circuits/*.yaml"), mutated, lambda path: load_published(str(path))),
    "circuit": (lambda: shipped("configs/golden/*.json"), mutated_json, of_circuit),
    "eap-ig": (lambda: {"c.json": str(convert(read_circuit(IOI), "eap-ig"))}, mutated_json, of_eap_ig),
}


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_refused_with_one_message(kind: str, tmp_path: Path) -> None:
    good, change, read = KINDS[kind]
    texts = good()
    count = INPUTS // 3 if kind == "checks" else INPUTS  # published circuits are read, too
    shutil.copytree(ROOT / "configs/golden", tmp_path / "golden")
    for name, text in texts.items():  # some include others
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in texts:  # import modules before the watch begins; not every good file fits `tiny`
        with suppress(UserError):
            read(tmp_path / name)
    before = {path for path in tmp_path.rglob("*")}

    def breaks(rng: random.Random) -> Path:
        path = tmp_path / rng.choice(list(texts))
        path.write_bytes(change(texts[path.name], rng).encode("utf-8", "surrogatepass"))
        return path

    def read_and_mend(path: Path) -> None:
        try:
            read(path)
        finally:
            path.write_text(texts[path.name], encoding="utf-8")

    refused = refusals(kind, count, breaks, read_and_mend, tmp_path)
    assert {path for path in tmp_path.rglob("*")} == before
    assert refused > count / 4  # or nothing was broken


def test_measures_that_are_broken_are_refused(tmp_path: Path) -> None:
    good = {
        "metrics": {"held_out.model.kl": 0.0},
        "faithfulness": {"held_out": [0.5, 0.4, 0.6]},
        "metric": {"held_out": [1.0, None, None]},
        "cost": {"seconds": 1.0, "peak_memory_mb": 2.0, "evaluations": 3, "threads": 1},
    }
    path = tmp_path / "metrics.json"
    refused = 0
    for number in numbers():
        path.write_bytes(mutated_json(json.dumps(good), random.Random(number)).encode("utf-8", "surrogatepass"))
        try:
            assert read_metrics(path).half in ("held_out", "discovery")
        except UserError as error:
            assert str(error).startswith(str(path))
            refused += 1
    assert INPUTS / 4 < refused < INPUTS


RUN = "run --task or-gate --model or-gate --examples 1 --threshold 0.1 --metric l2 --ablation zero --seed 1 --batch 8"
COMMANDS = (
    RUN,
    RUN + " --order random --abs --dtype float64 --device cpu --memory 1GB --out a",
    "run --task gendered-pronoun --model tiny --examples 2 --method eap-ig --edges 5 --steps 1 --greedy --out b",
    "run --task ioi --model tiny --examples 2 --method random --threshold 0.5 --force --out b",
    "run --config c.yaml --threshold 0.3,0.2",
    "evaluate c.json --examples 1 --seed 3 --minimality 1",
    "evaluate e.json --task or-gate --model or-gate --metric l2 --ablation zero --examples 1 --minimality 0",
    "export e.json --task or-gate --model or-gate --to svg -o y.svg",
    "check e.json --against c.json --task or-gate --model or-gate",
    "export c.json --to svg --width 3 --direction left --scores --no-header -o x.svg",
    "export c.json --to html -o x.html",
    "check c.json --against c.json --edits 0 --tolerance 0.1 --junit j.xml",
    "diff c.json c.json --tolerance 0.1 --json",
    "results d --where task=ioi --sort -kept --columns run,kept --csv",
    "sweep s.yaml --dry-run --workers 1 --threads 1 --memory 1GB --executor local",
    "tasks ioi",
    "models tiny",
    "methods acdc",
)
WRITES = ("--out", "-o", "--junit")  # where to write is the user's choice


def test_wrong_commands_are_refused_with_one_message(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    shutil.copy(ROOT / "configs/golden/or-gate.json", tmp_path / "c.json")
    (tmp_path / "c.yaml").write_text("{task: or-gate, model: or-gate, examples: 1, ablation: zero}")
    (tmp_path / "s.yaml").write_text("{base: {task: ioi, model: tiny}, grid: {threshold: [0.1, 0.2]}}")
    assert call(*RUN.split(), "--out", "d/ioi")[0] == 0
    assert call("export", "c.json", "--to", "eap-ig", "-o", "e.json")[0] == 0
    values = [value for value in NASTY if not {"\x00", "\ud800"} & set(value)]  # no command line has these
    codes: dict[int, int] = {}
    for number in numbers(max(50, INPUTS // 6)):
        rng = random.Random(f"command {number}")
        words = rng.choice(COMMANDS).split()
        for _ in range(rng.choice((1, 1, 2))):
            i = rng.randrange(1, len(words))
            if words[i - 1] in WRITES:
                continue
            kind = rng.randrange(4)
            if kind == 0:
                del words[i]
            elif kind == 1:
                words.insert(i, rng.choice(words))
            else:
                words[i] = rng.choice(values)
            if len(words) < 2:
                break
        if any(flag in WRITES and value in values for flag, value in pairwise(words)):
            continue
        dry = any(word == "--dry-run" and not before.startswith("-") for before, word in pairwise(words))
        if words[0] == "sweep" and not dry:  # it would start processes; after a flag the word is its value
            continue
        with in_time(), watched(tmp_path, code=False):
            code, _, err = call(*words)
        codes[code] = codes.get(code, 0) + 1
        assert code in (0, 1, 2), (number, words, code, err)
        assert "Traceback" not in err and (code != 2 or err.strip()), (number, words, err)
    assert codes.get(2, 0) > 10 and codes.get(0, 0) > 3, codes
