"""Read task files: YAML, with its rows and what it includes, into plain data; then check the schema and the rules."""

from pathlib import Path
from typing import Any

from acdc.errors import FileError, TaskError, short, unknown
from acdc.io.schema import listed, validated
from acdc.io.yaml_file import check_trail, merge, read_yaml
from acdc.task.rows import read_rows
from acdc.task.rules import problems
from acdc.task.schema import Task


def read_included(path: Path, trail: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a file's content merged over what it includes: a shipped task by name, or a .yaml relative to the file."""
    content = read_yaml(path, Task.model_fields)
    data = content.get("data")
    if isinstance(data, dict) and isinstance(data.get("file"), str) and "rows" not in data:
        content["data"] = {**data, "rows": read_rows(path.parent / data["file"])}
    check_trail(path, trail)
    if "include" not in content:
        return content
    parent = content.pop("include")
    if not isinstance(parent, str):
        raise TaskError(f"{path}: include: should be the name of a task or a .yaml file, got {short(parent)}")
    included = read_included(find(parent, beside=path.parent), (*trail, path.resolve()))
    included.pop("name", None)
    if isinstance(data, dict) and {"template", "spans"} & data.keys() and isinstance(included.get("data"), dict):
        included["data"].pop("spans", None)  # they are parts of the included template, and in its order
    return merge(included, content)


def shipped_dir(name: str) -> Path:
    """Return a folder of shipped files: in the package if it is installed, else in the repository."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "data" / name
    return installed if installed.is_dir() else package.parent / name


def task_names() -> list[str]:
    """Return the names of the shipped tasks."""
    return sorted(path.stem for path in shipped_dir("tasks").glob("*.yaml"))


def find(name: str, kind: str = "task", shipped: str = "tasks", beside: Path = Path()) -> Path:
    """Return the file of a name in the folder `shipped`, or, for a path, the path itself relative to `beside`."""
    if name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name:
        return beside / name
    return shipped_file(name, kind, shipped, "*.yaml")


def find_config(path: Path) -> Path:
    """Return the file of a shipped config (`sweep-tiny`, `paper/ioi`), or the path itself if it ends in .yaml."""
    if path.suffix in (".yaml", ".yml"):
        return path
    return shipped_file(path.as_posix(), "config", "configs", "**/*.yaml")


def shipped_file(name: str, kind: str, folder: str, pattern: str) -> Path:
    """Return the file of this name in a folder of shipped files; raise FileError if there is none."""
    top = shipped_dir(folder)
    known = {path.relative_to(top).with_suffix("").as_posix(): path for path in top.glob(pattern)}
    if name not in known:
        raise FileError(f"{unknown(kind, name, known)}; for a file of your own, give its path ending in .yaml")
    return known[name]


def checked(content: dict[str, Any], where: str) -> Task:
    """Return the task in a file's content, `include` already followed; raise FileError with a line per problem."""
    task = validated(Task, content, where)
    if broken := problems(task):
        raise FileError(listed(where, broken))
    return task


def load_task(name_or_path: str) -> Task:
    """Read and check a shipped task, or a .yaml file; raise TaskError with a line per problem."""
    try:
        path = find(name_or_path)
        task = checked({"name": path.stem, **read_included(path)}, str(path))
    except FileError as error:
        raise TaskError(str(error)) from None
    if task.name != path.stem:
        raise TaskError(f"{path}: name: {task.name!r} should be the file's name, {path.stem!r}; it may be left out")
    return task
