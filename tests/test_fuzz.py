"""Broken files by the thousand, made of the shipped ones: each is read, or refused with one message; never a traceback.

`ACDC_FUZZ=N` takes N inputs of each kind instead of those that take seconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from acdc.check import read_checks
from acdc.config import resolve
from acdc.errors import UserError
from acdc.export import convert
from acdc.formats.circuit_file import read_circuit
from acdc.formats.diff import diff
from acdc.formats.metrics_file import read_metrics
from acdc.model.load import load_tokenizer
from acdc.published import load_published
from acdc.report.run import to_text
from acdc.sweepfile import MANY, read_sweep
from acdc.task import make_data
from acdc.taskfile import load_task

ROOT = Path(__file__).parent.parent
INPUTS = int(os.environ.get("ACDC_FUZZ", "300"))
LONGEST = 5  # seconds for one input
NASTY = (
    *(
        "",
        "null",
        "~",
        "true",
        "-1",
        "0",
        "1",
        "1e999",
        ".nan",
        "-.inf",
        "9" * 40,
        "1e-320",
        "0x10",
        "1_000",
        "[]",
        "{}",
    ),
    *(
        "''",
        '"',
        "'",
        "&a",
        "*a",
        "<<: *a",
        "!!python/object/apply:os.system [ls]",
        "!!binary aGk=",
        "!!timestamp 2001-01-01",
    ),
    *(
        "{a}",
        "{",
        "}",
        "{a.b}",
        "{0}",
        "%s",
        "../../etc/passwd",
        "/dev/zero",
        "C:\\x",
        "a/b",
        ".",
        "..",
        "~root",
        "-",
        "--",
    ),
    *(
        "\u202e",
        "\u2028",
        "\x00",
        "\ud800",
        "🙂",
        "é" * 300,
        "  ",
        "\t",
        "#",
        ": ",
        "? ",
        "- - -",
        "---",
        "...",
        "|",
        ">",
    ),
    *(
        "input->logits",
        "a0.h0->m0",
        "a99.h99->logits",
        "m0->a0.h0<v>",
        "acdc",
        "eap",
        "ioi",
        "tiny",
        "kl",
        "2001-01-01",
    ),
    *("[[[[[[[[[[", "{" * 50, "a: &b [*b]", "{log: [0, 1], count: 5}", "{log: [1, 10], count: 1e9}"),
)


def mutated(text: str, rng: random.Random) -> str:
    """One to four changes, of characters, values or lines."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        lines = text.split("\n")
        i = rng.randrange(len(lines))
        kind = rng.randrange(10)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(i, lines[rng.randrange(len(lines))])
        elif kind == 2:
            lines[i] = " " * rng.choice((1, 2, 7)) + lines[i]
        elif kind == 3:
            lines[i] = lines[i].lstrip()
        elif kind == 4:  # a value
            key, colon, _ = lines[i].partition(":")
            lines[i] = f"{key}{colon} {rng.choice(NASTY)}"
        elif kind == 5:  # a key
            _, colon, value = lines[i].partition(":")
            lines[i] = f"{rng.choice(NASTY)}{colon}{value}"
        else:
            words = lines[i].replace(",", " , ").replace("[", "[ ").replace("]", " ]").split(" ")
            words[rng.randrange(len(words))] = rng.choice(NASTY)
            lines[i] = " ".join(words)
        text = "\n".join(lines)
        if rng.random() < 0.1:
            text = text[: rng.randrange(len(text) + 1)]
        if rng.random() < 0.1 and text:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(NASTY) + text[at:]
    return text


def mutated_json(text: str, rng: random.Random) -> str:
    """A change somewhere in the tree; sometimes of the characters instead."""
    if rng.random() < 0.2:
        return mutated(text, rng)
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        at = tree
        while True:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            if not keys:
                break
            key = rng.choice(list(keys))
            if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.8:
                at = at[key]
                continue
            kind = rng.randrange(4)
            if kind == 0:
                del at[key]
            elif kind == 1 and isinstance(at, dict):
                at[rng.choice(NASTY)] = at[key]
            else:
                at[key] = rng.choice(
                    (*NASTY, None, True, -1, 0, 2**63, 1e308, float("nan"), float("inf"), [], {}, [1], at[key])
                )
            break
    return json.dumps(tree)


@contextmanager
def in_time() -> Iterator[None]:
    """Raise TimeoutError after LONGEST seconds."""

    def late(*_):
        raise TimeoutError(f"longer than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


TOKENIZER = load_tokenizer("tiny")[1]


def of_task(path: Path) -> None:
    make_data(load_task(str(path)), TOKENIZER, 3, 0)


def of_config(path: Path) -> None:
    resolve({}, path, lambda: ("tiny", None))


def of_sweep(path: Path) -> None:
    file = read_sweep(path)
    if file.size <= MANY:
        file.runs(lambda: ("tiny", None))


def of_circuit(path: Path) -> None:
    file = read_circuit(path)
    to_text(file, path.parent)
    for to in ("graphml", "node-link", "eap-ig", "html"):
        convert(file, to)
    diff(read_circuit(ROOT / "configs/golden/ioi.json"), file, 1e-6)


KINDS: dict[str, tuple[str, list[Path], Callable[[Path], object]]] = {
    "task": ("yaml", sorted((ROOT / "tasks").glob("*.yaml")), of_task),
    "config": ("yaml", [ROOT / "configs/greater-than.yaml"], of_config),
    "sweep": ("yaml", sorted((ROOT / "configs").glob("sweep-*.yaml")), of_sweep),
    "checks": ("yaml", sorted((ROOT / "configs").glob("**/*regression.yaml")), read_checks),
    "published": ("yaml", sorted((ROOT / "tasks/circuits").glob("*.yaml")), lambda path: load_published(str(path))),
    "circuit": ("json", sorted((ROOT / "configs/golden").glob("*.json")), of_circuit),
}


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_refused_with_one_message(kind: str, tmp_path: Path) -> None:
    ending, shipped, read = KINDS[kind]
    change = mutated if ending == "yaml" else mutated_json
    shutil.copytree(ROOT / "configs/golden", tmp_path / "golden")
    texts, wrong, refused = [path.read_text(encoding="utf-8") for path in shipped], [], 0
    before = {path for path in tmp_path.rglob("*")}
    for seed in range(INPUTS):
        rng = random.Random(f"{kind} {seed}")
        which = rng.randrange(len(shipped))
        text = change(texts[which], rng)
        path = tmp_path / shipped[which].name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            with in_time():
                read(path)
        except UserError as error:
            refused += 1
            if not str(error).strip() or "Traceback" in str(error) or len(str(error)) > 5000:
                wrong.append(f"{seed}: said {str(error)[:300]!r}")
        except Exception as error:
            wrong.append(f"{seed}: {type(error).__name__}: {str(error)[:300]}")
        path.unlink()
    assert not wrong, f"{len(wrong)} of {INPUTS}:\n" + "\n".join(wrong[:20])
    assert {path for path in tmp_path.rglob("*")} == before
    assert refused > INPUTS / 4  # or nothing was broken


def test_measures_that_are_broken_are_refused(tmp_path: Path) -> None:
    good = {
        "metrics": {"held_out.model.kl": 0.0},
        "faithfulness": {"held_out": [0.5, 0.4, 0.6]},
        "metric": {"held_out": [1.0, None, None]},
        "cost": {"seconds": 1.0, "peak_memory_mb": 2.0, "evaluations": 3, "threads": 1},
    }
    path = tmp_path / "metrics.json"
    for seed in range(INPUTS):
        path.write_bytes(mutated_json(json.dumps(good), random.Random(seed)).encode("utf-8", "surrogatepass"))
        try:
            assert read_metrics(path).half in ("held_out", "discovery")
        except UserError as error:
            assert str(error).startswith(str(path))


RUN = "run --task or-gate --model or-gate --examples 1 --threshold 0.1 --metric l2 --ablation zero --seed 1 --batch 8"
COMMANDS = (
    RUN,
    RUN + " --order random --abs --dtype float64 --device cpu --memory 1GB --out a",
    "run --task gendered-pronoun --model tiny --examples 2 --method eap-ig --edges 5 --steps 1 --greedy --out b",
    "run --task ioi --model tiny --examples 2 --method random --threshold 0.5 --force --out b",
    "run --config c.yaml --threshold 0.3,0.2",
    "evaluate c.json --examples 1 --seed 3 --minimality 1",
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


def test_wrong_commands_are_refused_with_one_message(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    shutil.copy(ROOT / "configs/golden/or-gate.json", tmp_path / "c.json")
    (tmp_path / "c.yaml").write_text("{task: or-gate, model: or-gate, examples: 1, ablation: zero}")
    (tmp_path / "s.yaml").write_text("{base: {task: ioi, model: tiny}, grid: {threshold: [0.1, 0.2]}}")
    assert call(*RUN.split(), "--out", "d/ioi")[0] == 0
    values = [value for value in NASTY if not {"\x00", "\ud800"} & set(value)]  # no command line has these
    codes: dict[int, int] = {}
    for seed in range(max(50, INPUTS // 6)):
        rng = random.Random(f"command {seed}")
        words = rng.choice(COMMANDS).split()
        for _ in range(rng.choice((1, 1, 2))):
            i = rng.randrange(1, len(words))
            if words[i - 1] in ("--out", "-o", "--junit"):  # where to write is the user's choice
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
        with in_time():
            code, _, err = call(*words)
        codes[code] = codes.get(code, 0) + 1
        assert code in (0, 1, 2), (seed, words, code, err)
        assert "Traceback" not in err and (code != 2 or err.strip()), (seed, words, err)
    assert codes.get(2, 0) > 10 and codes.get(0, 0) > 3, codes
