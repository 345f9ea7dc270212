"""Progress of a discovery, for display."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from acdc.io.terminal import printable


class Progress(NamedTuple):
    """`done` of `total` units of work (`unit`: edges, prompts, updates), and a note to show beside them."""

    done: int
    total: int
    unit: str
    note: str


Show = Callable[[Progress], None]  # displays progress


def silent(_: Progress) -> None:
    """Show nothing."""


@contextmanager
def progress_bar(shown: bool | None = None) -> Iterator[Show]:
    """A bar on stderr that disappears at the end; in a notebook, a widget. By default only a terminal shows it."""
    from tqdm.auto import tqdm

    if sys.stderr is None:  # was closed from the start
        shown = False
    with tqdm(disable=None if shown is None else not shown, dynamic_ncols=True, leave=False) as bar:

        def show(p: Progress) -> None:
            if bar.disable:
                return
            if p.unit != bar.desc:  # another stage
                bar.set_description_str(p.unit, refresh=False)
                bar.reset(p.total)
            bar.total = p.total
            bar.set_postfix_str(printable(p.note), refresh=False)
            bar.update(p.done - bar.n)

        yield show
