"""Progress of a discovery, for display."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Progress(NamedTuple):
    """`done` of `total` units of work (`unit`: edges, prompts, updates), and a note to show beside them."""

    done: int
    total: int
    unit: str
    note: str


Show = Callable[[Progress], None]  # displays progress


def silent(_: Progress) -> None:
    """Show nothing."""


def show_on(bar: Any) -> Show:
    """Show progress on a bar of tqdm."""

    def show(p: Progress) -> None:
        if bar.disable:
            return
        if p.unit != bar.desc:  # another stage
            bar.set_description_str(p.unit, refresh=False)
            bar.reset(p.total)
        bar.total = p.total
        bar.set_postfix_str(p.note, refresh=False)
        bar.update(p.done - bar.n)

    return show
