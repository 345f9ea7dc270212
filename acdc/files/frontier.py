"""`frontier.csv`: how faithful the nested circuits are that elimination leaves, from few edges to many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from acdc.io import files
from acdc.io.files import plain

if TYPE_CHECKING:  # it loads torch
    from acdc.evaluation.frontier import CurvePoint


def to_csv(curves: Mapping[str, Sequence[CurvePoint]]) -> str:
    """Return CSV text, a line per size: the metric and the faithfulness on each half, with their 95 % intervals; NaN
    is empty."""
    quantities = [f"{what}{end}" for what in ("metric", "faithfulness") for end in ("", "_low", "_high")]
    rows: list[list[object]] = [["edges", *(f"{half}_{name}" for half in curves for name in quantities)]]
    for points in zip(*curves.values(), strict=True):
        rows.append([points[0].edges, *(plain(x) for p in points for x in (*p.metric, *p.faithfulness))])
    return files.to_csv(rows)
