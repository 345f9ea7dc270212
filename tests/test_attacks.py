"""Attacks on what acdc promises: nothing overwritten, nothing run, nothing lost. Each states the right behaviour.

They were written before the mending, by somebody who did not know it; `what` says what happened then.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import xml.dom.minidom
from contextlib import suppress
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import acdc as library
from tests.support.attacks import (
    COMPARE,
    MODEL,
    RUN,
    SEEN,
    STABILITY,
    SWEEP,
    TITLE,
    FullDisk,
    TooLong,
    changed,
    plain,
    process,
    published_file,
    refused,
    safetensors,
    state,
    task_file,
    tensors,
    within,
    written,
)

CIRCUIT = "r/circuit.json"
EXPORT = ("export", CIRCUIT)
EVALUATE = ("evaluate", CIRCUIT)
CHECK = ("check", CIRCUIT, "--against", "or-gate")
QUICK = 5  # seconds of computing until a refusal


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("finished") / "r"
    library.discover("or-gate", "or-gate", out=folder)
    return folder


@pytest.fixture
def here(acdc, finished, tmp_path):
    """Commands in a folder that holds only the finished run `r`."""
    folder = tmp_path / "here"
    folder.mkdir()
    os.chdir(folder)
    shutil.copytree(finished, "r")
    return acdc


# Output that destroys input.


def own_list() -> str:
    return written("list.yaml", {"checks": [{"name": "a", "circuit": CIRCUIT, "against": CIRCUIT}]})


INPUTS = {
    "a link to the circuit": (
        lambda: os.symlink(CIRCUIT, "link.json"),
        (*EXPORT, "--to", "node-link", "-o", "link.json"),
        CIRCUIT,
        "the circuit is replaced through the link",
    ),
    "the decisions that a page shows": (
        lambda: None,
        (*EXPORT, "--to", "html", "-o", "r/log.jsonl"),
        "r/log.jsonl",
        "the log of the run is replaced by the page",
    ),
    "the default target": (
        lambda: shutil.copy(CIRCUIT, "mine.svg"),
        ("export", "mine.svg", "--to", "svg"),
        "mine.svg",
        "a circuit that is called mine.svg is replaced by its picture, though no -o was given",
    ),
    "a golden circuit": (
        lambda: shutil.copy(CIRCUIT, "golden.json"),
        ("check", CIRCUIT, "--against", "golden.json", "--junit", "./r/../golden.json"),
        "golden.json",
        "the golden circuit is replaced by the JUnit report",
    ),
    "a list of checks": (
        own_list,
        ("check", "list.yaml", "--junit", "list.yaml"),
        "list.yaml",
        "the list of checks is replaced by the JUnit report",
    ),
    "a published circuit": (
        published_file,
        ("check", CIRCUIT, "--against", "pub.yaml", "--junit", "pub.yaml"),
        "pub.yaml",
        "the published circuit is replaced by the JUnit report",
    ),
    "a task file": (
        lambda: task_file("m/or-gate.yaml"),
        (*EVALUATE, "--task", "m/or-gate.yaml", "-o", "m/or-gate.yaml"),
        "m/or-gate.yaml",
        "the task file is replaced by the evaluation",
    ),
    "the config of a model": (
        lambda: shutil.copytree(MODEL, "or-gate"),
        (*EVALUATE, "--model", "./or-gate", "-o", "or-gate/config.json"),
        "or-gate/config.json",
        "config.json of the model is replaced by the evaluation",
    ),
    "a task file called config.yaml": (
        lambda: task_file("w/config.yaml"),
        ("run", "--task", "w/config.yaml", "--out", "w", "--force"),
        "w/config.yaml",
        "--force replaces the task file by the run's config.yaml",
    ),
    "prompts called log.jsonl": (
        lambda: (
            written("w/log.jsonl", {"clean": "1", "corrupted": "0"}),
            task_file("w/mine.yaml", data={"file": "log.jsonl", "splits": "same"}),
        ),
        ("run", "--task", "w/mine.yaml", "--model", "or-gate", "--out", "w", "--force"),
        "w/log.jsonl",
        "--force replaces the task's prompts by the run's log",
    ),
    "a reference called compare.json": (
        lambda: (os.mkdir("w"), shutil.copy(CIRCUIT, "w/compare.json")),
        (*COMPARE, "--reference", "w/compare.json", "--out", "w"),
        "w/compare.json",
        "the reference circuit is replaced by the comparison",
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_no_output_destroys_an_input(here, name):
    make, command, path, _ = INPUTS[name]
    make()
    before = Path(path).read_bytes()
    here(*command)
    assert Path(path).read_bytes() == before


# Files of others.

OTHERS = {
    "compare into a run": ("r", lambda: None, (*COMPARE, "--out", "r"), "report.html of the run is replaced"),
    "force on a sweep": (
        "s",
        lambda: (
            written("s/results.csv", SEEN),
            written("s/report.html", SEEN),
            shutil.copytree("r", "s/runs/0.1"),
        ),
        (*RUN, "--out", "s", "--force"),
        "run --force replaces report.html of a sweep",
    ),
    "force on a page of one's own": (
        "w",
        lambda: written("w/report.html", SEEN),
        (*RUN, "--out", "w", "--force"),
        "run --force replaces a report.html that no run made",
    ),
    "temporary files": (
        "w",
        lambda: written("w/.acdc-notes.tmp", SEEN),
        (*RUN, "--out", "w"),
        "a file .acdc-notes.tmp of the user's is removed",
    ),
    "a picture called core.svg": (
        "w",
        lambda: written("w/core.svg", SEEN),
        (*STABILITY, "--out", "w"),
        "stability replaces core.svg",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_others_stay(here, name):
    folder, make, command, _ = OTHERS[name]
    make()
    before = state(folder)
    here(*command)
    assert before.items() <= state(folder).items()


def test_the_folder_of_a_model_is_no_folder_for_a_run(here):
    shutil.copytree(MODEL, "m")
    before = state("m")
    refused(here(*RUN, "--model", "./m", "--out", "m"))
    assert state("m") == before


def test_only_true_forces(here):
    with pytest.raises(library.UserError):
        library.discover("or-gate", "or-gate", out="r", threshold=0.5, force="no")


def test_a_comparison_is_not_replaced_by_another_one(here):
    assert here(*COMPARE, "--out", "c").code == 0
    before = Path("c/compare.json").read_bytes()
    here(*COMPARE, "--sizes", "4", "--out", "c")
    assert Path("c/compare.json").read_bytes() == before


# Links inside a folder that acdc owns.


@pytest.mark.parametrize(
    ("link", "target", "command"),
    [
        ("w/config.yaml", "../new", (*RUN, "--out", "w")),
        ("w/report.html", "../new", (*RUN, "--out", "w")),
        ("w/log.jsonl", "../new", (*RUN, "--out", "w")),
        ("w/.lock", "../new", (*RUN, "--out", "w")),
        ("w/core.json", "../new", (*STABILITY, "--out", "w")),
        ("w/base", "../v", (*STABILITY, "--out", "w")),
        ("w/compare.json", "../new", (*COMPARE, "--out", "w")),
        ("r/circuit.pdf", "../new", (*EXPORT, "--to", "pdf")),
    ],
)
def test_nothing_is_written_through_a_link(here, link, target, command):
    os.mkdir("v")
    os.makedirs(Path(link).parent, exist_ok=True)
    os.symlink(target, link)
    here(*command)
    assert not os.path.exists("new")
    assert os.listdir("v") == []


def test_the_runs_of_a_sweep_stay_in_its_folder(here):
    os.mkdir("v")
    os.mkdir("s")
    os.symlink("../v", "s/runs")
    here("sweep", written("s.yaml", SWEEP), "--out", "s", "--workers", "1", "--no-plots")
    assert os.listdir("v") == []


# Names from files in other languages.


@pytest.mark.parametrize("to", [to for to in ("dot", "html")])
def test_half_a_surrogate_is_no_traceback(here, to):
    changed(CIRCUIT, task__name="\ud800")
    assert here("export", "e.json", "--to", to, "-o", "out").code in (0, 2)


def test_half_a_surrogate_in_a_note(here):
    changed(CIRCUIT, notes=["\ud800"])
    assert here("evaluate", "e.json").code in (0, 2)


@pytest.mark.parametrize("name", ['a"];evil["', "back\\", "x\ny"])
def test_names_end_no_text_of_dot(here, name):
    changed(CIRCUIT, task__name=name, model__name=name)
    if here("export", "e.json", "--to", "dot", "-o", "out").code == 0:
        text = re.sub(r'"(\\.|[^"\\])*"', "", Path("out").read_text(encoding="utf-8"), flags=re.S)
        assert '"' not in text
        assert "evil" not in text


@pytest.mark.parametrize("to", ["svg", "pdf", "png", "html"])
def test_names_are_no_mathematics(here, to):
    changed(CIRCUIT, task__name="$\\frac{$", model__name="$x$y$")
    assert here("export", "e.json", "--to", to, "-o", "out").code == 0


def test_titles_of_curves_are_no_mathematics(here):
    name = task_file("$\\frac{$.yaml")
    assert here(*COMPARE[:1], "--tasks", name, *COMPARE[3:-1], "--plots", "--out", "c").code == 0


def test_the_name_of_a_task_is_no_markup(here):
    name = task_file("<img src=x onerror=alert(1)>.yaml")
    if here("run", "--task", name, "--out", "w").code == 0:
        assert "<img src=x" not in Path("w/report.html").read_text(encoding="utf-8")
        xml.dom.minidom.parse("w/circuit.svg")


def test_a_noncharacter_in_a_report(here):
    entry = {"name": "a\ufffe", "circuit": CIRCUIT, "against": "or-gate"}
    if here("check", written("list.yaml", {"checks": [entry]}), "--junit", "j.xml").code == 0:
        xml.dom.minidom.parse("j.xml")


@pytest.mark.parametrize("name", ["@SUM(A1)", "-2+3", "+1"])
def test_no_cell_is_a_formula(here, name):
    os.rename("r", name)
    lines = here("results", ".", "--columns", "run", "--csv").out.splitlines()
    assert lines[1].strip('"')[0] not in "=+-@\t\r"


# The recorded command.


@pytest.mark.parametrize("name", ["-x.yaml", "~.yaml", "a=$(touch x).yaml"])
def test_the_recorded_command_names_the_task(here, name):
    task_file(name)
    assert here("run", f"--task={name}", "--out", "one").code == 0
    replays(here)


@pytest.mark.parametrize(
    "options",
    [
        ("--abs", "--no-direct", "--order", "random", "--seed", "3"),
        ("--batch", "1"),
    ],
)
def test_the_recorded_command_gives_the_same_bytes(here, options):
    assert here("run", "-t", "greater-than", "-m", "tiny", "--examples", "4", *options, "--out", "one").code == 0
    replays(here)


def test_the_recorded_command_tells_a_folder_from_a_bundled_model(here):
    shutil.copytree(MODEL.with_name("tiny"), "or-gate")
    command = ("run", "-t", "greater-than", "-m", "./or-gate", "--examples", "4", "--threshold", "0.1")
    assert here(*command, "--out", "one").code == 0
    replays(here)


def replays(here) -> None:
    """Assert that the command in `one` gives the same circuit.json, and nothing else."""
    words = shlex.split(json.loads(Path("one/circuit.json").read_text(encoding="utf-8"))["command"])
    before = set(os.listdir())
    assert here(*words[1:], "--out", "two").code == 0
    assert Path("two/circuit.json").read_bytes() == Path("one/circuit.json").read_bytes()
    assert set(os.listdir()) - before == {"two"}


# Results lost on the way out.


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ((*EVALUATE, "-o", "out"), "out"),
        ((*CHECK, "--junit", "out"), "out"),
        ((*RUN, "--out", "w"), "w/report.html"),
    ],
)
def test_files_are_written_though_stdout_is_full(here, monkeypatch, command, file):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", FullDisk())
        here(*command)
    assert Path(file).exists()


def test_a_run_needs_no_stderr(here, monkeypatch):
    with monkeypatch.context() as patch, suppress(OSError):
        patch.setattr(sys, "stderr", FullDisk())
        here(*RUN, "--out", "w")
    assert Path("w/circuit.json").exists()


@pytest.mark.parametrize("encoding", ["latin-1", "koi8-r", "cp437"])
def test_a_page_on_stdout_is_utf8_whatever_the_terminal(here, monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert here(*EXPORT, "--to", "html", "-o", "-").code == 0
    sys.stdout.flush()
    assert "charset" in raw.getvalue().decode()


@pytest.mark.parametrize("command", [("methods", "acdc"), ("tasks",), CHECK])
def test_tables_on_a_terminal_of_one_byte(here, monkeypatch, command):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="iso-8859-5"))
    assert here(*command).code == 0


# Control characters on the terminal.


def folder_name() -> tuple[str, ...]:
    os.rename("r", TITLE)
    return ("results", ".", "--columns", "run")


def model_name() -> tuple[str, ...]:
    shutil.copytree(MODEL, TITLE)
    return ("models", f"./{TITLE}")


def metrics_key() -> tuple[str, ...]:
    changed("r/metrics.json", "r/metrics.json", metric={TITLE: [0, None, None]})
    return ("results", ".")


def of_list(name: str) -> tuple[str, ...]:
    return ("check", written("list.yaml", {"checks": [{"name": name, "circuit": CIRCUIT, "against": "or-gate"}]}))


TERMINAL = {
    "weights of a circuit": lambda: ("diff", CIRCUIT, changed(CIRCUIT, model__hash=TITLE)),
    "metrics of a golden circuit": lambda: (*CHECK[:3], changed(CIRCUIT, metrics={TITLE: 1.0})),
    "notes of a circuit": lambda: ("evaluate", changed(CIRCUIT, notes=["\x9b31m"])),
    "name of a run's folder": folder_name,
    "name of a model's folder": model_name,
    "key of metrics.json": metrics_key,
    "model of a task": lambda: ("tasks", task_file("mine.yaml", defaults=DEFAULTS | {"model": TITLE})),
    "source of a task": lambda: ("tasks", task_file("mine.yaml", source="a\x9b31m")),
    "file of a task": lambda: (*RUN[:2], task_file("mine.yaml", data={"file": f"{TITLE}.jsonl"})),
    "model of a config": lambda: ("run", "--config", written("c.yaml", {"task": "or-gate", "model": TITLE})),
    "exclusion of a sweep": lambda: ("sweep", written("s.yaml", SWEEP | {"exclude": {TITLE: {"threshold": 3}}})),
    "reference of a sweep": lambda: ("sweep", written("s.yaml", SWEEP | {"references": {TITLE: "x"}}), "--dry-run"),
    "a name that runs backwards": lambda: of_list("\u202ederiap"),
}
DEFAULTS = {"metric": "l2", "threshold": 0.01, "examples": 1, "ablation": "zero"}


@pytest.mark.parametrize("name", TERMINAL)
def test_nothing_from_files_rules_the_terminal(here, name):
    result = here(*TERMINAL[name]())
    plain(result.out + result.err)


# Ctrl-C at early moments.

INTERRUPT = """
import os, signal, sys
from acdc import start
signal.signal(signal.SIGINT, start._interrupt)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "module",
    [
        "typer",
        "acdc.commands.catalog",
        "yaml",
    ],
)
def test_an_interrupt_while_modules_are_loaded(here, module):
    done = process(INTERRUPT.format(name=module), *RUN, "--out", "w")
    assert done.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_before_a_file_is_renamed(here, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert here(*RUN, "--out", "w").code == 130
    assert not list(Path("w").glob("*.tmp"))
    assert here(*RUN, "--out", "w").code == 0
    assert state("w").keys() == {path.replace("r/", "w/", 1) for path in state("r")}


# Bombs.


def weights(header: dict, body: bytes = b"", size: int | None = None) -> str:
    """A copy of or-gate with these weights; returns its path."""
    shutil.copytree(MODEL, "m")
    written("m/model.safetensors", safetensors(header, body))
    if size:
        os.truncate("m/model.safetensors", size)
    return "./m"


def long_tail() -> tuple[str, ...]:
    header, body = tensors()
    return (*RUN, "--model", weights(header, body, 20 * 2**30))


def large_tensor() -> tuple[str, ...]:
    header, body = tensors()
    size = 20 * 10**9
    header["x"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [len(body), len(body) + size]}
    return ("models", weights(header, body, 8 + len(json.dumps(header)) + len(body) + size))


def many_tensors() -> tuple[str, ...]:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return ("models", weights({f"x{i}": empty for i in range(200_000)}))


def many_lines() -> tuple[str, ...]:
    written("mine.jsonl", b"\n" * 10_000_000)
    return (*RUN[:2], task_file("mine.yaml", data={"file": "mine.jsonl", "splits": "same"}))


def many_edges() -> tuple[str, ...]:
    edge = {"name": "input->a0.h0<v>", "change": 1.0, "score": 1.0}
    return ("diff", CIRCUIT, changed(CIRCUIT, edges=[edge] * 50_000))


BOMBS = {
    "very many tensors": (many_tensors, "each of 200,000 tensors is read before their names are looked at"),
    "a large published graph": (
        lambda: (*CHECK[:3], published_file(graph={"layers": 128, "heads": 128})),
        "more than 20 s and 2 GB for a file of 500 bytes of another graph",
    ),
    "a circuit of a model that can't be": (
        lambda: ("diff", CIRCUIT, changed(CIRCUIT, model__n_layers=300, model__n_heads=64)),
        "more than 12 s, though no model may have more than 17,000 nodes",
    ),
    "edges named twice": (many_edges, None),
    "lines without an end": (many_lines, None),
    "orders": (lambda: (*STABILITY[:-4], "--orders", "100000000", "--out", "w"), "hangs, with gigabytes of memory"),
    "resamples": (
        lambda: (*STABILITY[:-1], "10000000", "--out", "w"),
        "begins ten million runs",
    ),
    "points of a path": (
        lambda: (
            *("run", "-t", "greater-than", "-m", "tiny", "--examples", "2", "--method", "eap-ig", "--edges", "9"),
            *("--steps", "1000000"),
        ),
        "begins a million passes",
    ),
    "a tensor without a length": (
        lambda: ("models", weights({"x": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 0]}})),
        None,
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_and_large_numbers_are_refused_at_once(here, monkeypatch, name):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # only computing is measured
    command = BOMBS[name][0]()
    with within(QUICK):
        refused(here(*command))


@pytest.mark.parametrize("make", [long_tail, large_tensor])
def test_a_header_that_lies_is_seen_before_the_weights_are_read(here, monkeypatch, make):
    class Hash:
        real = hashlib.sha256

        def __init__(self, data: bytes = b"") -> None:
            self.hash = Hash.real(data)

        def update(self, data: bytes) -> None:
            if len(data) > 2**20:
                read.append(len(data))
                raise TooLong
            self.hash.update(data)

        def hexdigest(self) -> str:
            return self.hash.hexdigest()

    read: list[int] = []
    command = make()
    monkeypatch.setattr(hashlib, "sha256", Hash)
    refused(here(*command))
    assert read == []


def test_sizes_of_a_foreign_file_are_bounded(here):
    from acdc.files.eap_ig import read_eap_ig

    written("e.json", {"cfg": {"n_layers": 10**9, "n_heads": 10**9}, "nodes": {}, "edges": {}})
    with within(QUICK), pytest.raises(library.UserError):
        read_eap_ig(Path("e.json"))


# Refused late.


def late_list(**second: object) -> tuple[str, ...]:
    first = {"name": "x", "circuit": CIRCUIT, "against": "or-gate"}
    return ("check", written("list.yaml", {"checks": [first, {"name": "y", "against": "or-gate", **second}]}))


LATE = {
    "a model of a list": (lambda: late_list(run={"task": "or-gate", "model": "./none"}), "the first check is made"),
    "a circuit of a list": (lambda: late_list(circuit="none.json"), "the first check is made, none.json is relative"),
    "a folder for -o": (lambda: (*EVALUATE, "-o", "none/out.json"), "found out after the evaluation"),
    "a directory for -o": (lambda: (*EVALUATE, "-o", "r"), "found out after the evaluation"),
    "an empty -o": (lambda: (*EVALUATE, "-o", ""), "found out after the evaluation"),
    "a folder for --junit": (lambda: (*CHECK, "--junit", "none/j.xml"), "found out after the check"),
    "a model of tasks": (lambda: ("tasks", "or-gate", "--model", "./none"), "half of the answer is printed first"),
}


@pytest.mark.parametrize("name", LATE)
def test_what_can_be_known_is_checked_before_anything_is_done(here, name):
    refused(here(*LATE[name][0]()))


def test_all_thresholds_are_looked_at_first(here):
    refused(here(*RUN, "--threshold", "0.1,1e-12", "--out", "w"))
    assert not Path("w/threshold-0.1").exists()


# Accepted silently.


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (("results", ""), "shows the current folder"),
        (("results", ".", "--columns", ""), "shows the default columns"),
        (("results", ".", "--csv", "--json"), "prints JSON"),
        (("diff", CIRCUIT, CIRCUIT, "--tolerance", "inf"), "no score ever differs"),
        ((*RUN, "--batch", "1000000000000", "--out", "w"), "runs"),
        (("sweep", "s.yaml", "--dry-run", "--workers", "1000000000"), "a billion processes"),
        (("sweep", "s.yaml", "--dry-run", "--threads", "1000000000"), "a billion threads"),
        ((*COMPARE, "--memory", "0.0MB", "--out", "c"), "runs"),
    ],
)
def test_options_without_sense_are_refused(here, command, what):
    written("s.yaml", SWEEP)
    refused(here(*command))


def test_an_unknown_tensor(here):
    header, body = tensors()
    header["layers.0.q.scale"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
    refused(here(*RUN, "--model", weights(header, body + bytes(4))))


# Errors of the library.


def calls():
    made = library.discover("or-gate", "or-gate")
    return {
        "a number as out": lambda: library.discover("or-gate", "or-gate", out=123),
        "a NUL in out": lambda: library.discover("or-gate", "or-gate", out="a\0b"),
        "an empty out": lambda: library.discover("or-gate", "or-gate", out=""),
        "no circuit to evaluate": lambda: library.evaluate(None),
        "an empty model": lambda: library.evaluate(made, model=""),
        "half an edge": lambda: library.evaluate(made, minimality=2.5),
        "no path": lambda: library.save(made, None),
        "half a surrogate": lambda: library.save(made, "\ud800"),
        "no circuit to save": lambda: library.save(None, "x"),
        "a device without numbers": lambda: library.load_model("or-gate", device="meta"),
        "no dtype": lambda: library.load_model("or-gate", dtype=None),
        "a list of dtypes": lambda: library.load_model("or-gate", dtype=["float32"]),
    }


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a number as out", "TypeError"),
        ("a NUL in out", "ValueError"),
        ("an empty out", "the current folder is filled"),
        ("no circuit to evaluate", "TypeError"),
        ("an empty model", "the circuit's model is taken"),
        ("half an edge", "TypeError"),
        ("no path", "TypeError"),
        ("half a surrogate", "UnicodeEncodeError"),
        ("no circuit to save", "AttributeError"),
        ("a device without numbers", "RuntimeError"),
        ("no dtype", "TypeError"),
        ("a list of dtypes", "TypeError"),
    ],
)
def test_mistakes_in_python_are_user_errors(here, name, what):
    before = set(os.listdir())
    with pytest.raises(library.UserError):
        calls()[name]()
    assert set(os.listdir()) == before


# Messages that don't help.


@pytest.mark.parametrize(
    ("command", "words", "what"),
    [
        ((*RUN, "--seed", "1e3"), ("--seed", "1e3"), "says that a string can't be parsed, not which"),
        ((*RUN, "--examples", "many"), ("--examples", "many"), "says that a string can't be parsed, not which"),
        ((*RUN, "--config", ""), ("--config", "is empty"), "calls it '.', and doesn't name the option"),
        (("models", ""), ("models", "is empty"), "says that config.json is not found, not of what"),
        (("run", "--config", "c.yaml"), ("direct", "true"), "should be a valid boolean; doesn't say: true or false"),
        ((*RUN, "--device", "cuda:99"), ("not on this machine",), "Torch not compiled with CUDA enabled"),
    ],
)
def test_messages_name_the_value_and_the_remedy(here, command, words, what):
    written("c.yaml", {"task": "or-gate", "direct": "no"})
    refused(here(*command), *words)


def test_the_command_of_a_warning_can_be_pasted(here):
    result = here("run", "-t", "greater-than", "-m", "tiny", "--examples", "2", "--threshold", "0.5")
    assert "acdc tasks greater-than --model tiny" in result.err


# Surroundings that change results.


@pytest.mark.parametrize("name", ["rc", "dtype", "errors", "epoch", "generator"])
def test_the_state_of_a_notebook_changes_nothing(here, monkeypatch, name):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000") if name == "epoch" else None
    rc = {"font.size": 30, "svg.fonttype": "none", "svg.hashsalt": "x", "axes.facecolor": "red", "text.usetex": True}
    random = torch.random.get_rng_state()
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64 if name == "dtype" else dtype)
        with (
            matplotlib.rc_context(rc if name == "rc" else {}),
            np.errstate(all="raise" if name == "errors" else "warn"),
        ):
            library.discover("or-gate", "or-gate", out="w")
    finally:
        torch.set_default_dtype(dtype)
    for file in ("circuit.json", "circuit.svg", "report.html", "log.jsonl", "config.yaml"):
        assert Path("w", file).read_bytes() == Path("r", file).read_bytes(), file
    assert name != "generator" or torch.equal(random, torch.random.get_rng_state())


def test_a_strange_date_is_no_traceback(here, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert here(*EXPORT, "--to", "pdf", "-o", "x.pdf").code in (0, 2)


def test_a_date_changes_no_picture(here, monkeypatch):
    assert here(*EXPORT, "--to", "pdf", "-o", "x.pdf").code == 0
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert here(*EXPORT, "--to", "pdf", "-o", "y.pdf").code == 0
    assert Path("x.pdf").read_bytes() == Path("y.pdf").read_bytes()


# Processes that import from the current folder.

TRAP = "open(%r, 'w').close()\nraise SystemExit('trapped')\n"


@pytest.mark.parametrize("module", ["typing_extensions.py", "acdc/__init__.py"])
def test_a_worker_runs_nothing_from_the_current_folder(here, module):
    trap = Path("TRAPPED").absolute()
    written(f"c/{module}", TRAP % str(trap))
    os.chdir("c")
    here("sweep", written("../s.yaml", SWEEP), "--workers", "1", "--no-plots", "--out", "../s")
    os.chdir("..")
    assert not trap.exists()


def test_a_run_runs_nothing_from_the_current_folder(here):
    trap = Path("TRAPPED").absolute()
    for module in ("json.py", "torch.py", "acdc.py", "matplotlib/__init__.py", "sitecustomize.py", "numpy.py"):
        written(module, TRAP % str(trap))
    done = process("", *RUN, "--out", "w")
    assert done.returncode == 0, done.stderr
    assert not trap.exists()


# Left behind after a refusal.


@pytest.mark.parametrize(
    "command",
    [
        (*RUN, "--threshold", "1e-12", "--out", "w"),
        (*RUN, "--threshold", "1e-12", "--out", "a/b/c"),
        (*RUN, "--threshold", "1e-12"),
        (*STABILITY, "--threshold", "1e-12", "--out", "w"),
    ],
)
def test_a_refusal_leaves_nothing(here, command):
    before = set(os.listdir())
    assert here(*command).code == 2
    assert set(os.listdir()) == before
