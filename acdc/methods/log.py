"""The log of a discovery, one JSON line per decision; an interrupted run resumes from it.

Decisions are written in batches, each forced to disk. A batch cut off by a crash can't be told from a whole one, so the
last batch in the log is always evaluated again, with the same bits.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

from acdc.errors import FileError
from acdc.io.files import open_own, read_bytes


@dataclass(frozen=True)
class Decision:
    """One tested edge."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    batch: int  # number of the batch of candidates in which it was decided
    edge: str  # name
    change: float  # rise of the metric on its removal (metric units, relative to the circuit at that moment)
    margin: float  # threshold − change (with --abs its magnitude): distance from the opposite decision
    metric: float  # the metric after the decision
    kept: bool  # whether the edge stays


_decision = TypeAdapter(Decision)


class Journal:
    """The decisions of a discovery, kept in `log.jsonl`; without a path in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.decisions: list[Decision] = []
        self.batch = 0  # number of the current batch
        # The file is truncated just before the next write, so that a second crash loses nothing.
        self._longer = path is not None and path.exists()
        if path is not None and self._longer:
            decisions = read_log(path)
            self.decisions = [d for d in decisions if d.batch != decisions[-1].batch]
        self.resumed = f"{len(self.decisions):,} decisions from the log"
        self._recorded = iter([list(batch) for _, batch in groupby(self.decisions, lambda d: d.batch)])

    def begin(self, edges: Iterable[str], whole: bool = False) -> list[Decision] | None:
        """Begin the next batch, on edges of these names: returns the decisions of an earlier run, on the first of the
        edges or, if `whole`, all, or None. Raises FileError if the earlier run decided on other edges."""
        self.batch += 1
        decisions = next(self._recorded, None)
        if decisions is None:  # the names are not looked at: a search would make thousands for every batch
            return None
        if [d.edge for d in decisions] != list(edges if whole else islice(edges, len(decisions))):
            raise FileError(f"{self.path}: batch {self.batch} tests other edges than this run; use --force")
        return decisions

    def write(self, batch: Sequence[Decision]) -> None:
        """Append one batch and force it to disk; raise FileError if that fails."""
        if self.path is not None:
            try:
                if self._longer:
                    with open_own(self.path, "rb+") as f:
                        for _ in self.decisions:
                            f.readline()
                        f.truncate()
                    self._longer = False
                with open_own(self.path, "ab") as f:
                    f.write("".join(json.dumps(asdict(d)) + "\n" for d in batch).encode())
                    f.flush()
                    os.fsync(f.fileno())
            except OSError as error:
                raise FileError(f"{self.path}: can't be written ({error.strerror})") from None
        self.decisions += batch


def read_log(path: Path) -> list[Decision]:
    """Read the decisions of a log, without a last line that was cut off. Raises FileError if another line is not a
    decision, or the file can't be read."""
    lines = read_bytes(path).split(b"\n")
    out = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            out.append(_decision.validate_json(line))
        except ValueError:
            if number == len(lines):  # cut off in the middle of a line
                break
            wrong = f"{path}, line {number}: not a decision of this log; remove the folder or use --force"
            raise FileError(wrong) from None
    return out
