"""Reading task files: YAML and JSONL into plain data, `include` followed; then the schema and the rules of a task.

Every mistake is a `TaskError` with one line per problem: file, key, what is wrong, what would be right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from acdc.errors import FileError, TaskError, short, unknown
from acdc.io.schema import listed, mistakes
from acdc.io.yaml_file import check_trail, merge, read_text, read_yaml, unique_keys
from acdc.task.rules import problems
from acdc.task.schema import Prompt, Task

MAX_ROWS_BYTES = 100_000_000


def read_included(path: Path, trail: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file with what it includes: a shipped task by name, or a .yaml relative to the file."""
    content = read_rows(read_yaml(path, Task.model_fields), path)
    check_trail(path, trail)
    if "include" not in content:
        return content
    parent = content.pop("include")
    if not isinstance(parent, str):
        raise TaskError(f"{path}: include: should be the name of a task or a .yaml file, got {short(parent)}")
    return merge(read_included(find(parent, path.parent), (*trail, path.resolve())), content)


def read_rows(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Replace `data.file`, JSONL with one prompt a line, by `data.rows`."""
    data = content.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("file"), str) or "rows" in data:
        return content
    file, rows = path.parent / data["file"], []
    for number, line in enumerate(read_text(file, MAX_ROWS_BYTES).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Prompt.model_validate(json.loads(line, object_pairs_hook=unique_keys)))
        except ValidationError as error:
            raise TaskError(mistakes(f"{file} line {number}", error)) from None
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{file} line {number}: not valid JSON: {error}") from None
    if not rows:
        raise TaskError(f"{file}: has no rows; it should have a JSON object a line: clean, corrupted, correct, wrong")
    return content | {"data": {**data, "rows": rows}}


def _shipped(name: str) -> Path:
    """A folder of shipped files: in the package when it is installed, else in the repository."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "data" / name
    return installed if installed.is_dir() else package.parent / name


def task_dir() -> Path:
    """Where the shipped task files are."""
    return _shipped("tasks")


def task_names() -> list[str]:
    """The names of the shipped tasks."""
    return sorted(path.stem for path in task_dir().glob("*.yaml"))


def find(name: str, folder: Path = Path()) -> Path:
    """The file of a shipped task, or the path itself when it is one."""
    if name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name:
        return folder / name
    if name not in task_names():
        raise TaskError(unknown("task", name, task_names()) + "; for a file of your own, give its path ending in .yaml")
    return task_dir() / f"{name}.yaml"


def find_config(path: Path) -> Path:
    """The file of a shipped config (`sweep-tiny`, `paper/ioi`), or the path itself when it ends in .yaml.

    Raises:
        FileError: neither.
    """
    if path.suffix in (".yaml", ".yml"):
        return path
    folder = _shipped("configs")
    known = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.glob("**/*.yaml"))
    if path.as_posix() not in known:
        raise FileError(f"{unknown('config', str(path), known)}; for a file of your own, give its path ending in .yaml")
    return folder / f"{path}.yaml"


def checked(content: dict[str, Any], where: str) -> Task:
    """The task of a file's content, `include` followed. Messages begin with `where`.

    Raises:
        TaskError: it isn't of the right form, or breaks rules; a line for each problem.
    """
    try:
        task = Task.model_validate(content)
    except ValidationError as error:
        raise TaskError(mistakes(where, error)) from None
    if broken := problems(task):
        raise TaskError(listed(where, broken))
    return task


def load_task(name_or_path: str) -> Task:
    """Read and check a task: the name of a shipped one, or the path of a .yaml file."""
    path = find(name_or_path)
    task = checked(read_included(path), str(path))
    if task.name != path.stem:
        raise TaskError(f"{path}: name: {task.name!r} should be the file's name, {path.stem!r}")
    return task
