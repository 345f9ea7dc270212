"""Tasks: the shipped ones are valid, the same seed gives the same bytes, and every mistake gets one useful line."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.errors import TaskError
from acdc.evaluation.competence import competence
from acdc.io.yaml_file import merge
from acdc.model.find import BUNDLED
from acdc.model.load import Model, load_model
from acdc.registry import METRICS
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from acdc.task.load import checked, load_task, shipped_dir, task_names
from acdc.task.schema import Task
from acdc.task.template import fields, render
from acdc.task.tokenize import Split, Tokenizer, make_data
from acdc.task.words import Table
from tests.support import ROOT
from tests.support.assets import gpt2_tokenizer, smollm2
from tests.support.tokenizers import Digits, Fast, Pieces

LANGUAGE = ("docstring", "gendered-pronoun", "greater-than", "induction", "ioi", "subject-verb-agreement")
REAL = (  # with words that tiny doesn't know
    "capital-country",
    "causal-because",
    "causal-because-nonsense",
    "gender-bias",
    "greater-than-digits",
    "hypernymy",
)
COMPILED = ("or-gate", "tracr-reverse", "tracr-xproportion")


BASE = """
name: t
version: 1
source: a paper
description: a test
defaults: {metric: kl, threshold: 0.1, examples: 2}
metrics: [kl, logit-diff]
data:
  template: "The {a} and {b} gave"
  slots: {a: [cat, dog, cow], b: [hen, fox, owl, pig]}
corrupt: {redraw: [a]}
answers: {correct: " {a}", wrong: " {b}"}
"""


def write(folder: Path, change: dict[str, Any] | None = None, name: str = "t") -> Path:
    """Write the base task with changes to a file."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(merge(yaml.safe_load(BASE) | {"name": name}, change or {}), sort_keys=False))
    return path


def task_of(folder: Path, change: dict[str, Any] | None = None) -> Task:
    return load_task(str(write(folder, change)))


def one_line(error: pytest.ExceptionInfo[TaskError], *expected: str) -> None:
    message = str(error.value)
    assert "\n" not in message, message
    for text in expected:
        assert text in message, f"{text!r} is not in {message!r}"


# ---------------------------------------------------------------- what ships


def test_all_tasks_ship() -> None:
    assert task_names() == sorted((*LANGUAGE, *REAL, *COMPILED))
    assert shipped_dir("tasks").name == "tasks"


@pytest.mark.parametrize("name", task_names())
def test_shipped_task_loads(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert task.defaults.metric in task.metrics
    assert set(task.metrics) <= set(METRICS)


@pytest.mark.parametrize("name", sorted((*LANGUAGE, *COMPILED)))
def test_shipped_task_fits_its_bundled_model(name: str) -> None:
    task = load_task(name)
    data = make_data(task, Fast(task.defaults.model or "tiny"), task.defaults.examples, task.defaults.seed)
    for split in (data.discovery, data.held_out):
        check_split(task, split)
    halves = [{clean for clean, _ in split.texts} for split in (data.discovery, data.held_out)]
    if task.data.splits == "disjoint":
        assert not halves[0] & halves[1]
    else:
        assert halves[0] == halves[1]


def check_split(task: Task, split: Split) -> None:
    """Check what holds for every split of any task."""
    n, length = split.clean.shape
    assert split.corrupted.shape == (n, length)
    assert n == len(split.texts) == len({clean for clean, _ in split.texts}) == len(split.pad)
    assert (split.clean != split.corrupted).any(1).all()
    rows = [tuple(row) for row in split.rows]
    assert rows == sorted(set(rows))
    assert {example for example, _ in rows} == set(range(n))
    assert ((split.rows[:, 1] >= split.pad[split.rows[:, 0]]) & (split.rows[:, 1] < length)).all()
    assert len(split.correct) == len(split.wrong) == len(rows)
    if task.answers or any(prompt.correct for prompt in task.data.prompts):
        assert (split.correct[:, 0] >= 0).all()
    for array in split.arrays():
        assert array.dtype == np.int64


def test_sizes_of_the_literature() -> None:
    """Token lengths as in the code of Conmy et al.: 10 and 15 without BOS."""
    tiny = Fast("tiny")
    assert make_data(load_task("greater-than"), tiny, 100, 0).discovery.clean.shape == (100, 10)
    assert make_data(load_task("ioi"), tiny, 100, 0).discovery.clean.shape == (100, 15)
    docstring = make_data(load_task("docstring"), tiny, 50, 0).discovery
    assert (docstring.clean[:, 0] == tiny.bos_id).all()


def test_greater_than() -> None:
    tiny = Fast("tiny")
    split = make_data(load_task("greater-than"), tiny, 20, 0).discovery
    for (clean, corrupted), correct, wrong in zip(split.texts, split.correct, split.wrong, strict=True):
        year = int(re.findall(r"\d+", clean)[0][2:])
        assert [int(piece) for piece in tiny.pieces(correct[correct >= 0])] == list(range(year + 1, 100))
        assert [int(piece) for piece in tiny.pieces(wrong[wrong >= 0])] == list(range(year + 1))
        assert corrupted == re.sub(r"(\d\d)\d\d", r"\g<1>01", clean)


def test_ioi_names_are_five_different_ones() -> None:
    for clean, corrupted in make_data(load_task("ioi"), Fast("tiny"), 100, 0).discovery.texts:
        a, b, c = (re.findall(r"[A-Z]\w+", text)[1:] for text in (clean, corrupted, corrupted))
        assert a[1] == a[2] != a[0]
        assert len({*a, *b, *c}) == 5


def test_induction_scores_what_can_be_induced() -> None:
    split = make_data(load_task("induction"), Fast("tiny"), 50, 0).discovery
    assert (split.clean[:, :10] == split.clean[:, 10:]).all()
    assert (split.corrupted[:, 10:] == split.clean[:, 10:]).all()
    example, position = split.rows.T
    assert set(position) == set(range(10, 19))
    assert (split.correct[:, 0] == split.clean[example, position - 9]).all()
    for tokens in split.corrupted:
        assert len(set(tokens)) == 20


def test_agreement_is_balanced_and_attracted() -> None:
    split = make_data(load_task("subject-verb-agreement"), Fast("tiny"), 50, 0).discovery
    singular = [not clean.split()[1].endswith("s") for clean, _ in split.texts]
    assert sum(singular) == 25
    assert singular == [clean.split()[-1].endswith("s") for clean, _ in split.texts]


# ---------------------------------------------------------------- tasks for real models


@pytest.fixture(params=["words", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """A tokenizer with one token per word, and GPT-2's if `make assets` has downloaded it."""
    if request.param == "words":
        return Pieces()
    return gpt2_tokenizer()


def texts(tokenizer: Tokenizer, ids: np.ndarray) -> list[list[str]]:
    """Return the answers of every row, without the space before them."""
    return [[piece.strip() for piece in tokenizer.pieces([int(i) for i in row if i >= 0])] for row in ids]


@pytest.mark.parametrize("name", [name for name in REAL if name != "greater-than-digits"])
def test_task_for_real_models(name: str, tokenizer: Tokenizer) -> None:
    """A hundred examples in each half; clean and corrupted differ in one token; the halves share no prompt."""
    task = load_task(name)
    assert task.defaults.examples <= 100
    data = make_data(task, tokenizer, 100, 0)
    for split in (data.discovery, data.held_out):
        check_split(task, split)
        assert not split.pad.any()
        assert (split.clean[:, 0] == tokenizer.bos_id).all()
        assert ((split.clean != split.corrupted).sum(1) == 1).all()
        assert (split.correct.shape, split.wrong.shape) == ((100, 1), (100, 1))
    assert not {t for t, _ in data.discovery.texts} & {t for t, _ in data.held_out.texts}


def test_gender_bias_is_balanced_and_swaps_stereotypes(tokenizer: Tokenizer) -> None:
    task = load_task("gender-bias")
    split = make_data(task, tokenizer, 100, 0).discovery
    women, men = (set(task.data.slots[name]) for name in ("woman", "man"))  # type: ignore[call-overload]
    assert not women & men
    answers = zip(texts(tokenizer, split.correct), texts(tokenizer, split.wrong), strict=True)
    for i, ((clean, corrupted), (correct, wrong)) in enumerate(zip(split.texts, answers, strict=True)):
        (_, was, *rest), (_, other, *rest_corrupted) = clean.split(), corrupted.split()
        assert rest == rest_corrupted
        assert (was in women, other in men) == ((True, True) if i % 2 == 0 else (False, False))
        assert (correct, wrong) == ((["she"], ["he"]) if was in women else (["he"], ["she"]))


@pytest.mark.parametrize("name", ["causal-because", "causal-because-nonsense"])
def test_causal_because(name: str, tokenizer: Tokenizer) -> None:
    places = load_task(name).data.lists["places"]
    assert isinstance(places, Table)
    actions = dict(places.rows)
    split = make_data(load_task(name), tokenizer, 100, 0).discovery
    for (clean, corrupted), (correct,), (wrong,) in zip(
        split.texts, texts(tokenizer, split.correct), texts(tokenizer, split.wrong), strict=True
    ):
        here, there = (text.split()[4] for text in (clean, corrupted))
        assert clean == corrupted.replace(f" {there} ", f" {here} ")
        assert actions[here] == correct != wrong
        assert wrong in actions.values()
        assert (wrong == actions[there]) if name == "causal-because" else there not in actions


@pytest.mark.parametrize(("name", "words"), [("capital-country", "capitals"), ("hypernymy", "words")])
def test_recall_of_a_relation(name: str, words: str, tokenizer: Tokenizer) -> None:
    """The answer belongs to the word asked for, and to neither of the other two."""
    table = load_task(name).data.lists[words]
    assert isinstance(table, Table)
    relation = dict(table.rows)
    assert len(relation) == len(table.rows)
    split = make_data(load_task(name), tokenizer, 100, 0).discovery
    for (clean, corrupted), (correct,), (wrong,) in zip(
        split.texts, texts(tokenizer, split.correct), texts(tokenizer, split.wrong), strict=True
    ):
        shown, asked = (word for word in re.findall(r"\w+", clean) if word in relation)
        assert corrupted == re.sub(rf"\b{asked}\b", (set(corrupted.split()) - set(clean.split())).pop(), clean)
        assert (correct, len({correct, wrong, relation[shown]})) == (relation[asked], 3)


def test_tens_are_greater_less_or_neither() -> None:
    digits, task = Digits(), load_task("greater-than-digits")
    split = make_data(task, digits, 100, 0).discovery
    check_split(task, split)
    rows = zip(split.texts, texts(digits, split.correct), texts(digits, split.wrong), strict=True)
    for (clean, corrupted), correct, wrong in rows:
        tens = int(re.findall(r"\d+", clean)[0][2])
        assert [int(digit) for digit in correct] == list(range(tens + 1, 10)) != []
        assert [int(digit) for digit in wrong] == list(range(tens)) != []
        assert corrupted == re.sub(r"(\d\d)\d\d", r"\g<1>01", clean)


def test_gpt2_cannot_serve_single_digits() -> None:
    with pytest.raises(TaskError) as error:
        make_data(load_task("greater-than-digits"), gpt2_tokenizer(), 10, 0)
    one_line(error, "greater-than-digits: data.pieces:", "tokenizer gpt2 makes '", "can't serve the task")


@pytest.mark.parametrize("name", REAL)
def test_tiny_says_why_it_cannot_serve_a_task(name: str) -> None:
    with pytest.raises(TaskError) as error:
        make_data(load_task(name), Fast("tiny"), 10, 0)
    if name == "greater-than-digits":
        one_line(error, f"{name}: data.pieces:", "tokenizer tiny makes '", "this tokenizer can't serve the task")
    else:
        one_line(error, f"{name}: example 1", "words that tokenizer tiny doesn't know", "'<unk>'", "another model")


@pytest.mark.parametrize("name", ["docstring", "subject-verb-agreement"])
def test_words_of_more_tokens_are_redrawn(name: str) -> None:
    """As SmolLM2 splits " bankers" and "morning": every prompt still has the same length."""

    class Splits(Pieces):
        pattern = re.compile(r" bank(?=ers?)|mor(?=ning)|" + Pieces.pattern.pattern)

    split = make_data(load_task(name), Splits(), 100, 0).discovery
    check_split(load_task(name), split)
    assert not [clean for clean, _ in split.texts if " banker" in clean or '"""morning' in clean]


@pytest.fixture(scope="module")
def real_model() -> Model:
    smollm2()
    return load_model("smollm2", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("capital-country", 0.98),
        ("causal-because", 0.9),
        ("causal-because-nonsense", 0.9),
        ("docstring", 0.7),
        ("gender-bias", 0.9),
        ("gendered-pronoun", 0.98),
        ("greater-than-digits", 0.98),
        ("hypernymy", 0.98),
        ("induction", 0.6),
        ("ioi", 0.98),
        ("subject-verb-agreement", 0.8),
    ],
)
def test_smollm2_does_the_tasks(name: str, least: float, real_model: Model) -> None:
    """A real language model of 135 million weights is competent, and depends on what the corruption changes."""
    given = {"task": name, "model": "smollm2", "examples": 25, "device": "cpu"}
    config, task, _ = resolve(given, None, lambda: ("smollm2", None))
    found = competence(load(config, task, of=real_model))
    assert found is not None
    assert found.able
    assert found.accuracy >= least
    assert found.accuracy_corrupted <= 0.55


@pytest.mark.parametrize("seed", range(8))
def test_reverse_is_all_orders_deranged(seed: int) -> None:
    data = make_data(load_task("tracr-reverse"), Fast("tracr-reverse"), 6, seed)
    cleans, corrupted = zip(*data.discovery.texts, strict=True)
    assert len(set(cleans)) == 6
    assert sorted(cleans) == sorted(corrupted)
    assert not any(c == d for c, d in data.discovery.texts)


# ---------------------------------------------------------------- determinism


@pytest.mark.parametrize("name", ["ioi", "induction", "gendered-pronoun"])
def test_same_seed_same_bytes(name: str) -> None:
    def hash_of(seed: int) -> str:
        return make_data(load_task(name), Fast("tiny"), 20, seed).hash

    assert hash_of(3) == hash_of(3) != hash_of(4)


def test_same_bytes_in_another_process() -> None:
    """Neither hash randomisation nor the order of sets affects the data."""
    code = """
from acdc.task.load import load_task
from acdc.task.tokenize import make_data
from tests.support.tokenizers import Digits, Fast, Pieces
print(make_data(load_task("ioi"), Fast("tiny"), 20, 3).hash)
"""
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        ).stdout
        for seed in ("1", "2")
    }
    assert hashes == {make_data(load_task("ioi"), Fast("tiny"), 20, 3).hash + "\n"}


def test_hash_tells_every_array(tmp_path: Path) -> None:
    base = {"answers": {"correct": " {a}", "wrong": " {b}"}}
    changed = {"answers": {"correct": " {b}", "wrong": " {a}"}}
    tokenizer = Pieces()
    tokenizer.encode(" cat dog cow hen fox owl pig The and gave")
    hashes = [make_data(task_of(tmp_path, change), tokenizer, 2, 0).hash for change in (base, changed)]
    assert hashes[0] != hashes[1]


@settings(max_examples=25, deadline=None)
@given(examples=st.integers(1, 6), seed=st.integers(-5, 10**12))
def test_halves_are_disjoint(examples: int, seed: int) -> None:
    task = checked(yaml.safe_load(BASE), "t")
    data = make_data(task, Pieces(), examples, seed)
    check_split(task, data.discovery)
    check_split(task, data.held_out)
    assert len({clean for split in (data.discovery, data.held_out) for clean, _ in split.texts}) == 2 * examples


# ---------------------------------------------------------------- what a task can say


def test_padding_is_on_the_left(tmp_path: Path) -> None:
    task = task_of(
        tmp_path,
        {
            "data": {"slots": {"b": ["hen", "red fox"]}, "padding": "left", "bos": True},
            "answers": {"wrong": []},
            "metrics": ["kl"],
            "defaults": {"examples": 3},
        },
    )
    tokenizer = Pieces()
    data = make_data(task, tokenizer, 3, 0)
    for split in (data.discovery, data.held_out):
        check_split(task, split)
        assert split.clean.shape[1] == 7
        for tokens, pad, (clean, _) in zip(split.clean, split.pad, split.texts, strict=True):
            assert pad == (0 if "red" in clean else 1)
            assert tokens[pad] == tokenizer.bos_id
            assert list(tokens[pad + 1 :]) == tokenizer.encode(clean)
        assert (split.rows[:, 1] == 6).all()


def test_positions_do_not_count_bos(tmp_path: Path) -> None:
    change = {
        "score_at": [1, -1],
        "answers": None,
        "metrics": ["kl"],
        "data": {"bos": True, "slots": {"a": ["cat", "dog"], "b": ["hen", "fox"]}},
    }
    split = make_data(task_of(tmp_path, change), Pieces(), 2, 0).discovery
    assert split.rows.tolist() == [[0, 2], [0, 5], [1, 2], [1, 5]]
    assert split.correct.shape == (4, 0)


def test_different_fields_are_never_alike(tmp_path: Path) -> None:
    """This holds for words of different lists, too; if all draws are alike, there are too few prompts."""
    words = {"a": ["cat", "dog", "cow"], "b": ["cat", "dog", "hen"]}
    task = task_of(tmp_path, {"data": {"slots": words, "different": [["a", "b"]]}, "defaults": {"examples": 3}})
    data = make_data(task, Pieces(), 3, 0)
    drawn = {tuple(clean.split()[1:4:2]) for split in (data.discovery, data.held_out) for clean, _ in split.texts}
    assert len(drawn) == 6
    assert all(a != b for a, b in drawn)
    with pytest.raises(TaskError) as error:
        make_data(task, Pieces(), 4, 0)
    one_line(error, "has only 7 distinct prompts")


def test_rows_of_unequal_length_are_padded(tmp_path: Path) -> None:
    rows = [
        {"clean": clean, "corrupted": f"b{clean[1:]}", "correct": " x", "wrong": " y"} for clean in ("a b", "a b c d")
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = {"template": None, "slots": None, "file": "r.jsonl", "splits": "same"}
    with pytest.raises(TaskError) as error:
        make_data(task_of(tmp_path, {"data": own, "corrupt": None, "answers": None}), Pieces(), 2, 0)
    one_line(error, "t: example 1 'a b': has 2 tokens, most have 4", "data.padding: left", "'a'|' b'")
    padded = task_of(tmp_path, {"data": own | {"padding": "left"}, "corrupt": None, "answers": None})
    split = make_data(padded, Pieces(), 2, 0).discovery
    check_split(padded, split)
    assert sorted(split.pad) == [0, 2]
    assert (split.rows[:, 1] == 3).all()


def test_rows_are_literal_and_come_from_jsonl(tmp_path: Path) -> None:
    rows = [
        {"clean": f"a {{{w}}} b", "corrupted": f"b {{{w}}} b", "correct": " x", "wrong": [" y", " z"]}
        for w in ("cat", "dog", "cow", "hen")
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    change = {"data": {"template": None, "slots": None, "file": "r.jsonl"}, "corrupt": None, "answers": None}
    data = make_data(task_of(tmp_path, change), Pieces(), 2, 0)
    cleans = [clean for split in (data.discovery, data.held_out) for clean, _ in split.texts]
    assert sorted(cleans) == sorted(str(row["clean"]) for row in rows)
    assert data.discovery.wrong.shape == (2, 2)


ROWS = [
    {"clean": "The cat, a pet", "corrupted": "The dog, a pet", "correct": " was", "wrong": " were"},
    {"clean": 'The "cow", a pet', "corrupted": 'The "dog", a pet', "correct": " is", "wrong": " are"},
    {"clean": "The owl\nflies", "corrupted": "The fox\nflies"},
]
OF_FILE = {
    "data": {"template": None, "slots": None, "file": "r.csv", "splits": "same", "padding": "left"},
    "corrupt": None,
}
OF_FILE |= {"answers": None, "metrics": ["kl"]}


@pytest.mark.parametrize("index", [False, True], ids=["plain", "with pandas' index"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rows_of_csv_are_those_of_jsonl(tmp_path: Path, encoding: str, index: bool) -> None:
    """The file is written by Python's own writer; an empty cell is a key that the row doesn't have."""
    keys = ["clean", "corrupted", "correct", "wrong"]
    with (tmp_path / "r.CSV").open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, ["", *keys] if index else keys)
        writer.writeheader()
        writer.writerows(({"": 17, **row} if index else row) for row in ROWS[:2])
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, ROWS[:2])), encoding=encoding)
    tasks = [task_of(tmp_path, merge(OF_FILE, {"data": {"file": name}})) for name in ("r.CSV", "r.jsonl")]
    assert tasks[0].data.rows == tasks[1].data.rows
    assert [prompt.clean for prompt in tasks[0].data.rows or ()] == [row["clean"] for row in ROWS[:2]]
    assert make_data(tasks[0], Pieces(), 2, 0).hash == make_data(tasks[1], Pieces(), 2, 0).hash


def test_a_cell_may_be_empty_or_have_lines(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('clean,corrupted,correct\r\n\r\n"The owl\nflies","The fox\nflies",\r\n')
    task = task_of(tmp_path, OF_FILE)
    assert [prompt.model_dump(exclude_none=True) for prompt in task.data.rows or ()] == [ROWS[2]]


BAD_CSV = {
    # The headers of EAP-IG's greater_than_data.csv and ioi_llama.csv
    "token ids": (
        ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n470,a,b,c,47764,26757",
        ["r.csv: column 'correct_idx' has token ids", "texts in columns correct and wrong"],
    ),
    "a third prompt": (
        "clean,corrupted,corrupted_hard\na,b,c",
        ["r.csv: unknown column 'corrupted_hard'. Did you mean 'corrupted'", "rename or remove it"],
    ),
    "label": ("clean,corrupted,label\na,b,52", ["r.csv: unknown column 'label'", "Known: clean, correct"]),
    "twice": ("clean,corrupted,correct,correct\na,b,c,d", ["column 'correct' is there twice", "use JSONL"]),
    "commas": ("clean,corrupted\nThe cat, a pet,The dog, a pet", ["line 2: not a cell for each column; quote"]),
    "a quote": ('clean,corrupted\n"a"b,c', ["r.csv line 2: not valid CSV: ',' expected after"]),
    "no end": ('clean,corrupted\n"a,c\n', ["r.csv line 2: not valid CSV: unexpected end of data"]),
    "no clean": ("corrupted\na", ["r.csv line 2: clean: is missing"]),
    "header only": ("clean,corrupted\n", ["r.csv: has no rows; it should have a header and a row a line"]),
    "nothing": ("", ["r.csv: has no rows"]),
    "huge": ("clean,corrupted\n" + "a" * 200_000 + ",b", ["r.csv line 2: not valid CSV: field larger"]),
}


@pytest.mark.parametrize(("text", "expected"), BAD_CSV.values(), ids=BAD_CSV)
def test_bad_csv(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(TaskError) as error:
        task_of(tmp_path, OF_FILE)
    one_line(error, *expected)


def test_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(ROWS[0]), encoding="utf-8-sig")
    path = write(tmp_path, merge(OF_FILE, {"data": {"file": "r.jsonl"}}))
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert load_task(str(path)).data.rows[0].clean == ROWS[0]["clean"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"answers": {"correct": 3}}, "answers.correct"),
        ({"answers": {"wrong": [" a", 50256]}}, "answers.wrong"),
        (
            {"data": {"template": None, "templates": [{"clean": "The {a} {b}", "correct": 3.5}]}},
            "data.templates.0.correct",
        ),
        ({"data": {"template": None, "rows": [{"clean": "a", "corrupted": "b", "wrong": 3}]}}, "data.rows.0.wrong"),
    ],
)
def test_numbers_are_no_answers(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    with pytest.raises(TaskError) as error:
        task_of(tmp_path, change)
    one_line(error, f"t.yaml: {key}: should be a text such as ' she', got the number", "token ids differ between")


def test_include_states_only_what_differs(tmp_path: Path) -> None:
    write(tmp_path)
    child = tmp_path / "child.yaml"
    child.write_text(
        "include: t.yaml\nname: child\ndefaults: {threshold: 0.5}\nanswers: {wrong: null}\nmetrics: [kl]\n"
    )
    task, parent = load_task(str(child)), load_task(str(tmp_path / "t.yaml"))
    assert (task.defaults.threshold, task.defaults.examples) == (0.5, parent.defaults.examples)
    assert (task.data, task.answers and task.answers.wrong) == (parent.data, ())


def test_include_of_a_shipped_task(tmp_path: Path) -> None:
    path = tmp_path / "years.yaml"
    path.write_text("include: greater-than\nname: years\ndata: {slots: {century: {range: [17, 18]}}}\n")
    split = make_data(load_task(str(path)), Fast("tiny"), 10, 0).discovery
    assert {clean[-2:] for clean, _ in split.texts} == {"17", "18"}


def test_defaults_for_a_model(tmp_path: Path) -> None:
    defaults = task_of(tmp_path, {"defaults": {"models": {"m": {"threshold": 0.7}}}}).defaults_for("m")
    assert (defaults.threshold, defaults.metric) == (0.7, "kl")


def test_task_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        task_of(tmp_path).name = "other"  # type: ignore[misc]


def test_braces_and_attributes() -> None:
    assert render("{{x}} {a}", {"a": "{b}"}) == "{x} {b}"
    assert fields("{a} {b.c}") == ["a", "b.c"]
    for bad in ("{a.__class__.x}", "{0}", "{a!r}", "{a:>9}", "{", "{a[0]}", "{}"):
        with pytest.raises(ValueError, match="template"):
            fields(bad)


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = "import sys, acdc.task.tokenize; assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ---------------------------------------------------------------- mistakes in the file

BAD_FILES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("unknown key", {"metricks": ["kl"]}, ["unknown key 'metricks'", "Did you mean 'metrics'"]),
    ("unknown nested key", {"data": {"slot": {}}}, ["data: unknown key 'slot'", "Did you mean 'slots'"]),
    ("missing key", {"source": None}, ["source: is missing"]),
    ("wrong type", {"version": "one"}, ["version: should be a valid integer", "'one'"]),
    ("version 0", {"version": 0}, ["version: should be greater than or equal to 1", "got 0"]),
    ("NaN", {"defaults": {"threshold": float("nan")}}, ["defaults.threshold: should be a finite number", "nan"]),
    ("infinity", {"defaults": {"threshold": float("inf")}}, ["defaults.threshold: should be a finite number"]),
    ("negative", {"defaults": {"threshold": -1.0}}, ["defaults.threshold:", "greater than or equal to 0"]),
    ("no examples", {"defaults": {"examples": 0}}, ["defaults.examples:", "greater than or equal to 1"]),
    ("ablation", {"defaults": {"ablation": "none"}}, ["defaults.ablation: should be 'corrupted', 'zero' or 'mean'"]),
    ("not a mapping", {"defaults": [1]}, ["defaults: should be a mapping with the keys metric, threshold", "[1]"]),
    (
        "unknown metric",
        {"metrics": ["logit_diff"]},
        ["metrics: unknown metric 'logit_diff'", "Did you mean 'logit-diff'"],
    ),
    ("default metric", {"defaults": {"metric": "l2"}}, ["defaults.metric: unknown metric 'l2'", "Known: kl"]),
    ("model's metric", {"defaults": {"models": {"m": {"metric": "nil"}}}}, ["defaults.models.m.metric: unknown"]),
    ("unquoted word", {"data": {"slots": {"a": ["cat", False]}}}, ["data.slots.a.1: should be a text", "False"]),
    ("number as word", {"data": {"slots": {"a": [1, "x"]}}}, ["data.slots.a.0: should be a text; put it in quotes"]),
    ("slot form", {"data": {"slots": {"a": 3}}}, ["data.slots.a: should be a list of words", "got 3"]),
    ("slot name", {"data": {"slots": {"a b": ["x"]}}}, ["data.slots: slot name 'a b'"]),
    (
        "unknown list",
        {"data": {"slots": {"a": "animal"}, "lists": {"animals": ["x"]}}},
        ["data.slots.a: unknown list 'animal'", "Did you mean 'animals'"],
    ),
    ("unused list", {"data": {"lists": {"animals": ["x"]}}}, ["data.lists.animals: is used by no slot"]),
    ("empty list", {"data": {"slots": {"a": []}}}, ["data.slots.a: has no words"]),
    ("repeated word", {"data": {"slots": {"a": ["cat", "cat"]}}}, ["data.slots.a: 'cat' is there twice"]),
    (
        "small list",
        {"data": {"slots": {"a": "l", "b": "l"}, "lists": {"l": ["cat", "dog"]}}},
        ["data.lists.l: 3 different words"],
    ),
    (
        "ragged table",
        {"data": {"slots": {"a": {"columns": ["x"], "rows": [["p", "q"]]}}}},
        ["data.slots.a: row ['p', 'q'] should have 1 words: x"],
    ),
    ("backward range", {"data": {"slots": {"a": {"range": [9, 1]}}}}, ["data.slots.a: range [9, 1]"]),
    ("huge range", {"data": {"slots": {"a": {"range": [0, 10**12]}}}}, ["data.slots.a: range [0, 1000000000000]"]),
    (
        "range type",
        {"data": {"slots": {"a": {"range": [0, "x"]}}}},
        ["data.slots.a.range.1: should be a valid integer"],
    ),
    ("template without slot", {"data": {"template": "The {cat} {a} {b}"}}, ["data.template:", "unknown slot 'cat'"]),
    ("column of no table", {"data": {"template": "{a.x} {a} {b}"}}, ["data.template:", "unknown slot 'a.x'"]),
    (
        "table without column",
        {
            "data": {"slots": {"a": {"columns": ["x"], "rows": [["p"]]}}},
            "corrupt": {"redraw": None, "template": "no"},
            "answers": {"correct": " {b}"},
        },
        ["data.template:", "unknown slot 'a'", "a.x"],
    ),
    ("unused slot", {"data": {"slots": {"c": ["x"]}}}, ["data.slots.c: is used by no template"]),
    (
        "code in a template",
        {"data": {"template": "{a.__class__.__name__} {b}"}},
        ["data.template: template", "fields are {slot}"],
    ),
    ("open brace", {"data": {"template": "{a} {b} {"}}, ["data.template: template", "write {{ and }}"]),
    ("empty template", {"data": {"template": ""}}, ["data.template:", "should not be empty"]),
    (
        "empty one among others",
        {"data": {"template": None, "templates": [""]}},
        ["data.templates.0.clean:", "should not be empty"],
    ),
    (
        "empty corrupted template",
        {"corrupt": {"redraw": None, "template": ""}},
        ["corrupt.template:", "should not be empty"],
    ),
    ("no source", {"data": {"template": None}}, ["data: should have exactly one of template", "has none"]),
    (
        "two sources",
        {"data": {"rows": [{"clean": "x", "corrupted": "y"}]}},
        ["data: should have exactly one", "template and rows"],
    ),
    ("no corruption", {"corrupt": None}, ["corrupt: is missing"]),
    ("two corruptions", {"corrupt": {"shuffle": True}}, ["corrupt: should have exactly one", "redraw and shuffle"]),
    ("unknown redraw", {"corrupt": {"redraw": ["c"]}}, ["corrupt.redraw: unknown slot 'c'"]),
    ("redraw of one", {"data": {"slots": {"a": ["cat"]}}}, ["corrupt.redraw: slot 'a' has only one word"]),
    (
        "rows can't redraw",
        {"data": {"template": None, "slots": None, "rows": [{"clean": "x"}]}, "answers": None, "metrics": ["kl"]},
        ["corrupt: rows have no slots"],
    ),
    (
        "fix of a table",
        {
            "data": {"template": "{a.x} {b}", "slots": {"a": {"columns": ["x"], "rows": [["p"], ["q"]]}}},
            "corrupt": {"redraw": None, "fix": {"a": "z"}},
            "answers": {"correct": " {b}", "wrong": " z"},
        },
        ["corrupt.fix: 'a' is a table"],
    ),
    ("two answers", {"answers": {"next": True}}, ["answers: should have correct (and wrong), or compare"]),
    ("answers for many", {"score_at": "all"}, ["score_at: answers are for one position"]),
    (
        "next of last",
        {"answers": {"correct": None, "wrong": None, "next": True}, "metrics": ["kl"]},
        ["score_at: the last position"],
    ),
    ("metric without wrong", {"answers": {"wrong": None}}, ["metrics: logit-diff needs wrong answers"]),
    ("metric without answers", {"answers": None}, ["metrics: logit-diff needs correct answers"]),
    ("score_at", {"score_at": "lst"}, ["score_at: should be last, all, a list of positions", "'lst'"]),
    ("score_at item", {"score_at": [1.5]}, ["score_at.0: should be a valid integer", "1.5"]),
    (
        "compare words",
        {
            "answers": {
                "correct": None,
                "wrong": None,
                "compare": {"slot": "a", "relation": "greater", "among": {"range": [0, 9]}},
            }
        },
        ["answers.compare.slot: the words of 'a' should be whole numbers"],
    ),
    (
        "compare slot",
        {
            "answers": {
                "correct": None,
                "wrong": None,
                "compare": {"slot": "year", "relation": "greater", "among": {"range": [0, 9]}},
            }
        },
        ["answers.compare.slot: unknown slot 'year'"],
    ),
    (
        "generator words",
        {
            "data": {
                "template": None,
                "slots": None,
                "generator": {"name": "repeated-tokens", "words": ["x", "y"], "length": 2},
            },
            "corrupt": None,
        },
        ["data.generator: length 2 needs 4 words"],
    ),
    (
        "generator name",
        {"data": {"template": None, "generator": {"name": "x", "words": ["x"], "length": 2}}},
        ["data.generator.name: should be 'repeated-tokens'"],
    ),
    (
        "generator with slots",
        {"data": {"template": None, "generator": {"name": "repeated-tokens", "words": list("wxyz"), "length": 2}}},
        ["data.generator: brings its own prompts"],
    ),
    (
        "compare equal",
        {
            "data": {"slots": {"a": ["1", "2"]}},
            "answers": {
                "correct": None,
                "wrong": None,
                "compare": {"slot": "a", "relation": "greater", "among": {"range": [0, 9]}, "equal": "right"},
            },
        },
        ["answers.compare.equal: should be 'wrong' or 'neither'", "'right'"],
    ),
    ("different", {"data": {"different": [["a", "c"]]}}, ["data.different: unknown slot 'c'"]),
    ("different of one", {"data": {"different": [["a"]]}}, ["data.different: ['a'] should be two or more slots"]),
    ("different twice", {"data": {"different": [["a", "a"]]}}, ["data.different: ['a', 'a'] should be two or more"]),
    (
        "different but alike",
        {
            "data": {"slots": {"a": ["cat"], "b": ["cat"]}, "different": [["a", "b"]]},
            "corrupt": {"redraw": None, "fix": {"b": "dog"}},
        },
        ["data.different: ['a', 'b'] can't all be different: there are fewer words than slots"],
    ),
    ("different not a list", {"data": {"different": ["a"]}}, ["data.different.0: should be a list", "'a'"]),
    ("name", {"name": "other"}, ["name: 'other' should be the file's name, 't'"]),
    (
        "no file",
        {"data": {"template": None, "slots": None, "file": "no.jsonl"}},
        ["no.jsonl: can't be read (No such file"],
    ),
]


@pytest.mark.parametrize(("change", "expected"), [bad[1:] for bad in BAD_FILES], ids=[bad[0] for bad in BAD_FILES])
def test_bad_file(tmp_path: Path, change: dict[str, Any], expected: list[str]) -> None:
    path = tmp_path / "t.yaml"
    content = merge(yaml.safe_load(BASE), change)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(TaskError) as error:
        load_task(str(path))
    one_line(error, str(tmp_path), *expected)


BAD_TEXTS = [
    ("syntax", "name: t\ndata: {a: [1\n", ["t.yaml: line", "not valid YAML"]),
    ("tab", "name:\tt\n\tx: 1\n", ["t.yaml: line", "not valid YAML"]),
    ("duplicate key", "name: t\nversion: 1\nname: u\n", ["t.yaml: line 3:", "key 'name' is there twice"]),
    ("alias bomb", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", ["line 2:", "aliases"]),
    ("python object", "name: !!python/object/apply:os.getcwd []\n", ["line 1:", "python/object"]),
    ("a list", "- a\n", ["t.yaml: should be a mapping with the keys name, version"]),
    ("empty", "", ["t.yaml: should be a mapping"]),
    ("deep", "a: " + "[" * 5000, ["t.yaml:", "not valid YAML"]),
    ("list as key", "? [a]\n: b\n", ["line 1:", "a key should be a word"]),
    ("false map", "a: !!map [1]\n", ["line 1:", "not valid YAML"]),
    ("date", "version: 2024-99-99\n", ["t.yaml:", "not valid YAML"]),
    ("too large", "#" * 1_000_001, ["t.yaml: is larger than 1,000,000 bytes"]),
    ("include type", "include: [a]\n", ["include: should be the name of a task", "['a']"]),
    ("include unknown", "include: greater-then\n", ["unknown task 'greater-then'", "Did you mean 'greater-than'"]),
    ("include missing file", "include: ./no.yaml\n", ["no.yaml: can't be read"]),
    ("include itself", "include: t.yaml\n", ["t.yaml: include goes round in a circle: t.yaml -> t.yaml"]),
]


@pytest.mark.parametrize(("text", "expected"), [bad[1:] for bad in BAD_TEXTS], ids=[bad[0] for bad in BAD_TEXTS])
def test_bad_text(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(TaskError) as error:
        load_task(str(tmp_path / "t.yaml"))
    one_line(error, *expected)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 12) | st.floats() | st.text("ab {}|.é\n", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=5,
)
PLACES = st.sampled_from(
    [
        ("data", key)
        for key in (
            "template",
            "templates",
            "rows",
            "slots",
            "lists",
            "pieces",
            "different",
            "bos",
            "padding",
            "splits",
        )
    ]
    + [("corrupt", key) for key in ("redraw", "fix", "template", "shuffle")]
    + [("answers", key) for key in ("correct", "wrong", "compare", "next")]
    + [("defaults", key) for key in ("metric", "threshold", "examples", "models")]
    + [(key,) for key in ("score_at", "metrics", "data", "corrupt", "answers", "defaults", "version", "include")]
)


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(PLACES, JSON), min_size=1, max_size=3))
def test_whatever_a_file_says_it_works_or_the_user_is_told(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[str, ...], Any]]
) -> None:
    """No content of a task file raises anything but a `TaskError`."""
    content = yaml.safe_load(BASE)
    for place, value in changes:
        change = value
        for key in reversed(place):
            change = {key: change}
        content = merge(content, change)
    path = tmp_path_factory.getbasetemp() / "t.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        task = load_task(str(path))
        data = make_data(task, Pieces(), min(task.defaults.examples, 3), 0)
    except TaskError:
        return
    check_split(task, data.discovery)


def test_include_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("include: b.yaml\n")
    (tmp_path / "b.yaml").write_text("include: a.yaml\n")
    with pytest.raises(TaskError) as error:
        load_task(str(tmp_path / "a.yaml"))
    one_line(error, "include goes round in a circle: a.yaml -> b.yaml -> a.yaml")


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(TaskError) as error:
        load_task(str(tmp_path / "t.yaml"))
    one_line(error, "t.yaml: is not a text file in UTF-8")


def test_unknown_task_gets_a_hint() -> None:
    with pytest.raises(TaskError) as error:
        load_task("gender-pronoun")
    one_line(error, "unknown task 'gender-pronoun'", "Did you mean 'gendered-pronoun'", "ending in .yaml")


def test_every_problem_has_its_line(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as error:
        task_of(tmp_path, {"version": "x", "source": None, "defaults": {"seed": 1.5}})
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert all("t.yaml: " in line for line in lines)


def test_every_broken_rule_has_its_line(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as error:
        task_of(tmp_path, {"data": {"slots": {"c": ["x"]}}, "answers": {"wrong": None}, "score_at": "all"})
    keys = [line.removeprefix(f"{tmp_path}/t.yaml: ").partition(":")[0] for line in str(error.value).splitlines()]
    assert keys == ["data.slots.c", "metrics", "score_at"]


BAD_ROWS = [
    ("not json", '{"clean": "a b", "corrupted": "b b"}\n{', ["r.jsonl line 2: not valid JSON"]),
    (
        "unknown key",
        '{"clean": "a b", "corupted": "b b"}',
        ["r.jsonl line 1: unknown key 'corupted'", "Did you mean 'corrupted'"],
    ),
    ("no clean", '{"corrupted": "b b"}', ["r.jsonl line 1: clean: is missing"]),
    ("no corrupted", '{"clean": "a b"}', ["corrupt: is missing and prompt 1 of data has no corrupted of its own"]),
    ("no text", '\n{"clean": 5, "corrupted": "b b"}', ["r.jsonl line 2: clean: should be a text", "got 5"]),
    ("empty text", '{"clean": "", "corrupted": "b b"}', ["r.jsonl line 1: clean:", "should not be empty"]),
    ("empty file", "", ["r.jsonl: has no rows"]),
    ("empty", "\n\n", ["r.jsonl: has no rows"]),
    ("a list", '{"clean": "a", "corrupted": "b"}\n[1]', ["r.jsonl line 2: should be a mapping"]),
    ("an array", '[{"clean": "a"}]', ["r.jsonl: is a JSON array; write one object a line", '{"clean": "Mary said']),
    ("lines of an array", '\n[\n {"clean": "a"},\n', ["r.jsonl: is a JSON array; write one object a line"]),
    (
        "lines of an object",
        '{\n"clean": "a"\n}',
        ["line 1: not valid JSON: ", "at column 2; write an object a line"],
    ),
    (
        "token id",
        '{"clean": "a", "corrupted": "b", "correct": 3}',
        ["r.jsonl line 1: correct: ", "number 3: token ids"],
    ),
    (
        "id in a list",
        '{"clean": "a", "corrupted": "b", "wrong": ["a", 3]}',
        ["r.jsonl line 1: wrong: ", "number 3: tok"],
    ),
    ("key twice", '{"clean": "a", "clean": "b", "corrupted": "c"}', ["r.jsonl line 1:", "key 'clean' is there twice"]),
    ("\u2028 ends no line", '{"clean": "\u2028", "corrupted": "b"}\n{', ["r.jsonl line 2: not valid JSON"]),
    (
        "some answers",
        '{"clean": "a", "corrupted": "b", "correct": "c"}\n{"clean": "b", "corrupted": "a"}',
        ["answers: is missing"],
    ),
]


@pytest.mark.parametrize(("text", "expected"), [bad[1:] for bad in BAD_ROWS], ids=[bad[0] for bad in BAD_ROWS])
def test_bad_rows(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "r.jsonl").write_text(text, encoding="utf-8")
    change = {
        "data": {"template": None, "slots": None, "file": "r.jsonl"},
        "corrupt": None,
        "answers": None,
        "metrics": ["kl"],
    }
    with pytest.raises(TaskError) as error:
        task_of(tmp_path, change)
    one_line(error, *expected)


# ---------------------------------------------------------------- mistakes that only tokens show

UNEQUAL = {"clean": "a b", "corrupted": "a"}
TEXT = {"answers": None, "metrics": ["kl"]}
BAD_DATA: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "unequal pair",
        {"corrupt": {"redraw": None, "template": "The {a} gave"}},
        [
            "t: example 1 'The",
            "have 5 and 3",
            "'The'|' c",
            'data.pieces: [" {slot}"] draws only words of one token',
        ],
    ),
    (
        "unequal row",
        OF_FILE
        | {"data": {"template": None, "slots": None, "rows": [UNEQUAL], "splits": "same"}, "defaults": {"examples": 1}},
        [
            "have 2 and 1: ",
            "|' b' and 'a'; replace words by others of as many tokens, as ' Mary' by ' John'",
        ],
    ),
    (
        "slot changes length",
        {"data": {"slots": {"a": ["red cat", "dog"]}}, **TEXT},
        ["slot 'a' should keep its number of tokens", "' red'|' cat'", 'data.pieces: [" {slot}"] draws only words'],
    ),
    (
        "unequal set",
        {"data": {"slots": {"b": ["hen", "red fox"]}}, **TEXT},
        ["t: example ", "has ", "most have ", "data.padding: left", "' hen'"],
    ),
    (
        "long answer",
        {"answers": {"correct": " {a} {b}", "wrong": " x"}},
        ["t: example 1 'The", "should be a single token, tokenizer pieces makes"],
    ),
    ("answer both", {"answers": {"correct": " {a}", "wrong": " {a}"}}, ["t: example 1", "both correct and wrong"]),
    (
        "identical",
        {"corrupt": {"redraw": None, "template": "The {a} and {b} gave"}},
        ["t: example 1", "clean and corrupted prompt should differ", "'The'|"],
    ),
    ("position", {"score_at": [7], **TEXT}, ["t: example 1", "score_at: position 7", "has 5 tokens", "'The'|"]),
    ("negative position", {"score_at": [-6], **TEXT}, ["t: example 1", "score_at: position -6"]),
    (
        "next of the last, from the end",
        {"score_at": [-1], "answers": {"correct": None, "wrong": None, "next": True}, "metrics": ["kl"]},
        ["score_at: position -1 should be from -5 to 3"],
    ),
    (
        "next of the last",
        {"score_at": [4], "answers": {"correct": None, "wrong": None, "next": True}, "metrics": ["kl"]},
        ["score_at: position 4 should be from -5 to 3"],
    ),
    ("too few", {"defaults": {"examples": 7}}, ["t: has only 12 distinct prompts, 14 (2 halves of 7)", "at most 6"]),
    (
        "no answer",
        {
            "data": {"template": "In {y}{a}{b}", "slots": {"y": {"range": [10, 10]}}},
            "answers": {
                "correct": None,
                "wrong": None,
                "compare": {"slot": "y", "relation": "greater", "among": {"range": [10, 10]}},
            },
        },
        ["t: example 1", "has no correct answer"],
    ),
    (
        "lonely shuffle",
        {"corrupt": {"redraw": None, "shuffle": True}, "defaults": {"examples": 1}},
        ["corrupt.shuffle: needs at least 2 examples"],
    ),
    (
        "repeated row",
        {
            "data": {"template": None, "slots": None, "rows": [{"clean": "a b"}, {"clean": "a b"}]},
            "answers": None,
            "metrics": ["kl"],
            "corrupt": {"redraw": None, "shuffle": True},
        },
        ["data.rows: row 2 'a b' repeats row 1"],
    ),
    (
        "too few rows",
        {
            "data": {"template": None, "slots": None, "rows": [{"clean": "a b"}]},
            "answers": None,
            "metrics": ["kl"],
            "corrupt": {"redraw": None, "shuffle": True},
        },
        ["has only 1 distinct prompt", "add some"],
    ),
    (
        "empty prompt",
        {
            "data": {"template": None, "slots": None, "rows": [{"clean": "_"}, {"clean": "__"}]},
            "answers": None,
            "metrics": ["kl"],
            "corrupt": {"redraw": None, "template": "x"},
            "defaults": {"examples": 1},
        },
        ["has no tokens"],
    ),
]


@pytest.mark.parametrize(("change", "expected"), [bad[1:] for bad in BAD_DATA], ids=[bad[0] for bad in BAD_DATA])
def test_bad_data(tmp_path: Path, change: dict[str, Any], expected: list[str]) -> None:
    task = task_of(tmp_path, change)
    with pytest.raises(TaskError) as error:
        make_data(task, Pieces(), task.defaults.examples, 0)
    one_line(error, *expected)


def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as error:
        make_data(task_of(tmp_path), Pieces(vocab_size=3), 2, 0)
    one_line(error, "t: example 1 'The", "token id 3", "below the vocabulary size 3")


def test_unknown_words(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as error:
        make_data(task_of(tmp_path, {"data": {"slots": {"b": ["zebra", "okapi", "yak"]}}}), Fast("tiny"), 2, 0)
    one_line(error, "t: example 1", "words that tokenizer tiny doesn't know", "'<unk>'")


def test_tokenizer_that_refuses_a_word() -> None:
    with pytest.raises(TaskError) as error:
        make_data(load_task("ioi"), Fast("tracr-reverse"), 2, 0)
    one_line(error, "ioi: tokenizer tracr-reverse can't encode ' Patrick'", "use a model that knows these words")


def test_no_examples(tmp_path: Path) -> None:
    with pytest.raises(TaskError) as error:
        make_data(task_of(tmp_path), Pieces(), 0, 0)
    one_line(error, "t: examples: should be at least 1, got 0")


def test_tokenizer_that_splits_years() -> None:
    """SmolLM2 and the Llamas have a token per digit: the error says why they can't serve the task."""
    with pytest.raises(TaskError) as error:
        make_data(load_task("greater-than"), Digits(), 2, 0)
    one_line(error, "greater-than: data.pieces:", "tokenizer digits makes ' '|'1'|", "can't serve the task")
    assert str(error.value).endswith("; use the task greater-than-digits")
    with pytest.raises(TaskError) as error:
        make_data(load_task("greater-than-digits"), Pieces(), 2, 0)
    assert "use the task" not in str(error.value)


def test_some_years_that_do_not_fit_are_drawn_again() -> None:
    class NoSixties(Pieces):
        pattern = re.compile(r" ?[A-Za-z]+| 17[0-5]\d| ?\d\d|\s|[^\w\s]+")

    split = make_data(load_task("greater-than"), NoSixties(), 50, 0).discovery
    years = [int(re.findall(r"\d+", clean)[0]) for clean, _ in split.texts]
    assert not [year for year in years if 1700 <= year < 1760]


# ---------------------------------------------------------------- tiny


def test_tiny_does_the_tasks() -> None:
    """The bundled model is competent on the held-out halves, and depends on what the corruption changes."""
    torch = pytest.importorskip("torch")
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(BUNDLED / "tiny").eval()
    tokenizer = Fast("tiny")
    assert model.config.vocab_size == tokenizer.vocab_size
    for name in LANGUAGE:
        task = load_task(name)
        split = make_data(task, tokenizer, task.defaults.examples, task.defaults.seed).held_out

        def probabilities(tokens: np.ndarray, rows: np.ndarray = split.rows) -> np.ndarray:
            with torch.no_grad():
                logits = model(torch.from_numpy(tokens)).logits[rows[:, 0], rows[:, 1]]
            return np.pad(logits.softmax(-1).numpy(), ((0, 0), (0, 1)))  # id -1 has probability 0

        def difference(p: np.ndarray, split: Split = split) -> float:
            right, wrong = (np.take_along_axis(p, ids, 1).sum(1) for ids in (split.correct, split.wrong))
            return float((right - wrong).mean())

        clean = probabilities(split.clean)
        accuracy = (split.correct == clean.argmax(-1)[:, None]).any(1).mean()
        assert accuracy > 0.95, f"{name}: accuracy {accuracy:.3f}"
        assert difference(clean) > 0.9, f"{name}: difference {difference(clean):.3f}"
        corrupted = difference(probabilities(split.corrupted))
        assert corrupted < 0.3, f"{name}: difference on the corrupted prompts {corrupted:.3f}"
