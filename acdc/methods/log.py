"""The log of a discovery, one JSON line per decision: from it an interrupted run goes on.

Decisions are written in batches, each forced to disk as a whole. A batch that was cut off by a crash can't be told
from a whole one, so the last one is always taken again; the engine then gives the same bits.
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
        batch: number of the batch of candidates it was decided in
        edge: its name
        change: rise of the metric on its removal (metric units, relative to the circuit at that moment)
        margin: threshold − change (its magnitude, with --abs): how far the decision was from the other one
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
    """Decisions on their way to `log.jsonl`; without a path they are kept in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.decisions: list[Decision] = read_log(path) if path is not None and path.exists() else []
        if self.decisions:
            last = self.decisions[-1].batch
            self.decisions = [d for d in self.decisions if d.batch != last]
        # Cut only when there is something to put in its place: whoever is killed again before that loses nothing more.
        self._longer = path is not None and path.exists()

    def batches(self) -> list[list[Decision]]:
        """The decisions that an earlier run took, batch by batch."""
        out: list[list[Decision]] = []
        for d in self.decisions:
            if out and out[-1][0].batch == d.batch:
                out[-1].append(d)
            else:
                out.append([d])
        return out

    def write(self, batch: Sequence[Decision]) -> None:
        """Append one batch, and force it to disk.

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
    """The decisions of a log; a last line that was cut off is left out.

    Raises:
        FileError: a line is no decision; or the file can't be read.
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
