"""The runs of a sweep as one tidy table: a row per run, with its options, counts, metrics, intervals and cost.

Columns are those of `COLUMNS`, then one per measure of the tasks, `<half>_<what>_<metric>`. What a run doesn't have is
empty. Everything but the cost is the same however often the sweep was interrupted.
"""

from __future__ import annotations

import csv
import io
import json
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from acdc.errors import FileError, UserError, unknown
from acdc.files.circuit import CircuitFile, read_circuit
from acdc.files.metrics import read_metrics
from acdc.graph.circuit import Circuit
from acdc.io.files import read_json, write_atomic
from acdc.io.schema import mistakes
from acdc.io.yaml_file import read_yaml
from acdc.setup.config import Config

Row = dict[str, Any]
State = Literal["done", "failed", "begun", "waiting"]

ENDED = ("done", "failed")  # states of runs that are not made again unasked
FAILURE = "failure.json"
OPTIONS = (
    *("task", "model", "method", "metric", "ablation", "threshold", "edges", "greedy", "abs", "direct", "order"),
    *("prefilter", "examples", "seed", "dtype", "steps", "updates", "penalty", "sparsity"),
)
COUNTS = ("kept", "total", "kept_with_direct", "total_with_direct", "nodes", "dead")
VALUES = ("judged_on", "value", "value_low", "value_high", "full", "ablated", "accuracy")
FAITHFUL = ("faithfulness", "faithfulness_low", "faithfulness_high")
AGAINST = ("true_positives", "false_positives", "true_positive_rate", "false_positive_rate")
COST = ("seconds", "peak_memory_mb", "expected_memory_mb", "evaluations", "threads")
HASHES = ("model_hash", "data_hash")
COLUMNS = ("run", "state", *OPTIONS, *COUNTS, *VALUES, *FAITHFUL, *AGAINST, *COST, *HASHES, "message", "folder")
WHOLE = {"edges", "examples", "seed", "steps", "updates", *COUNTS, *AGAINST[:2], "evaluations", "threads"}
FLAGS = {"greedy", "abs", "direct"}
TEXTS = {
    *("run", "state", "task", "model", "method", "metric", "ablation", "order", "prefilter", "dtype", "judged_on"),
    *HASHES,
    *("message", "folder"),
}
COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


def state(folder: Path) -> State:
    """What is known of the run of a folder. The circuit comes last, and a run whose measures were lost is made again:
    from its log, without deciding anything anew."""
    if (folder / "circuit.json").exists() and (folder / "metrics.json").exists():
        return "done"
    if (folder / FAILURE).exists():
        return "failed"
    return "begun" if (folder / "config.yaml").exists() else "waiting"


def record_failure(folder: Path, message: str, trace: str | None = None) -> None:
    """Write down why a run failed, as `state` and `row_of` read it.

    Raises:
        FileError: it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: can't be made ({error.strerror})") from None
    write_atomic(folder / FAILURE, json.dumps({"message": message, "traceback": trace}, indent=1) + "\n")


def row_of(name: str, folder: Path, options: dict[str, Any], where: str, truth: Circuit | None = None) -> Row:
    """The row of a run.

    Args:
        options: of its config, for a run that has no files yet
        where: its folder, as the table should say it
        truth: a circuit of the same graph that is taken for true
    Raises:
        FileError: a file of it can't be read; the truth is of another graph.
    """
    now = state(folder)
    row: Row = dict.fromkeys(COLUMNS) | {k: v for k, v in options.items() if k in OPTIONS}
    row |= {"run": name, "state": now, "folder": where}
    if now == "failed":
        row["message"] = str(read_json(folder / FAILURE).get("message"))
    if now == "done":
        file = read_circuit(folder / "circuit.json")
        row |= _of_circuit(file) | _of_measures(folder / "metrics.json", row["metric"])
        row |= _against(file.circuit(), truth) if truth else {}
    return row


def _of_circuit(file: CircuitFile) -> Row:
    residual, both = file.graph.edges, file.graph.edges_with_direct
    return {
        "task": file.task.name,
        "model": file.model.name,
        "kept": residual.kept,
        "total": residual.total,
        "kept_with_direct": both.kept if both else None,
        "total_with_direct": both.total if both else None,
        "nodes": file.graph.nodes,
        "dead": file.graph.dead,
        "model_hash": file.model.hash,
        "data_hash": file.task.data_hash,
        **{key.replace(".", "_"): value for key, value in file.metrics.items()},
    }


def _of_measures(path: Path, metric: str) -> Row:
    """What metrics.json says: the run's own metric on the half that counts, with intervals, and the cost."""
    file = read_metrics(path)
    measures, half = file.metrics, file.half
    return {
        "judged_on": half,
        **dict(zip(VALUES[1:4], file.metric[half], strict=True)),
        "full": measures.get(f"{half}.model.{metric}"),
        "ablated": measures.get(f"{half}.ablated.{metric}"),
        "accuracy": measures.get(f"{half}.circuit.accuracy"),
        **dict(zip(FAITHFUL, file.faithfulness[half], strict=True)),
        **file.cost.model_dump(),
    }


def _against(circuit: Circuit, truth: Circuit) -> Row:
    """Residual edges that are true, and that are not."""
    if circuit.graph != truth.graph:
        raise FileError("references: a reference is of another graph than the circuits of its task")
    true, kept, exist = truth.kept, circuit.kept, circuit.graph.edges
    right, wrong = int((kept & true).sum()), int((kept & ~true).sum())
    rates = (right / max(1, int(true.sum())), wrong / max(1, int((exist & ~true).sum())))
    return dict(zip(AGAINST, (right, wrong, *rates), strict=True))


def found_rows(directory: Path) -> list[Row]:
    """The rows of all runs in a directory: those of a sweep, or of `acdc run`, at any depth down to three.

    Raises:
        FileError: there are none, or one can't be read.
    """
    if not directory.is_dir():
        raise FileError(f"{directory}: no such directory; give that of a sweep, or one with directories of runs")
    stated = sorted(p for depth in range(4) for p in directory.glob("*/" * depth + "config.yaml"))
    rows = []
    for path in stated:
        options = read_yaml(path, Config.model_fields)
        if {"task", "model", "metric", "seed"} <= options.keys():
            try:
                Config.model_validate(options)
            except ValidationError as error:
                raise FileError(mistakes(str(path), error)) from None
            where = path.parent.relative_to(directory)
            rows.append(row_of(where.name, path.parent, options, str(where)))
    if not rows:
        raise FileError(f"{directory}: holds no run; give the directory of a sweep, or one with directories of runs")
    return rows


def every_column(rows: Iterable[Row]) -> list[str]:
    """All columns of a table, in order."""
    return [*COLUMNS, *sorted({key for row in rows for key in row} - set(COLUMNS))]


def chosen(rows: list[Row], where: Sequence[str], sort: str | None) -> list[Row]:
    """The rows that fulfil all conditions, as `task=ioi` or `threshold<0.1`, sorted by a column (`-name`: from the
    largest); empty values come last.

    Raises:
        UserError: a condition or a column that can't be.
    """
    known = every_column(rows)
    for text in where:
        match = re.fullmatch(r"(\w+)\s*(<=|>=|!=|<|>|=)\s*(.*)", text.strip())
        if not match:
            raise UserError(f"--where: {text!r} is no condition; write COLUMN=VALUE (or !=, <, >, <=, >=)")
        key, sign, said = match.groups()
        check_column("--where", key, known)
        value = _parsed(key, said)
        rows = [row for row in rows if row.get(key) is not None and COMPARED[sign](row[key], value)]
    if sort is None:
        return rows
    key = sort.removeprefix("-")
    check_column("--sort", key, known)
    there = sorted((r for r in rows if r.get(key) is not None), key=lambda r: r[key], reverse=sort.startswith("-"))
    return there + [r for r in rows if r.get(key) is None]


def _parsed(key: str, text: str) -> Any:
    if key in TEXTS:
        return text
    if key in FLAGS:
        if text.lower() not in ("true", "false"):
            raise UserError(f"--where: {key} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--where: {key} is a number, not {text!r}") from None


def check_column(flag: str, key: str, known: Sequence[str]) -> None:
    """Raise UserError where there is no such column."""
    if key not in known:
        raise UserError(f"{flag}: {unknown('column', key, known)}")


def to_csv(rows: list[Row], names: Sequence[str] | None = None) -> str:
    """As CSV; empty where there is no value."""
    out, names = io.StringIO(), names or every_column(rows)
    write = csv.writer(out, lineterminator="\n").writerow
    write(names)
    for row in rows:
        write([{True: "true", False: "false"}.get(v, v) if isinstance(v, bool) else v for v in map(row.get, names)])
    return out.getvalue()


def to_parquet(rows: list[Row]) -> bytes | None:
    """As Parquet with typed columns; None where pyarrow, of the extra `sweeps`, is not installed."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return None
    names = every_column(rows)
    kinds = {
        **dict.fromkeys(WHOLE, pa.int64()),
        **dict.fromkeys(FLAGS, pa.bool_()),
        **dict.fromkeys(TEXTS, pa.string()),
    }
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in names])
    table = pa.table({name: [row.get(name) for row in rows] for name in names}, schema=schema)
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()
