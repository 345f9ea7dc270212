"""Hostile files: each is refused at once, with one message, and without side effects."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from acdc.commands.check import read_checks
from acdc.commands.evaluate import config_beside
from acdc.errors import FileError, UserError, unknown
from acdc.files.circuit import read_circuit
from acdc.files.table import found_rows
from acdc.graph.graph import Graph
from acdc.graph.scores import read_scores
from acdc.io.yaml_file import MAX_INCLUDES, Loader, read_yaml
from acdc.methods.log import read_log
from acdc.model.checkpoint import open_checkpoint
from acdc.model.find import BUNDLED
from acdc.model.load import load_model
from acdc.setup.config import Config, resolve
from acdc.sweep.file import read_sweep
from acdc.sweep.grid import runs_of
from acdc.task.load import load_task
from acdc.task.tokenize import make_data
from tests.support.hostile import in_time, judge, watched

TASK: dict[str, Any] = {
    "name": "t",
    "version": 1,
    "source": "none",
    "description": "none",
    "defaults": {"metric": "kl", "threshold": 0.1, "examples": 2},
    "data": {"template": "a {x}", "slots": {"x": ["b", "c", "d", "e"]}},
    "corrupt": {"redraw": ["x"]},
    "metrics": ["kl"],
}


class Letters:
    """A tokenizer with one token per character."""

    name, vocab_size, bos_id = "letters", 0x110000, None

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [(i, i + 1) for i in range(len(text))]

    def pieces(self, ids: Any) -> list[str]:
        return [chr(i) for i in ids]


def draw(path: Path) -> None:
    task = load_task(str(path))
    make_data(task, Letters(), task.defaults.examples, 0)


def refused(read: Callable[[Path], object], path: Path, folder: Path, hint: str) -> None:
    """Assert that a file is refused with a message that contains the hint."""
    with pytest.raises(UserError) as error, in_time(), watched(folder):
        read(path)
    assert hint in str(error.value) and len(str(error.value)) < 20_000, str(error.value)[:5000]


# ---------------------------------------------------------------- the watch itself


@pytest.mark.parametrize(
    ("what", "do"),
    [
        ("open", lambda other: (other / "x").write_text("")),
        ("open", lambda other: os.open(other / "x", os.O_CREAT | os.O_WRONLY)),
        ("os.mkdir", lambda other: (other / "d").mkdir()),
        ("os.rename", lambda other: (other.parent / "in/x").rename(other / "y")),
        ("subprocess.Popen", lambda _: subprocess.run([sys.executable, "-c", ""], check=False)),
        ("os.system", lambda _: os.system("true")),
        ("socket.connect", lambda _: socket.socket().connect_ex(("127.0.0.1", 9))),
        ("exec", lambda _: namedtuple("Row", "x")),  # made from text
        ("compile", lambda _: compile("1", "<data>", "eval")),
    ],
)
def test_the_watch_sees(tmp_path: Path, what: str, do: Callable[[Path], object]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in/x").write_text("")
    with pytest.raises(AssertionError, match=what), watched(tmp_path / "in"):
        do(tmp_path / "out")


def test_the_watch_lets_pass_what_may_be(tmp_path: Path) -> None:
    with watched(tmp_path):
        (tmp_path / "x").write_text("a")
        assert (tmp_path / "x").read_text() == "a"
        assert Path(__file__).read_text()


def test_the_clock_stops_what_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def compute(_: Path) -> None:
        while True:
            pass

    monkeypatch.setattr("tests.support.hostile.LONGEST", 0.05)
    monkeypatch.setattr("tests.support.hostile.BLOCKED", 0.05)
    for hang in (compute, lambda _: time.sleep(30)):
        no, mistake = judge(hang, tmp_path, tmp_path)
        assert not no and mistake and mistake.startswith("TooLong")


# ---------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("0.1: a\n0.10: b", "key '0.10' is there twice"),
        ("1: a\n1.0: b", "key '1.0' is there twice"),
        ("yes: a\ntrue: b", "key 'true' is there twice"),
        ("1: a\ntrue: b", "key 'true' is there twice"),
        ("0x10: a\n16: b", "key '16' is there twice"),
        ("1: a\n'1': b", "key '1' is there twice"),
        (".nan: a\n.nan: b", "key '.nan' is there twice"),
        ("a: {b: 1, b: 2}", "key 'b' is there twice"),
        ("<<: {a: 1}\na: 2", "merge keys (<<) are not allowed"),
        ("[a]: 1", "a key should be a word"),
        ("a: &x [1]\nb: *x", "aliases (*name) are not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: " + "9" * 5000, "a number of 5,000 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 characters"),
        ("a: 1" + ":59" * 100_000, "a number of 300,001 characters"),
        ("a: " + "[" * 100_000, "not valid YAML"),
        ("a: " + "[" * 100 + "]" * 100, "nested more than 100 levels deep"),
        ("a: " + "{b: " * 100_000, "not valid YAML"),
        ("\n".join(" " * i + "a:" for i in range(1300)), "not valid YAML"),
        ("- " * 400_000, "not valid YAML"),
        ("a: 2001-99-99", "not valid YAML"),
        ("a: b\n---\na: b", "not valid YAML"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, hint: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    refused(lambda path: read_yaml(path, ()), tmp_path / "t.yaml", tmp_path, hint)


def test_numbers_may_be_keys(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("1: a\n0.631: b\n2: c\n-1: d\nno: e\n0: f\nnull: g\n")
    with pytest.raises(FileError, match="key '0' is there twice"):  # no and 0 are the same key of a dict
        read_yaml(tmp_path / "t.yaml", ())
    (tmp_path / "t.yaml").write_text("1: a\n0.631: b\n2: c\n-1: d\nno: e\nnull: g\n")
    assert read_yaml(tmp_path / "t.yaml", ()) == {1: "a", 0.631: "b", 2: "c", -1: "d", False: "e", None: "g"}


def test_keys_that_are_no_texts_are_unknown_ones(tmp_path: Path) -> None:
    """Python accepts only strings as names of arguments."""
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**TASK, "score_at": {"range": [0, 1], 1: 2}}))
    refused(draw, tmp_path / "t.yaml", tmp_path, "unknown key '1'")
    (tmp_path / "config.yaml").write_text("{task: ioi, model: tiny, metric: kl, seed: 0, 1: 2}")
    refused(lambda _: config_beside(tmp_path / "circuit.json"), tmp_path, tmp_path, "config.yaml")
    refused(found_rows, tmp_path, tmp_path, "config.yaml")


def test_thresholds_are_keys_once_each(tmp_path: Path) -> None:
    entry = "checks: [{{name: a, run: {{task: ioi, model: tiny}}, against: ioi, counts: {{{}}}}}]"
    path = tmp_path / "c.yaml"
    path.write_text(entry.format("1: 2, 0.631: 6, 0.0001: 1948"))
    assert read_checks(path)[0].counts == {1: 2, 0.631: 6, 0.0001: 1948}
    for twice in ("0.1: 2, 0.10: 3", "1: 2, 1.0: 3", "0.1: 2, 1.0e-1: 3", "0.1: 2, 1e-1: 3"):  # 1e-1 is a text in YAML
        path.write_text(entry.format(twice))
        refused(read_checks, path, tmp_path, "is there twice" if "1e-1" not in twice else "'1e-1'")


@pytest.mark.parametrize("text", ["a: [" + "b," * 60_000 + "]", "a: " + "x " * 490_000, "a: 'x" + "\n" * 900_000 + "'"])
def test_large_files_are_read_at_once(tmp_path: Path, text: str) -> None:
    """PyYAML without libyaml needs a minute for the first of them."""
    (tmp_path / "t.yaml").write_text(text)
    with in_time():
        assert list(read_yaml(tmp_path / "t.yaml", ())) == ["a"]


def test_yaml_is_read_alike_without_libyaml() -> None:
    """PyYAML can be built without libyaml."""
    code = (
        "import sys; sys.modules['yaml._yaml'] = None\n"
        "import yaml; from acdc.io.yaml_file import Loader\n"
        "assert not yaml.__with_libyaml__ and issubclass(Loader, yaml.SafeLoader)\n"
        "print(Loader('{a: [1, x, yes], 0.5: null}').get_single_data())\n"
        "for text in ('a: *b', '[' * 200):\n"
        "    try: Loader(text).get_single_data()\n"
        "    except yaml.YAMLError as error: print(error.problem)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = [str(Loader("{a: [1, x, yes], 0.5: null}").get_single_data())]
    for text in ("a: *b", "[" * 200):
        with pytest.raises(yaml.YAMLError) as error:
            Loader(text).get_single_data()
        expected.append(error.value.problem)
    assert run.stdout.splitlines() == expected


def test_nesting_within_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("a: " + "[" * 99 + "]" * 99)
    assert list(read_yaml(tmp_path / "t.yaml", ())) == ["a"]


# ---------------------------------------------------------------- includes and other files


def test_chains_of_includes_end(tmp_path: Path) -> None:
    for i in range(1000):
        (tmp_path / f"f{i}.yaml").write_text(f"include: f{i + 1}.yaml\n")
    refused(read_sweep, tmp_path / "f0.yaml", tmp_path, f"deeper than {MAX_INCLUDES} files")
    for i in range(1000):
        (tmp_path / f"f{i}.yaml").write_text(f"include: ./f{i + 1}.yaml\n")
    refused(lambda path: load_task(str(path)), tmp_path / "f0.yaml", tmp_path, f"deeper than {MAX_INCLUDES} files")
    (tmp_path / f"f{MAX_INCLUDES - 1}.yaml").write_text(yaml.safe_dump({**TASK, "name": "f0"}))
    assert load_task(str(tmp_path / "f0.yaml")).name == "f0"


def test_includes_that_double_end(tmp_path: Path) -> None:
    for i in range(19):
        (tmp_path / f"f{i}.yaml").write_text(f"include: [f{i + 1}.yaml, f{i + 1}.yaml]\n")
    (tmp_path / "f19.yaml").write_text("grid: {task: ioi}\n")
    refused(read_sweep, tmp_path / "f0.yaml", tmp_path, "includes more than 100 files")


ODD = ("pipe", "folder", "device", "loop", "missing", "long", "nul")


def odd_file(kind: str, folder: Path) -> str:
    """Return the path of something that is not a regular file."""
    path = folder / "odd.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    return {"long": "x" * 300 + ".yaml", "nul": "a\0b.yaml"}.get(kind, "odd.yaml")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("how", ["task include", "sweep include", "data.file"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str, how: str) -> None:
    name, path = odd_file(kind, tmp_path), tmp_path / "t.yaml"
    said = {"include": name} if "include" in how else {**TASK, "data": {"file": name}}
    path.write_text(yaml.safe_dump(said))
    read: Callable[[Path], object] = read_sweep if how == "sweep include" else draw
    hint = "is not a valid path" if kind == "nul" else "can't be read"
    refused(read, path, tmp_path, hint)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "missing"])
def test_what_is_no_file_is_no_file_of_a_run_or_model(tmp_path: Path, kind: str) -> None:
    path = tmp_path / odd_file(kind, tmp_path)
    for read in (
        read_circuit,
        read_log,
        lambda p: read_scores(p, Graph(1, 1)),
        lambda p: load_task(str(p)),
        lambda p: resolve({}, p, None),
    ):
        refused(read, path, tmp_path, "can't be read")
    for bundled, name in product(("or-gate", "tiny"), ("config.json", "tokenizer.json", "model.safetensors")):
        model = tmp_path / bundled / name.partition(".")[0]
        model.mkdir(parents=True)
        for shipped in sorted((BUNDLED / bundled).iterdir()):
            target = model / shipped.name
            if shipped.name != name:
                target.write_bytes(shipped.read_bytes())
            elif kind != "missing":
                target.symlink_to(path)
        refused(lambda p: load_model(str(p)), model, tmp_path, name if kind != "missing" else "")


def test_files_elsewhere_are_read_as_data_only(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:x:0:0\n")
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/t.yaml"
    path.write_text(yaml.safe_dump({**TASK, "data": {"file": "../secret"}}))
    refused(draw, path, tmp_path / "in", "secret line 1: not valid JSON")


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "a/../../b", "..", "a\0b", "a\nb", "x" * 300, "~/x", "C:\\x", ""]
)
def test_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"base": {"model": "tiny"}, "grid": {"task": "ioi"}, "run_name": name}))
    try:
        (run,) = runs_of(read_sweep(path), lambda: ("tiny", None))[0]
        assert Path(run.name).name == run.name and run.name not in ("", ".", "..") and "\n" not in run.name
    except UserError as error:
        assert "run_name" in str(error)
    given = {
        "task": "ioi",
        "model": name,
        "metric": "kl",
        "threshold": 0.1,
        "ablation": "zero",
        "examples": 1,
        "seed": 0,
    }
    if name in ("", "a\0b", "a\nb"):
        with pytest.raises(ValidationError):
            Config(**given)
    elif len(name) < 256:  # the limit of file systems
        config = Config(**given)
        assert Path(config.folder).name == config.folder and "\n" not in config.folder
    for read in (load_model, open_checkpoint, load_task):
        with pytest.raises(UserError), in_time(), watched(tmp_path):
            read(name if read is load_task or name != ".." else "../..")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**TASK, "name": name}))
    refused(draw, tmp_path / "t.yaml", tmp_path, "name: ")


@pytest.mark.parametrize("line", ["debug\ntouch pwned", "debug\r", "a\0b"])
@pytest.mark.parametrize("where", ["partition", "account", "value", "name"])
def test_no_line_of_a_job_is_of_a_sweep_file(tmp_path: Path, line: str, where: str) -> None:
    """A job's script has a line per option; a line break in one would add a command."""
    extra = {"value": {"qos": line}, "name": {line: "x"}}.get(where)
    said = {"extra": extra} if extra else {where: line}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"grid": {"task": "ioi"}, "slurm": said}))
    refused(read_sweep, tmp_path / "s.yaml", tmp_path, "slurm")


# ---------------------------------------------------------------- numbers and sizes

NUMBERS = [k for k, f in Config.model_fields.items() if "int" in str(f.annotation) or "float" in str(f.annotation)]
VALUES = (
    *("1e999", "1.0e+999", ".nan", ".inf", "-.inf", "-1", "-0.0", "1.0e+308", "1000000000000", "9" * 90),
    *("9" * 5000, "0x" + "f" * 90, "1:59:59", "1e3", "yes", "'1'", "[]", "{}", "2001-01-01", "0.5", "4.9e-324"),
)


@pytest.mark.parametrize("key", NUMBERS)
def test_whatever_a_number_is_it_is_finite_or_refused(tmp_path: Path, key: str) -> None:
    method = {"steps": "eap-ig", "updates": "diffmask", "penalty": "subnetwork-probing", "sparsity": "edge-pruning"}
    base = f"task: ioi\nmodel: tiny\nmethod: {method.get(key, 'edge-patching' if key == 'edges' else 'acdc')}\n"
    for value in VALUES:
        (tmp_path / "c.yaml").write_text(base + f"{key}: {value}\n")
        try:
            with in_time():
                found = getattr(resolve({}, tmp_path / "c.yaml", None)[0], key)
            assert math.isfinite(found) and found >= 0, (value, found)
        except UserError as error:
            assert "c.yaml" in str(error) and len(str(error)) < 1000, (value, str(error)[:1000])


def test_a_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(UserError, match="--threshold: should be a valid number, got 1000"):
        resolve({"task": "ioi", "model": "tiny", "threshold": 10**400}, None, None)


BOMBS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "many wide slots": (
        lambda t: t["data"].update(
            template=" ".join(f"{{s{i}}}" for i in range(500)),
            slots={f"s{i}": {"range": [0, 999_999]} for i in range(500)},
        ),
        "at most 1,000,000 are drawn from",
    ),
    "one wide list for many": (
        lambda t: t["data"].update(
            template=" ".join(f"{{s{i}}}" for i in range(500)),
            lists={"wide": {"range": [0, 999_999]}},
            slots={f"s{i}": "wide" for i in range(500)},
        ),
        "at most 1,000,000 are drawn from",
    ),
    "many lists": (
        lambda t: t["data"].update(
            template=" ".join(f"{{s{i}}}" for i in range(8000)),
            lists={f"l{i}": ["a", "b"] for i in range(8000)},
            slots={f"s{i}": f"l{i}" for i in range(8000)},
        ),
        "unknown slot 'x'",
    ),
    "many slots, one unknown": (
        lambda t: t["data"].update(template="{nix}", slots={f"s{i}": ["a"] for i in range(20_000)}),
        "unknown slot 'nix'",
    ),
    "a generator of long prompts": (
        lambda t: t.pop("corrupt") and t.update(data={
            "generator": {"name": "repeated-tokens", "words": [f"{i:05}" for i in range(100_000)], "length": 1000}
        }),
        "",
    ),
    "a range without end": (
        lambda t: t["data"]["slots"].update(x={"range": [0, 10**12]}),
        "it should have 1 to 1000000",
    ),
    "answers without end": (
        lambda t: t.update(answers={
            "compare": {"slot": "x", "relation": "less", "among": {"range": [0, 999_999]}}
        }),
        "at most 10,000",
    ),
    "a million examples of a few": (lambda t: t["defaults"].update(examples=1_000_000), "has only 4 distinct prompts"),
    "examples without end": (lambda t: t["defaults"].update(examples=10**12), "examples"),
    "a text without end": (
        lambda t: t["defaults"].update(examples=5) or t["data"].update(template="{x}" + "y" * 900_000),
        "has only 4 distinct prompts",
    ),
    "a name without end": (lambda t: t.update({"k" * 900_000: 1}), "not valid YAML"),
    "positions without end": (lambda t: t.update(score_at={"range": [0, 999_999]}), "score_at: position 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_say_much_are_refused_at_once(tmp_path: Path, name: str) -> None:
    change, hint = BOMBS[name]
    task = deepcopy(TASK)
    change(task)
    (tmp_path / "t.yaml").write_text(json.dumps(task))  # JSON is YAML
    if hint:
        refused(draw, tmp_path / "t.yaml", tmp_path, hint)
    else:
        with in_time():
            draw(tmp_path / "t.yaml")


@pytest.mark.parametrize(
    ("grid", "hint"),
    [
        ({"threshold": {"log": [0.1, 1], "count": 1_000_000}}, "10000"),
        ({k: {"linear": [1, 9], "count": 5000} for k in ("threshold", "penalty")}, "more than 1,000,000 runs"),
        ([{"threshold": {"log": [0.1, 1], "count": 10_000}}] * 300, "more than 1,000,000 runs"),
    ],
)
def test_sweeps_without_end_are_refused_at_once(tmp_path: Path, grid: Any, hint: str) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps({"grid": grid}))
    refused(read_sweep, tmp_path / "s.yaml", tmp_path, hint)


def test_messages_can_be_read() -> None:
    said = unknown("slot", "x" * 10_000, [f"s{i}" for i in range(10_000)])
    assert len(said) < 2000 and "and 9800 more" in said
