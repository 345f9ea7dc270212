"""Sweep files: read and checked, with the line of every key. `grid.py` makes runs of them.

base: {model: tiny, examples: 50}                  # options of `acdc run`, the same for all
grid:                                              # every combination; or a list of such grids
  task: [greater-than, ioi]
  threshold: {log: [0.001, 0.3], count: 6}
  ablation: [corrupted, zero]
exclude:                                           # named, so that the file says why
  induction has no zero: {task: induction, ablation: zero}
run_name: "{task}-{ablation}-{threshold}"          # of the runs' folders; default: the options that differ
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from acdc.errors import FileError, unknown
from acdc.io.schema import UnknownKey, mistakes
from acdc.io.yaml_file import Lines, check_trail, merge, read_yaml
from acdc.setup.config import Config
from acdc.sweep.schema import AxisRange, Option, Sweep

OPTIONS = tuple(key for key in Config.model_fields if key not in ("part", "model_hash", "data_hash"))
WHOLE = ("edges", "examples", "seed", "batch", "steps", "updates")  # options whose ranges have whole numbers
MAX_RUNS = 1_000_000
MAX_FILES = 100  # included in a sweep file


@dataclass(frozen=True)
class SweepFile:
    """A sweep file, read and checked, with the files that it includes.

    Args:
        path: of the file
        files: all files that were read, nearest first
    """

    path: Path
    sweep: Sweep
    files: tuple[Lines, ...]

    def at(self, *keys: str | int) -> str:
        """Return file and line of a key."""
        return place(self.files, keys)

    def grid_at(self, index: int) -> tuple[str | int, ...]:
        """Return the keys that lead to a grid."""
        return ("grid",) if isinstance(self.sweep.grid, dict) else ("grid", index)

    @property
    def size(self) -> int:
        """Number of runs before exclusions."""
        return sum(math.prod(map(len, self.axes(i).values())) for i in range(len(self.sweep.grids)))

    def axes(self, index: int) -> dict[str, list[Option]]:
        """Return the values of every option of one grid.

        Raises:
            FileError: an option has no values, or wrong ones.
        """
        where = self.grid_at(index)
        return {key: self._values(key, given, (*where, key)) for key, given in self.sweep.grids[index].items()}

    def _values(self, key: str, given: Any, where: tuple[str | int, ...]) -> list[Option]:
        prefix = f"{self.at(*where)}: {'.'.join(map(str, where))}"
        if isinstance(given, dict):
            try:
                return AxisRange.model_validate(given).values(key in WHOLE)
            except ValidationError as error:
                raise FileError(mistakes(prefix, error)) from None
        values = given if isinstance(given, list) else [given]
        if not values:
            raise FileError(f"{prefix}: is an empty list; give at least one value")
        if not all(isinstance(value, str | int | float | bool) for value in values):
            raise FileError(f"{prefix}: should be a value, a list of values or a range")
        if len({repr(value) for value in values}) < len(values):
            raise FileError(f"{prefix}: has a value twice")
        return values


def place(files: Sequence[Lines], keys: Sequence[str | int]) -> str:
    """Return file and line of a key, in the first file that has it; without a line if none has it."""
    for lines in files:
        if line := lines.of(keys):
            return f"{lines.path} line {line}"
    return str(files[0].path)


def read_sweep(path: Path) -> SweepFile:
    """Read and check a sweep file and the files that it includes; the options of its runs are not resolved yet.

    Raises:
        FileError: one line that says what is wrong and where.
    """
    content, files = _read_included(path, ())
    try:
        file = SweepFile(path, Sweep.model_validate(content), files)
    except ValidationError as error:
        raise FileError(mistakes(place(files, _keys(files, error)), error)) from None
    for where, options in _mappings(file):
        for key in options:
            if key not in OPTIONS:
                prefix = f"{file.at(*where, key)}: {'.'.join(map(str, where))}"
                raise FileError(f"{prefix}: {unknown('option', key, OPTIONS)}")
    _check_size(file)
    return file


def _keys(files: Sequence[Lines], error: ValidationError) -> list[str | int]:
    """Return the keys that lead to the first of pydantic's errors. Its own names for the forms of a value, which no
    file has, are left out."""
    problem = error.errors()[0]
    cause = problem.get("ctx", {}).get("error")
    parts = list(problem["loc"])
    if isinstance(cause, UnknownKey):
        parts.append(cause.key)
    keys: list[str | int] = []
    for part in parts:
        if any(lines.of([*keys, part]) for lines in files):
            keys.append(part)
    return keys


def _mappings(file: SweepFile) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """Yield every mapping of options, with the keys that lead to it."""
    yield ("base",), file.sweep.base
    for i, grid in enumerate(file.sweep.grids):
        yield file.grid_at(i), grid
    for name, rule in file.sweep.exclude.items():
        yield ("exclude", name), rule


def _check_size(file: SweepFile) -> None:
    """Raise FileError if a grid is empty, or if there are too many runs."""
    if not file.sweep.grids:
        raise FileError(f"{file.at('grid')}: grid: is empty; give options with their values")
    runs = 0
    for i, grid in enumerate(file.sweep.grids):
        if not grid:
            raise FileError(f"{file.at(*file.grid_at(i))}: grid: is empty; give options with their values")
        runs += math.prod(map(len, file.axes(i).values()))
        if runs > MAX_RUNS:
            raise FileError(f"{file.at('grid')}: grid: has more than {MAX_RUNS:,} runs")


def _read_included(path: Path, trail: tuple[Path, ...]) -> tuple[dict[str, Any], tuple[Lines, ...]]:
    """Read a file and those that it includes, and merge them."""
    content = read_yaml(path, Sweep.model_fields)
    files = [Lines(path)]
    check_trail(path, trail)
    given = content.pop("include", ())
    parents = [given] if isinstance(given, str) else given
    if not isinstance(parents, list | tuple) or not all(isinstance(p, str) for p in parents):
        raise FileError(f"{path}: include: should be a .yaml file, or a list of them")
    merged: dict[str, Any] = {}
    for parent in parents:
        included, more = _read_included(path.parent / parent, (*trail, path.resolve()))
        merged = merge(merged, included)
        files += more
        if len(files) > MAX_FILES:
            raise FileError(
                f"{path}: includes more than {MAX_FILES} files, some of them several times; include each once"
            )
    return merge(merged, content), tuple(files)
