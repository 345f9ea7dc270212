"""Reading task files: YAML and JSONL into plain data, `include` followed; then the schema and the rules of a task.

Every mistake is a `TaskError` with one line per problem: file, key, what is wrong, what would be right.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from acdc.errors import FileError, TaskError, short, unknown
from acdc.formats.atomic import read_bytes
from acdc.schema import listed, mistakes
from acdc.taskrules import problems
from acdc.taskschema import Prompt, Task

MAX_YAML_BYTES = 1_000_000
MAX_DIGITS = 100  # of a number: reading one takes as long as the square of its digits
MAX_ROWS_BYTES = 100_000_000
MAX_INCLUDES = 20


class _SlowParser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    """PyYAML's own parser, for where it was built without libyaml's, which is a hundred times as fast."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)


_Parser: Any = yaml._yaml.CParser if yaml.__with_libyaml__ else _SlowParser


class Loader(yaml.composer.Composer, _Parser, yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
    """YAML's safe loader that also refuses keys that are twice there, by their text or value; aliases (which can grow
    without bound) and merge keys (which need them); endless numbers; and tags of types that no file has."""

    yaml_constructors = {  # noqa: RUF012  typed by PyYAML
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")
    }

    def __init__(self, text: str) -> None:
        _Parser.__init__(self, text)
        yaml.composer.Composer.__init__(self)
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """PyYAML's, without aliases."""
        if self.check_event(yaml.AliasEvent):
            raise _mistake("aliases (*name) are not allowed; use data.lists", self.peek_event())
        return super().compose_node(parent, index)

    def compose_scalar_node(self, anchor: Any) -> Any:
        """PyYAML's, without numbers of more than MAX_DIGITS characters."""
        node = super().compose_scalar_node(anchor)
        if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
            raise _mistake(f"a number of {len(node.value):,} characters; at most {MAX_DIGITS} are read", node)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """PyYAML's, of keys that are words, each once."""
        seen = set[Any]()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise _mistake("a key should be a word", key)
            if key.tag.endswith(":merge"):
                raise _mistake("merge keys (<<) are not allowed; write the keys themselves, or use include", key)
            same = {key.value, self.construct_object(key)}  # 0.1 and 0.10, yes and true are one key
            if same & seen:
                raise _mistake(f"key {key.value!r} is there twice", key)
            seen |= same
        return super().construct_mapping(node, deep)


def _mistake(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """The error for a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def read_text(path: Path, limit: int = MAX_YAML_BYTES) -> str:
    """The file's text; a missing, huge or binary file, or what is none, is a `TaskError`."""
    try:
        return read_bytes(path, limit).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise TaskError(f"{path}: is not UTF-8 text") from None
    except FileError as error:
        raise TaskError(str(error)) from None


def read_yaml(path: Path, keys: Iterable[str] = Task.model_fields) -> dict[str, Any]:
    """One file as plain data, `include` not yet followed. `keys` are named if the file is no mapping."""
    try:
        content = Loader(read_text(path)).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise TaskError(f"{path}:{line} not valid YAML: {problem}") from None
    except (RecursionError, ValueError, AttributeError) as error:  # nested too deeply; an impossible date or number
        raise TaskError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise TaskError(f"{path}: should be a mapping with the keys {', '.join(keys)}")
    return content


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` over it: mappings merge, null removes a key, all else replaces (RFC 7396)."""
    merged = dict(base)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def read_included(path: Path, trail: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file with what it includes: a shipped task by name, or a .yaml relative to the file."""
    content = read_rows(read_yaml(path), path)
    check_trail(path, trail)
    if "include" not in content:
        return content
    parent = content.pop("include")
    if not isinstance(parent, str):
        raise TaskError(f"{path}: include: should be the name of a task or a .yaml file, got {short(parent)}")
    return merge(read_included(find(parent, path.parent), (*trail, path.resolve())), content)


def check_trail(path: Path, trail: tuple[Path, ...]) -> None:
    """Raise TaskError if a file includes itself, by way of others in `trail`, or too many are included by each other.
    The file has been read: only of one that is there it can be said which it is."""
    if path.resolve() in trail:
        raise TaskError(f"{path}: include goes round in a circle: {' -> '.join(p.name for p in (*trail, path))}")
    if len(trail) >= MAX_INCLUDES:
        raise TaskError(f"{path}: include goes deeper than {MAX_INCLUDES} files; put some of them into one")


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
            rows.append(Prompt.model_validate(json.loads(line, object_pairs_hook=_once)))
        except ValidationError as error:
            raise TaskError(mistakes(f"{file} line {number}", error)) from None
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{file} line {number}: not valid JSON: {error}") from None
    if not rows:
        raise TaskError(f"{file}: has no rows; it should have a JSON object a line: clean, corrupted, correct, wrong")
    return content | {"data": {**data, "rows": rows}}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys are all different."""
    found = dict[str, Any]()
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} is there twice")
        found[key] = value
    return found


def _shipped(name: str) -> Path:
    """A folder of shipped files: in the package when it is installed, else in the repository."""
    package = Path(__file__).resolve().parent
    return package / name if (package / name).is_dir() else package.parent / name


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


class Lines:
    """Where the keys of a YAML file are, for messages. A file that can't be read has none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._root = yaml.compose(read_text(path), Loader)
        except (TaskError, yaml.YAMLError):
            self._root = None

    def of(self, keys: Iterable[str | int]) -> int | None:
        """The line of a key, given as the keys on the way to it; None where it isn't there."""
        node, line = self._root, None
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                found = [(k, v) for k, v in node.value if k.value == str(key)]
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                found = [(node.value[key], node.value[key])]
            else:
                found = []
            if not found:
                return None
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        return line
