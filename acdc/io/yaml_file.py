"""YAML as plain data, read safely, with the line numbers of its keys."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from acdc.errors import FileError, TaskError
from acdc.io.files import read_bytes

MAX_YAML_BYTES = 1_000_000
MAX_DIGITS = 100  # of a number: reading one takes as long as the square of its digits
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


def read_yaml(path: Path, keys: Iterable[str]) -> dict[str, Any]:
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


def check_trail(path: Path, trail: tuple[Path, ...]) -> None:
    """Raise TaskError if a file includes itself, by way of others in `trail`, or too many are included by each other.
    The file has been read: only of one that is there it can be said which it is."""
    if path.resolve() in trail:
        raise TaskError(f"{path}: include goes round in a circle: {' -> '.join(p.name for p in (*trail, path))}")
    if len(trail) >= MAX_INCLUDES:
        raise TaskError(f"{path}: include goes deeper than {MAX_INCLUDES} files; put some of them into one")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys are all different."""
    found = dict[str, Any]()
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} is there twice")
        found[key] = value
    return found


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
