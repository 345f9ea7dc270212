"""The runs of a sweep file: every combination of its grids, resolved and named."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

from acdc.errors import FileError, UserError, unknown
from acdc.io.folder import inside
from acdc.io.sizes import in_name
from acdc.setup.config import Config, DefaultModel, resolve
from acdc.sweep.file import OPTIONS, Option, SweepFile
from acdc.task.load import load_task
from acdc.task.schema import Task
from acdc.task.template import render


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    name: str
    config: Config
    task: Task

    def folder(self, out: Path) -> Path:
        """Return the run's directory in that of the sweep."""
        return inside(out, "runs", self.name)


def runs_of(file: SweepFile, default_model: DefaultModel | None) -> tuple[list[Run], list[str]]:
    """Return all runs in the order of the grid, and notes for the user; `default_model` is for runs that name no model.
    Raises UserError if a run is impossible, with the line of the option at fault."""
    load = lru_cache(maxsize=None)(load_task)
    found: list[tuple[Config, Task]] = []
    notes: list[str] = []
    used: set[str] = set()
    for where, axes in file.axes.items():
        for point in _points(file, axes, used):
            try:
                config, task, new = resolve({**file.sweep.base, **point}, None, default_model, load)
            except UserError as error:
                key = error.key or "task"
                place = file.lines.at(*where, key) if key in axes else file.lines.at("base", key)
                options = ", ".join(f"{key} {value}" for key, value in point.items())
                raise FileError(f"{place}: {options}: {error}") from None
            found.append((config, task))
            notes += [note for note in new if note not in notes]
    for name in file.sweep.exclude:
        if name not in used:
            rule = f"{file.lines.at('exclude', name)}: exclude: {name}"
            raise FileError(f"{rule}: excludes nothing; no run has these options")
    if not found:
        raise FileError(f"{file.path}: exclude: every run is left out")
    names = _names(file, [config for config, _ in found])
    return [Run(name, *each) for name, each in zip(names, found, strict=True)], notes


def _points(file: SweepFile, axes: dict[str, list[Option]], used: set[str]) -> Iterator[dict[str, Option]]:
    """Yield the combinations of one grid that are not excluded; add the names of exclusions that apply to `used`."""
    for combination in product(*axes.values()):
        point = dict(zip(axes, combination, strict=True))
        given = {**file.sweep.base, **point}
        excluded = False
        for name, rule in file.sweep.exclude.items():
            if all(given.get(key) in (value if isinstance(value, list) else [value]) for key, value in rule.items()):
                used.add(name)
                excluded = True
        if not excluded:
            yield point


def _names(file: SweepFile, configs: list[Config]) -> list[str]:
    """Return a folder name for every run, from `run_name` or the options that differ; raise FileError if a name can't
    be a folder's, or if two are the same."""
    dumped = [config.model_dump() for config in configs]
    in_order = dict.fromkeys([*(key for axes in file.axes.values() for key in axes), *OPTIONS])
    differ = [key for key in in_order if len({repr(values[key]) for values in dumped}) > 1]
    names = [_name(file, config, differ) for config in configs]
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if not name or name.startswith("."):
            raise FileError(f"{file.lines.at('run_name')}: run_name: gives {name!r}, not a valid folder name")
        other = first.setdefault(name, i)
        if other != i:
            missing = [key for key in OPTIONS if dumped[i][key] != dumped[other][key]]
            why = f"they differ in {', '.join(missing)}" if missing else "they are the same run"
            raise FileError(f"{file.lines.at('run_name')}: run_name: two runs would be called {name!r}; {why}")
    return names


def _name(file: SweepFile, config: Config, differ: list[str]) -> str:
    """Return the name of a run; `differ` are the options that not all runs share."""
    words = {key: _word(config, key) for key in OPTIONS} | {"digest": config.digest}
    template = file.sweep.run_name
    if template is None:
        return "-".join(words[key] for key in differ if words[key]) or config.folder
    try:
        return _plain(render(template, words))
    except KeyError as error:
        problem = unknown("name", str(error.args[0]), words)
    except ValueError as error:
        problem = str(error)
    raise FileError(f"{file.lines.at('run_name')}: run_name: {problem}")


def _word(config: Config, key: str) -> str:
    """Return an option's value as part of a name."""
    if key in ("task", "model"):
        return _plain(config.task_name if key == "task" else config.model_name)
    value = getattr(config, key)
    if value is None or value is False:
        return ""
    if value is True:
        return key
    return _plain(in_name(value) if isinstance(value, float) else str(value))


def _plain(text: str) -> str:
    """Return the text with everything but letters, digits, _, ., + and - replaced by dashes."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")
