"""How far a discovery is, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """`done` of `total` units of work (`unit`: edges, prompts, updates), and what else is worth showing."""

    done: int
    total: int
    unit: str
    note: str


Show = Callable[[Progress], None]  # shows it


def silent(_: Progress) -> None:
    """Shows nothing."""
