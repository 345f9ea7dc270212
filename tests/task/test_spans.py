"""Spans: each token of a prompt belongs to one, named by the task. Expected spans are written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from acdc.errors import TaskError
from acdc.io.yaml_file import merge
from acdc.model.checkpoint import open_checkpoint
from acdc.task.draw import pools
from acdc.task.load import load_task, task_names
from acdc.task.schema import Task
from acdc.task.template import parse
from acdc.task.tokenize import Data, Tokenizer, make_data
from tests.support.assets import gpt2_tokenizer, smollm2
from tests.support.tasks import HEAD
from tests.support.tokenizers import Digits, Fast, Pieces, llama_like, words_of


def task_of(folder: Path, data: dict[str, Any], **keys: Any) -> Task:
    """A task with these data, whose corrupted prompts have other words in the slot `a`."""
    corrupt = {} if "rows" in data or "file" in data or "generator" in data else {"corrupt": {"redraw": ["a"]}}
    task = merge(yaml.safe_load(HEAD), {"data": {"splits": "same"} | data} | corrupt | keys)
    (folder / "t.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return load_task(str(folder / "t.yaml"))


@cache
def gpt2() -> Tokenizer:
    return gpt2_tokenizer()


@cache
def of_smollm2() -> Tokenizer:
    smollm2()
    return open_checkpoint("smollm2").tokenizer


def spans_of(task: Task, tokenizer: Tokenizer, example: int = 0, n: int | None = None) -> list[tuple[str, str]]:
    """The spans of a prompt in order, padding as "": name and tokens, with | between."""
    data = make_data(task, tokenizer, n or task.defaults.examples, 0, positions=True)
    return by_span(data, tokenizer, example)


def by_span(data: Data, tokenizer: Tokenizer, example: int) -> list[tuple[str, str]]:
    split = data.discovery
    assert split.spans is not None and split.spans.shape == split.clean.shape and split.spans.dtype == np.int64
    names = ["" if span < 0 else data.spans[span] for span in split.spans[example]]
    pairs = zip(names, tokenizer.pieces(split.clean[example].tolist()), strict=True)
    return [(name, "|".join(token for _, token in tokens)) for name, tokens in groupby(pairs, key=lambda pair: pair[0])]


# ---------------------------------------------------------------- templates


IOI = [
    ("start", "Then|,"),
    ("IO", " Patrick"),
    ("and", " and"),
    ("S1", " Mary"),
    ("S1+1", " went"),
    ("to the", " to| the"),
    ("place", " station"),
    ("period", "."),
    ("S2", " Mary"),
    ("gave a", " gave| a"),
    ("object", " drink"),
    ("END", " to"),
]


@pytest.mark.parametrize("tokenizer", [gpt2, of_smollm2, lambda: Fast("tiny"), Pieces])
def test_ioi_has_the_names_of_the_literature(tokenizer: Callable[[], Tokenizer]) -> None:
    found = spans_of(load_task("ioi"), tokenizer(), n=2)
    assert found == IOI
    assert make_data(load_task("ioi"), tokenizer(), 2, 0, positions=True).spans == tuple(name for name, _ in IOI)


def test_years_are_xx_and_yy() -> None:
    found = spans_of(load_task("greater-than"), gpt2(), n=1)
    assert [name for name, _ in found] == ["start", "noun", "lasted", "XX", "YY", "to", "END"]
    assert found[2] == ("lasted", " lasted| from| the| year")
    xx, yy, end = (dict(found)[name] for name in ("XX", "YY", "END"))
    assert (xx, len(xx), len(yy)) == (end, 3, 2)
    digits = spans_of(load_task("greater-than-digits"), of_smollm2(), n=1)
    shape = [(name, re.sub(r"\d", "n", tokens)) for name, tokens in digits[3:]]
    # The space is a token there, and belongs to the number that it stands before.
    assert shape == [("XX", " |n|n"), ("YY", "n|n"), ("to", " to"), ("XX2", " |n"), ("END", "n")]


def test_a_template_without_names_has_its_slots_and_the_texts_between(tmp_path: Path) -> None:
    data = {
        "template": "So {a} met {b.name}, {{{c}}}. {a} {c}{d}\n {b.job} said",
        "slots": {
            "a": ["Mary", "John"],
            "b": {"columns": ["name", "job"], "rows": [["Paul", "doctor"]]},
            "c": ["Rome"],
            "d": ["'s"],
        },
    }
    task = task_of(tmp_path, data)
    found = spans_of(task, gpt2())
    a = found[1][1]
    assert a in (" Mary", " John")
    assert found == [
        ("start", "So"),
        ("a.1", a),
        ("after a.1", " met"),
        ("b.name", " Paul"),
        ("after b.name", ",| {"),
        ("c.1", "R|ome"),
        ("after c.1", "}."),
        ("a.2", a),
        ("c.2", " Rome"),
        ("d", "'s"),
        ("b.job", "\n| doctor"),  # white space between slots belongs to the second
        ("END", " said"),
    ]


@pytest.mark.parametrize("space", ["prepend", "first", "always"])
def test_a_space_that_is_a_token_belongs_to_what_it_is_part_of(tmp_path: Path, space: str) -> None:
    data = {"template": "{a} gave 5 {b} to", "slots": {"a": ["Mary", "John"], "b": ["ring"]}}
    tokenizer = llama_like(["Mary", "John", "gave", "ring", "to"], space)
    found = spans_of(task_of(tmp_path, data), tokenizer)
    assert found[1:] == [("after a", "▁gave|▁|5"), ("b", "▁ring"), ("END", "▁to")]
    assert found[0] in [("a", "▁Mary"), ("a", "▁John")]
    named = {**data, "spans": {"who": "{a}", "gave": " gave", "five": " 5", "rest": " {b} to"}}
    found = spans_of(task_of(tmp_path, named), tokenizer)
    assert found[1:] == [("gave", "▁gave"), ("five", "▁|5"), ("rest", "▁ring"), ("END", "▁to")]


@pytest.mark.parametrize(
    ("tokenizer", "japan", "face", "end"),
    [
        # As the library tokenizers has them: in GPT-2 a byte or more each, behind another's byte for the space.
        (gpt2, [" \ufffd", "\ufffd", "\ufffd", "\ufffd", "\ufffd"], [" 🙂"], [" é"]),
        (of_smollm2, [" \ufffd", "\ufffd", "\ufffd", "本"], [" 🙂"], [" é"]),
        (
            lambda: llama_like(["Mary", "John"], "prepend"),
            ["▁", "<0xE6>", "<0x97>", "<0xA5>", "<0xE6>", "<0x9C>", "<0xAC>"],
            ["▁", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"],
            ["▁", "<0xC3>", "<0xA9>"],
        ),
    ],
    ids=["gpt2", "smollm2", "llama"],
)
def test_characters_of_several_tokens(
    tmp_path: Path, tokenizer: Callable[[], Tokenizer], japan: list[str], face: list[str], end: list[str]
) -> None:
    data = {"template": "{a} {b} {c} é", "slots": {"a": ["Mary", "John"], "b": ["日本"], "c": ["🙂"]}}
    found = spans_of(task_of(tmp_path, data), tokenizer())
    *rest, last = end
    expected = [("b", "|".join(japan)), ("c", "|".join(face))]
    assert found[1:] == [*expected, *([("after c", "|".join(rest))] if rest else []), ("END", last)]


def test_a_normalizer_may_change_lengths(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers

    words = ["[UNK]", "finest", "mary", "john", "said"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    data = {"template": "ﬁneﬆ  {a} said", "slots": {"a": ["Mary", "John"]}}
    found = spans_of(task_of(tmp_path, data), Fast("nfkc", backend))
    assert found[0] == ("start", "finest")
    assert found[1] in [("a", "mary"), ("a", "john")]
    assert found[2:] == [("END", "said")]


def test_templates_of_unequal_length_join_their_spans_by_name(tmp_path: Path) -> None:
    templates = [
        {"clean": "{a} is here, isn't", "spans": {"who": "{a}", "is": " is", "where": " here", "tag": ", isn't"}},
        {"clean": "So {a} isn't, is", "spans": {"So": "So", "who": " {a}", "is": " isn't", "tag": ", is"}},
        "So {a} is not here",
    ]
    data = {"templates": templates, "slots": {"a": ["Mary", "John", "Paul"]}, "padding": "left", "bos": True}
    task = task_of(tmp_path, data, defaults={"examples": 3})
    tokenizer = gpt2()
    used = make_data(task, tokenizer, 3, 0, positions=True)
    shown = [[(n, re.sub("Mary|John|Paul", "X", t)) for n, t in by_span(used, tokenizer, i)] for i in range(3)]
    pad, bos = "<|endoftext|>", ("BOS", "<|endoftext|>")
    assert shown[0] == [bos, ("who", "X"), ("is", " is"), ("where", " here"), ("tag", ",| isn"), ("END", "'t")] or (
        shown[0] == [("", pad), bos, ("who", "X"), ("is", " is"), ("where", " here"), ("tag", ",| isn"), ("END", "'t")]
    )
    assert shown[1][-5:] == [("So", "So"), ("who", " X"), ("is", " isn|'t"), ("tag", ","), ("END", " is")]
    assert shown[2][-5:] == [bos, ("start", "So"), ("a", " X"), ("after a", " is| not"), ("END", " here")]
    assert used.spans == ("BOS", "who", "is", "where", "tag", "So", "start", "a", "after a", "END")
    assert used.discovery.spans is not None
    assert ((used.discovery.spans < 0).sum(1) == used.discovery.pad).all() and used.discovery.pad.any()


def test_end_is_the_last_scored_token_not_the_last(tmp_path: Path) -> None:
    data = {"template": "So {a} is here now", "slots": {"a": ["Mary", "John"]}}
    found = spans_of(task_of(tmp_path, data, score_at=[1, -2]), gpt2())
    assert [name for name, _ in found] == ["start", "a", "after a", "END", "after a"]
    used = make_data(task_of(tmp_path, data, score_at=[1, -2]), gpt2(), 1, 0, positions=True)
    assert used.spans == ("start", "a", "after a", "END")


# ---------------------------------------------------------------- rows


ROWS = [
    {"clean": "So Mary is such a friend, isn't", "corrupted": "So John is such a friend, isn't"},
    {"clean": "So Emma is a very funny writer, isn't", "corrupted": "So Adam is a very funny writer, isn't"},
    {"clean": "So he is a writer, isn't", "corrupted": "So we is a writer, isn't"},
]
TOKENS = [
    {"name": [1, 2], "noun": [5, 6]},
    {"noun": [6, 7], "name": [1, 2]},
    {"name": None, "noun": [4, 5]},
]
CHARACTERS = [
    {"name": [3, 7], "noun": [18, 24]},
    {"noun": [24, 30], "name": [3, 7]},
    {"name": None, "noun": [11, 17]},
]
EXPECTED = [
    [
        ("start", "So"),
        ("name", " Mary"),
        ("after name", " is| such| a"),
        ("noun", " friend"),
        ("after noun", ",| isn"),
        ("END", "'t"),
    ],
    [
        ("start", "So"),
        ("name", " Emma"),
        ("after name", " is| a| very| funny"),
        ("noun", " writer"),
        ("after noun", ",| isn"),
        ("END", "'t"),
    ],
    [("start", "So| he| is| a"), ("noun", " writer"), ("after noun", ",| isn"), ("END", "'t")],
]


@pytest.mark.parametrize("form", ["yaml", "jsonl", "csv"])
@pytest.mark.parametrize(("units", "stated"), [("tokens", TOKENS), ("characters", CHARACTERS)])
def test_rows_state_their_spans(tmp_path: Path, form: str, units: str, stated: list[dict[str, Any]]) -> None:
    rows = [row | {"spans": spans} for row, spans in zip(ROWS, stated, strict=True)]
    data: dict[str, Any] = {"padding": "left", "span_units": units}
    if form == "yaml":
        data["rows"] = rows
    elif form == "jsonl":
        (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data["file"] = "r.jsonl"
    else:
        cells = [[row["clean"], row["corrupted"], json.dumps(row["spans"])] for row in rows]
        quoted = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in cells]
        (tmp_path / "r.csv").write_text("\n".join(["clean,corrupted,spans", *quoted]))
        data["file"] = "r.csv"
    task = task_of(tmp_path, data)
    used = make_data(task, gpt2(), 3, 0, positions=True)
    found = {clean: by_span(used, gpt2(), i) for i, (clean, _) in enumerate(used.discovery.texts)}
    for row, expected in zip(ROWS, EXPECTED, strict=True):
        assert [each for each in found[row["clean"]] if each[0]] == expected
    assert set(used.spans) == {"start", "name", "after name", "noun", "after noun", "END"} and used.spans[-1] == "END"


def test_rows_without_spans_have_token_positions(tmp_path: Path) -> None:
    task = task_of(tmp_path, {"rows": [ROWS[0]], "bos": True})
    found = spans_of(task, gpt2())
    assert [name for name, _ in found] == ["BOS", "0", "1", "2", "3", "4", "5", "6", "7", "END"]
    assert found[-2:] == [("7", " isn"), ("END", "'t")]


def test_a_generator_has_token_positions() -> None:
    used = make_data(load_task("induction"), Fast("tiny"), 2, 0, positions=True)
    assert used.spans == (*map(str, range(18)), "19", "END")
    assert used.discovery.spans is not None
    assert (used.discovery.spans == [*range(18), 19, 18]).all()


# ---------------------------------------------------------------- what stays as it was


@pytest.mark.parametrize("name", ["ioi", "induction", "docstring", "tracr-reverse", "or-gate"])
def test_prompts_and_hash_are_the_same_with_spans(name: str) -> None:
    task = load_task(name)
    tokenizer = Fast(task.defaults.model or "tiny")
    n = min(task.defaults.examples, 6)
    plain = make_data(task, tokenizer, n, 0)
    used = make_data(task, tokenizer, n, 0, positions=True)
    assert (plain.spans, plain.discovery.spans, plain.held_out.spans) == ((), None, None)
    assert used.hash == plain.hash and used.discovery.texts == plain.discovery.texts
    assert (plain.discovery is plain.held_out) == (used.discovery is used.held_out) == (task.data.splits == "same")


# Beginnings of the hashes that tiny's prompts had before any task named spans.
HASHES = {
    "docstring": "d167a5394de074bf",
    "gendered-pronoun": "3ca94ba4ce0c326e",
    "greater-than": "8d6e4495983d4b4c",
    "induction": "9b5614aec242540f",
    "ioi": "aa29aef0c86fe60c",
    "subject-verb-agreement": "3bcc4ebff67c4c6a",
}


@pytest.mark.parametrize("name", HASHES)
def test_the_spans_that_a_task_names_do_not_change_what_it_draws(name: str) -> None:
    assert make_data(load_task(name), Fast("tiny"), 4, 0).hash[:16] == HASHES[name]


def test_some_examples_keep_their_spans() -> None:
    used = make_data(load_task("ioi"), Fast("tiny"), 4, 0, positions=True)
    assert used.discovery.spans is not None
    shifted = replace(used.discovery, spans=used.discovery.spans + np.arange(4)[:, None])
    taken = shifted.take([2, 0, 2])
    assert taken.spans is not None and shifted.spans is not None
    assert (taken.spans == shifted.spans[[2, 0, 2]]).all()


def test_halves_share_their_names(tmp_path: Path) -> None:
    """A span that only the held-out half has is among the names of both."""
    templates = [{"clean": "{a} is", "spans": {"A": "{a}", "is": " is"}}]
    templates.append({"clean": "{a} was", "spans": {"B": "{a}", "was": " was"}})
    data = {"templates": templates, "slots": {"a": ["Mary", "John"]}, "splits": "disjoint"}
    used = make_data(task_of(tmp_path, data), Pieces(), 1, 0, positions=True)
    assert used.spans == ("A", "B", "END")
    assert used.discovery.spans is not None and used.held_out.spans is not None
    assert (used.discovery.spans.tolist(), used.held_out.spans.tolist()) == ([[0, 2]], [[1, 2]])


def test_another_template_does_not_have_the_spans_of_an_included_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('{include: ioi, data: {template: "Now, {io} or {s} went to the {place}. {s} gave a {object} to"}}')
    found = spans_of(load_task(str(path)), Pieces(), n=1)
    assert [name for name, _ in found][:5] == ["start", "io", "after io", "s.1", "after s.1"]
    path.write_text(
        '{include: ioi, data: {spans: {all: "Then, {io} and {s} went to the {place}. {s} gave a {object} to"}}}'
    )
    assert [name for name, _ in spans_of(load_task(str(path)), Fast("tiny"), n=1)] == ["all", "END"]
    path.write_text("{include: ioi, data: {slots: {place: [store]}}}")
    assert [name for name, _ in spans_of(load_task(str(path)), Fast("tiny"), n=1)] == [name for name, _ in IOI]


# ---------------------------------------------------------------- all tasks


def tokenizers_for(name: str) -> list[Callable[[], Tokenizer]]:
    if model := load_task(name).defaults.model:
        return [lambda: Fast(model)]
    spaces = [lambda space=space: llama_like(words_of(name), space) for space in ("prepend", "first", "always")]
    return [gpt2, of_smollm2, lambda: Fast("tiny"), Pieces, Digits, *spaces]


@pytest.mark.parametrize("name", task_names())
def test_every_token_of_every_task_has_one_span(name: str) -> None:
    task = load_task(name)
    n = min(task.defaults.examples, 6)
    served = 0
    for tokenizer in [make() for make in tokenizers_for(name)]:
        try:
            plain = make_data(task, tokenizer, n, 0)
        except TaskError:
            continue  # a tokenizer that can't serve the task
        served += 1
        used = make_data(task, tokenizer, n, 0, positions=True)
        assert used.hash == plain.hash
        assert len(set(used.spans)) == len(used.spans) and used.spans[-1] == "END"
        for split in (used.discovery, used.held_out):
            assert split.spans is not None
            positions = np.arange(split.clean.shape[1])
            assert ((split.spans >= 0) == (positions >= split.pad[:, None])).all()
            assert split.spans.max() < len(used.spans)
            last = np.array([split.rows[split.rows[:, 0] == i, 1].max() for i in range(n)])
            assert ((split.spans == len(used.spans) - 1) == (positions == last[:, None])).all()
            if task.data.bos:
                assert (split.spans[np.arange(n), split.pad] == used.spans.index("BOS")).all()
            if task.data.prompts:
                check_words(task, tokenizer, used.spans, split.clean, split.spans, [clean for clean, _ in split.texts])
    assert served


def check_words(
    task: Task, tokenizer: Tokenizer, names: tuple[str, ...], clean: np.ndarray, spans: np.ndarray, texts: list[str]
) -> None:
    """The tokens of each span contain the words that the prompt has in its slots, found there by a pattern."""
    words = {
        field: [row[i] for row in pool.rows] for pool in pools(task).values() for i, field in enumerate(pool.fields)
    }

    def pattern(template: str) -> str:
        found = ""
        for text, slot in parse(template):
            found += re.escape(text)
            found += f"(?:{'|'.join(map(re.escape, words[slot]))})" if slot else ""
        return found

    for ids, own, text in zip(clean, spans, texts, strict=True):
        for prompt in task.data.prompts:
            stated = prompt.spans or {slot: f" {{{slot}}}" for _, slot in parse(prompt.clean) if slot}
            before = "" if prompt.spans else "BOS"
            matched = re.fullmatch(before + "".join(f"({pattern(str(part))})" for part in stated.values()), text)
            if matched:
                break
        assert matched
        last = list(stated)[-1]  # END is taken out of it
        for name, part in zip(stated, matched.groups(), strict=True):
            pieces = tokenizer.pieces(ids[[i for i, s in enumerate(own) if s >= 0 and names[s] == name]].tolist())
            if name == last and name != "END":
                pieces += tokenizer.pieces(ids[own == len(names) - 1].tolist())
            joined = "".join(pieces).replace("▁", " ").replace("<0x0A>", "\n")
            assert joined.split() == part.split(), (name, joined, part)


# ---------------------------------------------------------------- what is wrong


A = {"a": ["Mary", "John"]}
ROW = ROWS[0]


def template(text: str, **more: Any) -> dict[str, Any]:
    return {"template": text, "slots": A, **more}


def rows(*spans: Any, **more: Any) -> dict[str, Any]:
    return {"rows": [row | {"spans": own} for row, own in zip(ROWS, spans, strict=False)], "padding": "left", **more}


IN_THE_FILE = {
    "another text": (
        template("So {a} is", spans={"x": "So {a}", "y": " was"}),
        "data.spans: joined they should be exactly the template; from character 7 on the spans have 'was' where the "
        "template has 'is'",
    ),
    "too short": (
        template("So {a} is", spans={"x": "So {a}"}),
        "from character 6 on the spans have '' where the template has ' is'",
    ),
    "of one of the templates": (
        {"templates": ["{a} is", {"clean": "{a} was", "spans": {"x": "{a}was"}}], "slots": A},
        "data.templates.1.spans: joined they should be exactly the template; from character 3 on the spans have 'was'",
    ),
    "a slot cut in two": (template("So {a} is", spans={"x": "So {", "y": "a} is"}), "data.spans.x: template 'So {'"),
    "empty": (
        template("So {a} is", spans={"x": "So {a} is", "y": ""}),
        "data.spans.y: should be a part of the template",
    ),
    "places in a template": (
        {"templates": [{"clean": "{a} is", "spans": {"x": [0, 1]}}], "slots": A},
        "data.templates.0.spans.x: should be a part of the template, as text, got (0, 1)",
    ),
    "not the template's": (
        {"templates": ["{a} is"], "slots": A, "spans": {"x": "{a} is"}},
        "data.spans: are those of data.template; state them in each of the templates, or in every row",
    ),
    "no text": (template("{a} is", spans={"x": 3}), "data.spans.x: should be a text"),
    "empty stretch": (
        rows({"x": [2, 2]}),
        "data.rows.0.spans.x: should be [start, end], whole numbers with 0 ≤ start < end, or null if the row lacks it; "
        "in a template, its text; got [2, 2]",
    ),
    "before the prompt": (rows({"x": [-1, 2]}), "data.rows.0.spans.x: should be [start, end]"),
    "fractions": (rows({"x": [0, 1.5]}), "data.rows.0.spans.x: should be [start, end]"),
    "truths": (rows({"x": [False, True]}), "data.rows.0.spans.x: should be [start, end]"),
    "three numbers": (rows({"x": [0, 1, 2]}), "data.rows.0.spans.x: should be [start, end]"),
    "overlap": (
        rows({"y": [3, 5], "x": [1, 4]}),
        "data.rows.0.spans: x [1, 4] and y [3, 5] overlap; each token is in one span",
    ),
    "beyond the characters": (
        rows({"x": [1, 32]}, span_units="characters"),
        "data.rows.0: spans.x: [1, 32] ends beyond the prompt's 31 characters",
    ),
    "text in a row": (rows({"x": "So"}), "data.rows.0: spans.x: should be [start, end] or null, got the text 'So'"),
    "other names": (
        rows({"x": [0, 1]}, {"y": [0, 1]}),
        "data.rows.1: spans: has y, the first row x; state the same in every row, null for one that a row lacks",
    ),
    "not in every row": (rows({"x": [0, 1]}, None), "data.rows.1: spans: has none, the first row x; state the same"),
    "units": (
        rows({"x": [0, 1]}, span_units="words"),
        "data.span_units: should be 'tokens' or 'characters', got 'words'",
    ),
    **{
        f"name {name!r}": (
            rows({name: [0, 1]}),
            "the name of a span should have 1 to 24 characters, without @, -> and spaces around it, and not be BOS, "
            f"got {name!r}",
        )
        for name in ("", "x" * 25, "a@b", "a->b", " a", "a ", "BOS")
    },
    "a control character": (rows({"a\tb": [0, 1]}), "has the character '\\t'"),
}


@pytest.mark.parametrize("case", IN_THE_FILE)
def test_wrong_in_the_file(tmp_path: Path, case: str) -> None:
    data, expected = IN_THE_FILE[case]
    with pytest.raises(TaskError) as error:
        task_of(tmp_path, data)
    assert expected in str(error.value) and "\n" not in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ({"x": [3, 2]}, "r.jsonl line 2: spans.x: should be [start, end]"),
        ({"x": [0, 2], "y": [1, 3]}, "r.jsonl line 2: spans: x [0, 2] and y [1, 3] overlap"),
        ({"y": [1, 3]}, "t.yaml: r.jsonl row 2: spans: has y, the first row x"),
    ],
)
def test_wrong_in_a_file_of_rows(tmp_path: Path, spans: dict[str, Any], expected: str) -> None:
    content = [ROWS[0] | {"spans": {"x": [0, 1]}}, ROWS[1] | {"spans": spans}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, content)))
    with pytest.raises(TaskError) as error:
        task_of(tmp_path, {"file": "r.jsonl", "padding": "left"})
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_cell_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("clean,corrupted,spans\na b,a c,x=1\n")
    with pytest.raises(TaskError, match=r"r.csv line 2: spans: not valid JSON, 'x=1': Expecting value.*quotes doubled"):
        task_of(tmp_path, {"file": "r.csv"})


WITH_TOKENS = {
    "no token of its own": (
        template("So {a}s is", spans={"So": "So", "who": " {a}", "s": "s", "is": " is"})
        | {"slots": {"a": ["walk", "talk"]}},
        r"t: example 1 'So (walk|talk)s is': span 's' has no token of its own \(token ' (walk|talk)s' is in 'who'\); "
        "name spans that begin where tokens do",
    ),
    "between slots": (
        template("{b}s {a}") | {"slots": {"b": ["Walk"], **A}},
        "span 'after b' has no token of its own",
    ),
    "white space": (
        template("So {a} is", spans={"So": "So", "gap": " ", "rest": "{a} is"}),
        r"span 'gap' has no token of its own \(token ' (Mary|John)' is in 'rest'\)",
    ),
    "an empty slot": (
        template("{a} is {b}so") | {"slots": {"b": [""], **A}},
        "t: example 1 '(Mary|John) is so': span 'b' is empty, as its slot is; fill it, or name a part",
    ),
    "END of other tokens": (
        template("{a} is so", spans={"who": "{a}", "END": " is so"}),
        "span 'END' has the token ' is'; END is the last scored token, ' so', alone: name it otherwise",
    ),
    "a long slot": (
        template("{a} is {the_slot_of_the_other_name} so") | {"slots": {"the_slot_of_the_other_name": ["x"], **A}},
        "t: example 1 .*: the name of a span should have 1 to 24 characters.*got 'the_slot_of_the_other_name'",
    ),
    "twice": (
        template("So {a} is {start} so") | {"slots": {"start": ["x"], **A}},
        "two of its spans are called 'start'; give one another name",
    ),
    "beyond the tokens": (
        rows({"x": [1, 10]}),
        "t: data.rows.0 .*: spans.x: .1, 10. ends beyond the prompt's 9 tokens",
    ),
    "lengths": (
        {"rows": ROWS, "padding": "left"},
        't: --positions needs spans, as prompts have 8 to 10 tokens; state "spans": .* in every row, each .start, end. '
        "in tokens",
    ),
}


@pytest.mark.parametrize("case", WITH_TOKENS)
def test_wrong_with_this_tokenizer(tmp_path: Path, case: str) -> None:
    data, expected = WITH_TOKENS[case]
    task = task_of(tmp_path, data)
    n = len(ROWS) if case == "lengths" else 1
    make_data(task, gpt2(), n, 0)  # without spans it works
    with pytest.raises(TaskError, match=expected) as error:
        make_data(task, gpt2(), n, 0, positions=True)
    assert "\n" not in str(error.value)
