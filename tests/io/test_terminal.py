"""What reaches the terminal and the files beside it: nothing that steers, in any encoding, with any stream closed."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from acdc.commands import check
from acdc.files.table import every_column, to_csv
from acdc.io.files import to_csv as csv_of
from acdc.io.terminal import printable
from tests.support import ROOT
from tests.support.tasks import TASK

GATE = ["--model", "or-gate", "--device", "cpu"]
STEERING = "\x1b]0;title\x07\x9b31m\u202e\x7f"  # sets a title, turns red, turns text round
SHOWN = "\\u001b]0;title\\u0007\\u009b31m\\u202e\\u007f"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain τ – 語 😀\n\tindented", "plain τ – 語 😀\n\tindented"),
        (STEERING, SHOWN),
        ("\0\r\b\x0b\x85\u2028\u2066", r"\u0000\u000d\u0008\u000b\u0085\u2028\u2066"),
        ("\udcff.yaml", r"\udcff.yaml"),  # a name of a file that is not UTF-8
    ],
)
def test_what_steers_is_shown_as_json_writes_it(text, expected):
    assert printable(text) == expected
    assert json.loads(f'"{printable(STEERING)}"') == STEERING


def steer(text):
    """A text for YAML, in double quotes."""
    return json.dumps(text)


def test_no_text_of_a_file_steers_the_terminal(acdc, tmp_path):
    (tmp_path / "mine.yaml").write_text(TASK.replace("description: ", f"description: {steer(STEERING)}  # "))
    (tmp_path / "k.yaml").write_text(TASK + f"{steer(STEERING)}: 1\n")
    (tmp_path / "c.yaml").write_text(f"checks: [{{name: {steer(STEERING)}, circuit: c, against: none.json}}]\n")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text(
        "{task: ioi, model: tiny, metric: kl, ablation: zero, examples: 1, seed: 0}"
    )
    (tmp_path / "r" / "failure.json").write_text(json.dumps({"message": STEERING}))
    for command in (
        ["tasks", "mine.yaml"],
        ["tasks", "k.yaml"],
        ["check", "c.yaml"],
        ["results", "r"],
        ["results", ".", "--csv"],
        ["methods", STEERING],
        ["run", f"--{STEERING}"],
        [STEERING],
    ):
        result = acdc(*command)
        both = result.out + result.err
        assert r"\u001b]0;" in both or r"\x1b]0;" in both, (command, both)  # the second is Python's, of a value
        assert printable(both) == both


def test_a_message_is_one_line_whatever_it_names(acdc):
    result = acdc("run", "--task", "a\nacdc: all is well")
    assert result.code == 2 and result.err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "cp1252"])
def test_what_an_encoding_lacks_is_shown_as_json_writes_it(tmp_path, encoding):
    command = [sys.executable, "-m", "acdc.start", "run", "--task", "or-gate", *GATE, "--out", "é😀"]
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode(encoding)
    assert r"\u03c4 = 0.01" in out and r"\ud83d\ude00" in out and ("é" in out) == (encoding != "ascii")


# ---------------------------------------------------------------- closed streams

RUN = ["run", "--task", "or-gate", *GATE]
COMMANDS = {
    "run": ([*RUN, "--threshold", "0.1,0.2", "--out", "new"], "new/threshold-0.2/circuit.json"),
    "evaluate": (["evaluate", "r/circuit.json", "-o", "e.json"], "e.json"),
    "check": (["check", "list.yaml", "--junit", "j.xml"], "j.xml"),
    "sweep": (["sweep", "s.yaml", "--no-plots"], "sweeps/s/report.html"),
    "compare": (
        ["compare", "--tasks", "or-gate", *GATE, "--methods", "random", "--sizes", "1", "--no-plots", "--out", "c"],
        "c/report.html",
    ),
    "stability": (
        ["stability", *RUN[1:], "--seeds", "1", "--resamples", "0", "--orders", "0", "--out", "s"],
        "s/stability.json",
    ),
}


@pytest.mark.parametrize("closed", ["read by nobody", "stdout", "stderr", "both"])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_file_is_lost_with_a_stream(acdc, tmp_path, monkeypatch, name, closed):
    acdc(*RUN, "--out", "r")
    entry = "circuit: r/circuit.json, against: r/circuit.json"
    (tmp_path / "list.yaml").write_text(f"checks: [{{name: a, {entry}}}, {{name: b, {entry}}}]\n")
    (tmp_path / "s.yaml").write_text("base: {task: or-gate, model: or-gate}\ngrid: {seed: [0]}\n")
    command, file = COMMANDS[name]
    if closed == "read by nobody":
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, "stdout", open(writer, "w"))  # noqa: SIM115
    if closed in ("stdout", "both"):
        monkeypatch.setattr(sys, "stdout", None)
    if closed in ("stderr", "both"):
        monkeypatch.setattr(sys, "stderr", None)
    result = acdc(*command)
    assert result.code == 0 and "Traceback" not in result.err
    assert (tmp_path / file).stat().st_size > 100


WAYS = [">&-", "2>&-", "<&-", ">&- 2>&-", "| head -n 0", "2>/dev/full"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run with all streams open."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "-m", "acdc.start", *RUN, "--out", "whole"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert "files     whole/" in done.stdout
    return folder / "whole"


@pytest.mark.parametrize("how", [*WAYS[:2], *(pytest.param(how, marks=pytest.mark.slow) for how in WAYS[2:])])
def test_a_shell_may_close_what_it_likes(tmp_path, whole, how):
    shell = f'set -o pipefail; "$@" {how}'
    command = ["bash", "-c", shell, "-", sys.executable, "-m", "acdc.start", *RUN, "--out", "r"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory: about" in done.stderr or "2>" in how
    assert done.stderr.count("\n") == ("2>" not in how)
    for name in ("circuit.json", "log.jsonl", "config.yaml", "circuit.svg", "report.html"):
        assert (tmp_path / "r" / name).read_bytes() == (whole / name).read_bytes()


def test_a_full_disk_below_stdout_is_one_message():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "acdc.start", "tasks"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "acdc: No space left on device\n")


def test_an_exported_file_has_the_same_bytes_on_stdout(acdc, tmp_path):
    acdc(*RUN, "--out", "r")
    for to in ("svg", "html", "graphml", "dot"):
        acdc("export", "r/circuit.json", "--to", to, "-o", f"c.{to}")
        assert (
            acdc("export", "r/circuit.json", "--to", to, "-o", "-").out.encode() == (tmp_path / f"c.{to}").read_bytes()
        )


# ---------------------------------------------------------------- XML and CSV


def test_the_report_of_checks_is_xml_whatever_their_names(acdc, tmp_path, monkeypatch):
    golden = ROOT / "configs" / "golden"
    pair = f"circuit: {golden / 'ioi.json'}, against: {golden / 'ioi.json'}, edits: 0"
    (tmp_path / "c.yaml").write_text(f"checks: [{{name: {steer(STEERING + '<&')}, {pair}}}]\n")
    monkeypatch.setattr(check, "check_circuit", lambda *_: check.Outcome(STEERING + "<&", (STEERING,)))
    assert acdc("check", "c.yaml", "--junit", "j.xml").code == 1
    (case,) = ElementTree.parse(tmp_path / "j.xml").iter("testcase")
    assert case.get("name") == SHOWN + "<&"
    assert SHOWN in case.find("failure").text


def test_no_cell_of_a_table_is_a_formula():
    """https://owasp.org/www-community/attacks/CSV_Injection lists the characters."""
    starts = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"]
    rows = list(csv.reader(io.StringIO(csv_of([starts, ["a=1", "", None, -1, -0.5, 1e-07, True]]), newline="")))
    assert rows == [[f"'{printable(text)}" for text in starts], ["a=1", "", "", "-1", "-0.5", "1e-07", "true"]]


def test_a_table_of_runs_has_no_formula_either():
    row = dict.fromkeys(every_column([])) | {"run": "=cmd|' /C calc'!A0", "model": "@x", "value": -0.25, "direct": True}
    (read,) = csv.DictReader(io.StringIO(to_csv([row])))
    assert (read["run"], read["model"], read["value"]) == ("'=cmd|' /C calc'!A0", "'@x", "-0.25")
    assert read["direct"] == "true" and read["task"] == ""
