"""Read YAML safely as plain data, and find the line numbers of its keys."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from acdc.errors import FileError
from acdc.io.files import read_text

MAX_YAML_BYTES = 1_000_000
MAX_DIGITS = 100  # of a number: the time to read one grows with the square of its digits
MAX_DEPTH = 100  # levels of nesting
MAX_INCLUDES = 20

_Base: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader  # libyaml's is a hundred times as fast


class Loader(_Base):
    """YAML's safe loader with more refused: aliases (which can grow without bound), merge keys (which need aliases),
    duplicate keys, deep nesting, huge numbers, and tags of types that no file of acdc has."""

    yaml_constructors = {  # noqa: RUF012  typed by PyYAML
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")
    }

    def __init__(self, text: str) -> None:
        _check_events(text)
        super().__init__(text)

    def construct_scalar(self, node: Any) -> Any:
        """Refuse numbers of more than MAX_DIGITS characters."""
        if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
            raise _mistake(f"a number of {len(node.value):,} characters; at most {MAX_DIGITS} are read", node)
        return super().construct_scalar(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse keys that are not words, are listed twice, or merge."""
        seen = set[Any]()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise _mistake("a key should be a word", key)
            if key.tag.endswith(":merge"):
                raise _mistake("merge keys (<<) are not allowed; write the keys themselves, or use include", key)
            same = {key.value, self.construct_object(key)}  # 0.1 and 0.10, or yes and true, are the same key
            if same & seen:
                raise _mistake(f"key {key.value!r} is there twice", key)
            seen |= same
        return super().construct_mapping(node, deep)


def _check_events(text: str) -> None:
    """Refuse aliases and deep nesting before nodes are composed, which is recursive."""
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.AliasEvent):
            raise _mistake("aliases (*name) are not allowed; use data.lists", event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _mistake(f"nested more than {MAX_DEPTH} levels deep", event)


def _mistake(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """Return the error for a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def read_yaml(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Return a file as plain data, without following `include`; raise FileError, naming `keys`, if it is no mapping."""
    text = read_text(path, MAX_YAML_BYTES)
    try:
        content = Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise FileError(f"{path}:{line} not valid YAML: {problem}") from None
    except (ValueError, AttributeError) as error:  # an impossible date or number
        raise FileError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise FileError(f"{path}: should be a mapping with the keys {', '.join(keys)}")
    return content


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `change` over it: mappings merge, null removes a key, all else replaces (RFC 7396)."""
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
    """Raise FileError if a file that was read through the includes in `trail` includes itself, or they are too many."""
    if path.resolve() in trail:  # only an existing path can be resolved: read the file first
        raise FileError(f"{path}: include goes round in a circle: {' -> '.join(p.name for p in (*trail, path))}")
    if len(trail) >= MAX_INCLUDES:
        raise FileError(f"{path}: include goes deeper than {MAX_INCLUDES} files; put some of them into one")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's pairs as a dict (an `object_pairs_hook`); raise ValueError if a key is there twice."""
    found = dict[str, Any]()
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} is there twice")
        found[key] = value
    return found


class Lines:
    """Where the keys of some YAML files stand, for messages. Of several files with a key the first one counts."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._roots = {path: yaml.compose(read_text(path, MAX_YAML_BYTES), Loader) for path in paths}

    def at(self, *keys: str | int) -> str:
        """Return file and line of a key, given as the keys on the way to it; without a line if no file has it."""
        found = ((path, _line(root, keys)) for path, root in self._roots.items())
        known = (f"{path} line {line}" for path, line in found if line)
        return next(known, str(next(iter(self._roots))))

    def has(self, *keys: str | int) -> bool:
        """Return whether a file has a key."""
        return any(_line(root, keys) for root in self._roots.values())


def _line(node: Any, keys: Iterable[str | int]) -> int | None:
    """Return the line of a key below a node; None if there is none."""
    line = None
    for key in keys:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(key)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            found = node.value[key], node.value[key]
        if found is None:
            return None
        line = found[0].start_mark.line + 1
        node = found[1]
    return line
