"""Read task files: YAML and JSONL into plain data, follow `include`, then check the schema and the rules.

Every mistake is a `TaskError` with a line per problem: file, key, what is wrong, what would be right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from acdc.errors import FileError, TaskError, short, unknown
from acdc.io.files import read_text
from acdc.io.schema import listed, mistakes, validated
from acdc.io.yaml_file import check_trail, merge, read_yaml, unique_keys
from acdc.task.rules import problems
from acdc.task.schema import Prompt, Task

MAX_ROWS_BYTES = 100_000_000


def read_included(path: Path, trail: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the content of a file merged over what it includes: a shipped task by name, or a .yaml relative to the
    file.

    Raises:
        UserError: a file can't be read, or is not a mapping.
    """
    content = read_rows(read_yaml(path, Task.model_fields), path)
    check_trail(path, trail)
    if "include" not in content:
        return content
    parent = content.pop("include")
    if not isinstance(parent, str):
        raise TaskError(f"{path}: include: should be the name of a task or a .yaml file, got {short(parent)}")
    return merge(read_included(find(parent, path.parent), (*trail, path.resolve())), content)


def read_rows(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Replace `data.file`, a JSONL file with one prompt per line, by `data.rows`."""
    data = content.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("file"), str) or "rows" in data:
        return content
    file = path.parent / data["file"]
    rows = []
    for number, line in enumerate(read_text(file, MAX_ROWS_BYTES).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{file} line {number}: not valid JSON: {error}") from None
        rows.append(validated(Prompt, row, f"{file} line {number}"))
    if not rows:
        raise TaskError(f"{file}: has no rows; it should have a JSON object a line: clean, corrupted, correct, wrong")
    return content | {"data": {**data, "rows": rows}}


def _shipped(name: str) -> Path:
    """Return a folder of shipped files: in the package if it is installed, else in the repository."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "data" / name
    return installed if installed.is_dir() else package.parent / name


def task_dir() -> Path:
    """Return the folder of the shipped task files."""
    return _shipped("tasks")


def task_names() -> list[str]:
    """Return the names of the shipped tasks."""
    return sorted(path.stem for path in task_dir().glob("*.yaml"))


def find(name: str, folder: Path = Path()) -> Path:
    """Return the file of a shipped task, or the path itself, relative to `folder`, if it looks like one.

    Raises:
        TaskError: there is no such task.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name:
        return folder / name
    if name not in task_names():
        raise TaskError(unknown("task", name, task_names()) + "; for a file of your own, give its path ending in .yaml")
    return task_dir() / f"{name}.yaml"


def find_config(path: Path) -> Path:
    """Return the file of a shipped config (`sweep-tiny`, `paper/ioi`), or the path itself if it ends in .yaml.

    Raises:
        FileError: there is no such config.
    """
    if path.suffix in (".yaml", ".yml"):
        return path
    folder = _shipped("configs")
    known = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.glob("**/*.yaml"))
    if path.as_posix() not in known:
        raise FileError(f"{unknown('config', str(path), known)}; for a file of your own, give its path ending in .yaml")
    return folder / f"{path}.yaml"


def checked(content: dict[str, Any], where: str) -> Task:
    """Return the task in a file's content, `include` already followed.

    Args:
        where: begins each line of the message
    Raises:
        TaskError: the content does not fit the schema or breaks rules; a line per problem.
    """
    try:
        task = Task.model_validate(content)
    except ValidationError as error:
        raise TaskError(mistakes(where, error)) from None
    if broken := problems(task):
        raise TaskError(listed(where, broken))
    return task


def load_task(name_or_path: str) -> Task:
    """Read and check a task: a shipped one by name, or a .yaml file by path.

    Raises:
        TaskError: there is no such task, or the file is wrong; a line per problem.
    """
    path = find(name_or_path)
    try:
        content = read_included(path)
    except FileError as error:
        raise TaskError(str(error)) from None
    task = checked(content, str(path))
    if task.name != path.stem:
        raise TaskError(f"{path}: name: {task.name!r} should be the file's name, {path.stem!r}")
    return task
