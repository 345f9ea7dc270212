"""Runs as a tidy table: a row per run, with its options, counts, metrics, intervals and cost.

The columns are `COLUMNS`, then one per measure of the tasks, `<half>_<what>_<metric>`. Missing values are empty.
Everything but the cost is the same no matter how often a sweep was interrupted.
"""

import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from acdc.errors import FileError, UserError, unknown
from acdc.files.circuit import CircuitFile, read_circuit
from acdc.files.metrics import CostPart, read_metrics
from acdc.graph.circuit import Circuit
from acdc.io import files
from acdc.io.files import read_json, write_atomic
from acdc.io.schema import validated
from acdc.io.yaml_file import read_yaml
from acdc.setup.config import Config

Row = dict[str, Any]
State = Literal["done", "failed", "begun", "waiting"]

ENDED = ("done", "failed")  # states of runs that are not made again unasked
FAILURE = "failure.json"
OPTIONS = (
    *("task", "model", "method", "metric", "ablation", "threshold", "target", "edges", "greedy", "abs", "direct"),
    *("positions", "features", "order", "prefilter", "examples", "seed", "dtype"),
    *("steps", "updates", "penalty", "sparsity"),
)
COUNTS = (
    *("kept", "total", "kept_with_direct", "total_with_direct", "kept_edge_spans", "total_edge_spans"),
    *("nodes", "dead"),
)
VALUES = ("judged_on", "value", "value_low", "value_high", "full", "ablated", "accuracy")
FAITHFUL = ("faithfulness", "faithfulness_low", "faithfulness_high")
AGAINST = ("true_positives", "false_positives", "true_positive_rate", "false_positive_rate")
COST = tuple(CostPart.model_fields)
HASHES = ("model_hash", "data_hash")
COLUMNS = ("run", "state", *OPTIONS, *COUNTS, *VALUES, *FAITHFUL, *AGAINST, *COST, *HASHES, "message", "folder")


def _options(kind: type) -> set[str]:
    """Return the options whose values are of a type, or None."""
    hints = get_type_hints(Config)
    hints = {name: hints["faithfulness" if name == "target" else name] for name in OPTIONS}
    return {name for name, hint in hints.items() if kind in (hint, *get_args(hint))}


WHOLE = {*_options(int), *COUNTS, *AGAINST[:2], "evaluations", "threads"}
FLAGS = _options(bool)
TEXTS = {"run", "state", *_options(str), "judged_on", *HASHES, "message", "folder"}
COMPARED = {"<=": le, ">=": ge, "!=": ne, "<": lt, ">": gt, "=": eq}


def state(folder: Path) -> State:
    """Return the state of the run in a folder; one that has lost its metrics.json isn't done."""
    if (folder / "circuit.json").exists() and (folder / "metrics.json").exists():
        return "done"
    if (folder / FAILURE).exists():
        return "failed"
    return "begun" if (folder / "config.yaml").exists() else "waiting"


def record_failure(folder: Path, message: str, trace: str | None = None) -> None:
    """Write why a run failed, for `state` and `row_of`; raise FileError if the file can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: can't be made ({error.strerror})") from None
    write_atomic(folder / FAILURE, json.dumps({"message": message, "traceback": trace}, indent=1) + "\n")


def row_of(folder: Path, directory: Path, options: dict[str, Any], truth: Circuit | None = None) -> Row:
    """Return the row of a run with these options; `truth` is a circuit of the same graph, taken as the truth.

    Raise FileError if one of its files can't be read, or the truth has another graph.
    """
    now = state(folder)
    where = folder.relative_to(directory)
    options = options | {"target": options.get("faithfulness")}  # the column faithfulness has what was measured
    row: Row = dict.fromkeys(COLUMNS) | {k: v for k, v in options.items() if k in OPTIONS}
    row |= {"run": where.name, "state": now, "folder": str(where)}
    if now == "failed":
        row["message"] = str(read_json(folder / FAILURE).get("message"))
    if now == "done":
        file = read_circuit(folder / "circuit.json")
        row |= _of_circuit(file) | _of_measures(folder / "metrics.json", row["metric"])
        row |= _against(file.circuit(), truth) if truth else {}
    return row


def _of_circuit(file: CircuitFile) -> Row:
    graph = file.graph.model_dump()
    counts = {
        f"{key}_{of}": number
        for of, part in (("with_direct", "edges_with_direct"), ("edge_spans", "edge_spans"))
        for key, number in (graph.pop(part) or {}).items()
    }
    return {
        "task": file.task.name,
        "model": file.model.name,
        **graph.pop("edges"),
        **counts,
        **graph,
        "model_hash": file.model.hash,
        "data_hash": file.task.data_hash,
        **{key.replace(".", "_"): value for key, value in file.metrics.items()},
    }


def _of_measures(path: Path, metric: str) -> Row:
    """Return the columns from metrics.json: the run's metric on the evaluation split, with intervals, and the cost."""
    file = read_metrics(path)
    half = file.half
    known = (f"model.{metric}", f"ablated.{metric}", "circuit.accuracy")
    values = (*file.metric[half], *(file.metrics.get(f"{half}.{name}") for name in known), *file.faithfulness[half])
    return dict(zip((*VALUES, *FAITHFUL), (half, *values), strict=True)) | file.cost.model_dump()


def _against(circuit: Circuit, truth: Circuit) -> Row:
    """Return the numbers and rates of true and false positives among the residual edges."""
    if circuit.graph != truth.graph:
        raise FileError("references: the reference of a task has another graph than its circuits")
    true_positives = int((circuit.edges & truth.kept).sum())
    false_positives = int((circuit.edges & ~truth.kept).sum())
    negatives = int((circuit.graph.edges & ~truth.kept).sum())
    rates = (true_positives / max(1, int(truth.kept.sum())), false_positives / max(1, negatives))
    return dict(zip(AGAINST, (true_positives, false_positives, *rates), strict=True))


def found_rows(directory: Path) -> tuple[list[Row], list[str]]:
    """Return the rows of all runs up to three folders deep, and why others, or folders of something else, are left out;
    raise FileError if there is no run."""
    if not directory.is_dir():
        raise FileError(f"{directory}: no such directory; give a sweep's directory, or one that contains runs")
    rows = []
    others = []
    for path in sorted(p for depth in range(4) for p in directory.glob("*/" * depth + "config.yaml")):
        try:
            options = read_yaml(path, Config.model_fields)
            validated(Config, options, str(path))
            rows.append(row_of(path.parent, directory, options))
        except FileError as error:
            others.append(str(error).split("\n")[0])
    if not rows:
        raise FileError("\n".join([f"{directory}: has no runs that can be read", *others]))
    return rows, others


def every_column(rows: Iterable[Row]) -> list[str]:
    """Return all columns of a table, in order."""
    return [*COLUMNS, *sorted({key for row in rows for key in row} - set(COLUMNS))]


def chosen(rows: list[Row], where: Sequence[str], sort: str | None) -> list[Row]:
    """Return the rows that meet all conditions, such as `task=ioi` or `threshold<0.1`.

    `sort=-column` sorts from the largest; empty values come last. Raise UserError for a wrong condition or column.
    """
    known = every_column(rows)
    for text in where:
        match = re.fullmatch(r"(\w+)\s*(<=|>=|!=|<|>|=)\s*(.*)", text.strip())
        if not match:
            raise UserError(f"--where: {text!r} is not a condition; write COLUMN=VALUE (or !=, <, >, <=, >=)")
        key, sign, said = match.groups()
        check_column("--where", key, known)
        value = _parsed(key, said)
        rows = [row for row in rows if row.get(key) is not None and COMPARED[sign](row[key], value)]
    if sort is None:
        return rows
    key = sort.removeprefix("-")
    check_column("--sort", key, known)
    empty = [row for row in rows if row.get(key) is None]
    filled = [row for row in rows if row.get(key) is not None]
    return sorted(filled, key=lambda row: row[key], reverse=sort.startswith("-")) + empty


def _parsed(key: str, text: str) -> Any:
    if key in TEXTS:
        return text
    if key in FLAGS:
        if text.lower() not in ("true", "false"):
            raise UserError(f"--where: {key} is true or false, not {text!r}")
        return text.lower() == "true"
    with suppress(ValueError):
        if not math.isnan(value := float(text)):
            return value
    raise UserError(f"--where: {key} is a number, not {text!r}")


def check_column(flag: str, key: str, known: Sequence[str]) -> None:
    """Raise UserError if there is no such column."""
    if key not in known:
        raise UserError(f"{flag}: {unknown('column', key, known)}")


def to_csv(rows: list[Row], names: Sequence[str] | None = None) -> str:
    """Return the table as CSV; missing values are empty."""
    names = names or every_column(rows)
    return files.to_csv([names, *([row.get(name) for name in names] for row in rows)])


def to_parquet(rows: list[Row]) -> bytes | None:
    """Return the table as Parquet; None if pyarrow, of the extra `sweeps`, is not installed."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return None
    kinds = dict.fromkeys(WHOLE, pa.int64()) | dict.fromkeys(FLAGS, pa.bool_()) | dict.fromkeys(TEXTS, pa.string())
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in every_column(rows)])
    table = pa.Table.from_pylist(rows, schema)
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()
