"""Progress of a discovery, for display."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """`done` of `total` units of work (`unit`: edges, prompts, updates), and a note to show beside them."""

    done: int
    total: int
    unit: str
    note: str


Show = Callable[[Progress], None]  # displays progress


def silent(_: Progress) -> None:
    """Show nothing."""
