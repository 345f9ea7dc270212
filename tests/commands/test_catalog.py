"""`acdc tasks`: the spans of a prompt over its tokens, and JSON."""

from __future__ import annotations

import json

from acdc.commands.catalog import _columns
from acdc.task.load import task_names
from tests.support.tasks import HEAD

ROWS = """{"clean": "So Mary is such a funny writer, isn't", "corrupted": "So John is such a funny writer, isn't"}
{"clean": "So Mary is such a friend, isn't", "corrupted": "So John is such a friend, isn't"}
"""
DATA = "data: {file: rows.jsonl, padding: left, splits: same}\n"


def test_the_spans_of_a_prompt_stand_over_its_tokens(acdc, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = acdc("tasks", "gendered-pronoun", "--model", "tiny").out
    lines = out.splitlines()
    names = lines[lines.index("spans, over the tokens of a prompt (| between tokens, · is a space)") + 2]
    tokens = lines[lines.index(names) + 1]
    assert names.split() == ["start", "name", "is", "phrase", "tag", "END"]
    assert tokens.split()[0] == "So" and tokens.split()[2] == "·is" and tokens.split()[4:] == [",|·isn", "'t"]
    for name, token in zip(names.split(), tokens.split(), strict=True):
        assert names.index(f" {name} " if name != "END" else " END") == tokens.index(f" {token}")


def test_spans_wider_than_the_terminal_go_on_in_the_next_line():
    named = [("a", "one"), ("a", "two"), ("a", "three"), ("long name", "x"), ("b", "y" * 30), ("c", "z")]
    assert _columns(named, 20) == [
        "",
        "  a",
        "  one|two|three",
        "",
        "  long name",
        "  x",
        "",
        "  b",
        "  " + "y" * 30,
        "",
        "  c",
        "  z",
    ]
    many = [(str(i), "x" * 10) for i in range(40)]
    assert _columns(many, 30)[-1] == "  … and 8 more lines"
    assert _columns([("a", "long"), ("a", "er")], 9) == ["", "  a", "  long|er"]
    assert _columns([("a", "long"), ("a", "er")], 8) == ["", "  a", "  long", "", "  a", "  er"]


def test_why_there_are_no_spans_is_one_line(acdc, tmp_path):
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "t.yaml").write_text(HEAD.replace("examples: 1", "examples: 2") + DATA)
    result = acdc("tasks", "t.yaml", "--model", "tiny")
    (line,) = [line for line in result.out.splitlines() if "spans" in line]
    assert line.startswith("no spans: t: --positions needs spans, as prompts have 9 to 10 tokens; state")
    assert json.loads(acdc("tasks", "t.yaml", "--model", "tiny", "--json").out)["spans"] is None


def test_json(acdc):
    every = json.loads(acdc("tasks", "--json").out)
    assert [task["name"] for task in every] == task_names()
    plain = json.loads(acdc("tasks", "ioi", "--json").out)
    assert plain == next(task for task in every if task["name"] == "ioi")
    assert (plain["score_at"], plain["defaults"]["models"]["tiny"]) == ("last", {"threshold": 0.01})
    shown = json.loads(acdc("tasks", "ioi", "--model", "tiny", "--json").out)
    assert shown["spans"] == [
        "start", "IO", "and", "S1", "S1+1", "to the", "place", "period", "S2", "gave a", "object", "END"
    ]  # fmt: skip
    assert (shown["model"], shown["ability"]["accuracy"], shown["ability"]["prompts"]) == ("tiny", 1.0, 100)
