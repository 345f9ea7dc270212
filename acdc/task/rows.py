"""Read a task's prompts from a file: JSONL, an object a line, or CSV, a column for each key."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acdc.errors import TaskError, short, unknown
from acdc.io.files import read_text
from acdc.io.schema import validated
from acdc.io.yaml_file import unique_keys
from acdc.task.schema import Prompt

MAX_ROWS_BYTES = 100_000_000
EXAMPLE = '{"clean": "Mary said that", "corrupted": "John said that", "correct": " she", "wrong": " he"}'
TOKEN_IDS = re.compile(r"(in)?correct_?(idx|ids?)|wrong_?(idx|ids?)|.*token_?ids?")  # columns, as EAP-IG has


def read_rows(path: Path) -> list[Prompt]:
    """Return the prompts of a file, CSV if it ends in .csv, else JSONL; raise FileError with a line per problem."""
    rows = of_csv if path.suffix.lower() == ".csv" else of_jsonl
    text = read_text(path, MAX_ROWS_BYTES)
    prompts = [validated(Prompt, row, f"{path} line {line}") for line, row in rows(text, path)]
    if not prompts:
        form = "a header and a row a line" if rows is of_csv else "a JSON object a line"
        raise TaskError(f"{path}: has no rows; it should have {form}: clean, corrupted, correct, wrong")
    return prompts


def of_jsonl(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each row with its line number."""
    if text.lstrip().startswith("["):
        how = "write one object a line, without brackets around them and commas between"
        raise TaskError(f"{path}: is a JSON array; {how}: {EXAMPLE}")
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                yield number, json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise TaskError(f"{path} line {number}: not valid JSON: {why}; write an object a line: {EXAMPLE}") from None


def of_csv(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each row with its line number. An empty cell is a key that the row doesn't have; a column without a name is
    an index, which pandas writes."""
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [*filter(None, lines.fieldnames or ())]
        if ids := next(filter(TOKEN_IDS.fullmatch, names), None):
            right = "give the answers as texts in columns correct and wrong, and remove this one"
            raise TaskError(f"{path}: column {ids!r} has token ids, which differ between tokenizers; {right}")
        for name in names:
            if name not in Prompt.model_fields:
                raise TaskError(f"{path}: {unknown('column', name, Prompt.model_fields)}; rename or remove it")
            if names.count(name) > 1:
                raise TaskError(f"{path}: column {name!r} is there twice; for several answers of a prompt, use JSONL")
        for row in lines:
            if None in row or None in row.values():
                raise TaskError(f"{path} line {lines.line_num}: not a cell for each column; quote texts with commas")
            keys: dict[str, Any] = {name: cell for name, cell in row.items() if name and cell}
            if "spans" in keys:
                keys["spans"] = spans_of_cell(keys["spans"], f"{path} line {lines.line_num}")
            yield lines.line_num, keys
    except csv.Error as error:
        raise TaskError(f"{path} line {lines.reader.line_num}: not valid CSV: {error}") from None


def spans_of_cell(cell: str, where: str) -> Any:
    """Return the spans in a CSV file's cell, which are JSON."""
    try:
        return json.loads(cell, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        right = 'write a JSON object, its quotes doubled: "{""S1"": [4, 5]}"'
        raise TaskError(f"{where}: spans: not valid JSON, {short(cell)}: {error}; {right}") from None
