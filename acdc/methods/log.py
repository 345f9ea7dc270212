"""The log of a discovery, one JSON line per decision; an interrupted run resumes from it.

Decisions are written in batches, each forced to disk. A batch cut off by a crash can't be told from a whole one, so the
last batch in the log is always evaluated again, with the same bits.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from acdc.errors import FileError
from acdc.io.files import read_bytes


@dataclass(frozen=True)
class Decision:
    """One tested edge.

    Args:
        batch: number of the batch of candidates in which it was decided
        edge: its name
        change: rise of the metric on its removal (metric units, relative to the circuit at that moment)
        margin: threshold − change (with --abs its magnitude): distance from the opposite decision
        metric: the metric after the decision
        kept: whether the edge stays
    """

    batch: int
    edge: str
    change: float
    margin: float
    metric: float
    kept: bool


class Journal:
    """The decisions of a discovery, kept in `log.jsonl`; without a path in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.decisions: list[Decision] = []
        # The file is truncated just before the next write, so that a second crash loses nothing.
        self._longer = path is not None and path.exists()
        if path is not None and path.exists():
            decisions = read_log(path)
            self.decisions = [d for d in decisions if d.batch != decisions[-1].batch]

    def batches(self) -> list[list[Decision]]:
        """The decisions of an earlier run, batch by batch."""
        out: list[list[Decision]] = []
        for d in self.decisions:
            if out and out[-1][0].batch == d.batch:
                out[-1].append(d)
            else:
                out.append([d])
        return out

    def write(self, batch: Sequence[Decision]) -> None:
        """Append one batch and force it to disk.

        Raises:
            FileError: it can't be written.
        """
        if self.path is not None:
            try:
                self._append(self.path, batch)
            except OSError as error:
                raise FileError(f"{self.path}: can't be written ({error.strerror})") from None
        self.decisions += batch

    def _append(self, path: Path, batch: Sequence[Decision]) -> None:
        if self._longer:
            _truncate(path, len(self.decisions))
            self._longer = False
        with path.open("a", encoding="utf-8") as f:
            f.write("".join(json.dumps(asdict(d)) + "\n" for d in batch))
            f.flush()
            os.fsync(f.fileno())


def read_log(path: Path) -> list[Decision]:
    """Read the decisions of a log, without a last line that was cut off.

    Raises:
        FileError: a line is not a decision, or the file can't be read.
    """
    lines = read_bytes(path).split(b"\n")
    out = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            out.append(Decision(**_checked(json.loads(line))))
        except (ValueError, TypeError, RecursionError):
            if number == len(lines):  # cut off in the middle of a line
                break
            raise FileError(
                f"{path}, line {number}: not a decision of this log; remove the folder or use --force"
            ) from None
    return out


def _checked(raw: Any) -> dict[str, Any]:
    kinds = {"batch": int, "edge": str, "change": float, "margin": float, "metric": float, "kept": bool}
    if not isinstance(raw, dict) or {k: type(v) for k, v in raw.items()} != kinds:
        raise ValueError(raw)
    if not all(math.isfinite(raw[key]) for key in ("change", "margin", "metric")):
        raise ValueError(raw)
    return raw


def _truncate(path: Path, lines: int) -> None:
    with path.open("rb+") as f:
        for _ in range(lines):
            f.readline()
        f.truncate()
