"""Tasks: shipped ones, files, and prompts in memory."""

import math
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from acdc.errors import UserError, short
from acdc.io.schema import validated
from acdc.io.yaml_file import merge
from acdc.registry import METRICS
from acdc.task import load as taskfile
from acdc.task.schema import Prompt, Task


class LoadedTask(Task):
    """A task that knows the name or path it was loaded by, for the files of a circuit."""

    _name: str = PrivateAttr()


def tasks() -> dict[str, str]:
    """The shipped tasks: name → description."""
    return {name: taskfile.load_task(name).description for name in taskfile.task_names()}


def load_task(task: Any, *, name: str = "rows", **keys: Any) -> Task:
    """Load a shipped task (`acdc.tasks()`), a .yaml file of your own, or prompts in memory, and check it.

    Args:
        task: a name, a path, or rows: a list of dicts with the keys `clean`, `corrupted`, `correct`, `wrong` and
            `spans` (docs/own-data.md), or a pandas DataFrame with these columns, in which an empty cell is a key that
            the row doesn't have. Half of the rows are for discovery, the others are held out; a single one serves as
            both
        name: of the task, for rows
        keys: for rows, keys of a task file in place of their defaults, as `defaults={"threshold": 0.05}` or
            `data={"bos": True}`. By default circuits are found by KL divergence at a threshold of 0.01, and all metrics
            that the answers allow are measured
    Raises:
        UserError: it isn't found or is wrong, with a line for each problem.
    """
    if isinstance(task, str | Path):
        if keys:
            raise UserError(f"load_task: {next(iter(keys))}: is for rows; {short(str(task))} states its own")
        found = taskfile.load_task(str(task))
        name = str(task)
    else:
        found = taskfile.checked(merge(_content(_rows(task), name), keys), name)
    loaded = LoadedTask.model_construct(**dict(found))
    loaded._name = name
    return loaded


def _rows(given: Any) -> list[Prompt]:
    """The prompts in a list of dicts, or in a data frame."""
    frame = hasattr(given, "columns") and hasattr(given, "to_dict")
    rows = given.to_dict("records") if frame else given
    if not isinstance(rows, list | tuple) or not rows:
        kinds = "a name, a path, a list of dicts or a DataFrame"
        raise UserError(f"load_task: task should be {kinds}, with at least one row, got {short(given)}")
    if frame:
        rows = [{key: cell for key, cell in row.items() if not _empty(cell)} for row in rows]
    return [validated(Prompt, row, f"load_task: row {number}") for number, row in enumerate(rows, 1)]


def _empty(cell: object) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _content(rows: list[Prompt], name: str) -> dict[str, Any]:
    """The content of a task file with these rows."""
    answers = {key: all(getattr(row, key) for row in rows) for key in ("correct", "wrong")}
    can = [m for m, f in METRICS.items() if answers["correct"] >= f.needs_correct and answers["wrong"] >= f.needs_wrong]
    return {
        "name": name,
        "version": 1,
        "source": "rows given in Python",
        "description": f"{len(rows)} rows given in Python",
        "defaults": {"metric": "kl", "threshold": 0.01, "examples": max(1, len(rows) // 2)},
        "data": {"rows": rows, "padding": "left", "splits": "disjoint" if len(rows) > 1 else "same"},
        "metrics": can,
    }
