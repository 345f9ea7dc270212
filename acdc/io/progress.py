"""Progress: how much of the work is done, and how long the rest takes.

Work is a plan of stages. What does a stage reports how much of it is done, in a unit of its own. A `Forecast` learns
from the reports; a `Bar` shows it: on a terminal or in a notebook as a bar, elsewhere as a line now and then.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from acdc.io.terminal import printable, say

LINE_EVERY = 30.0  # seconds between two lines where there is no terminal
DRAW_EVERY = 0.2  # seconds between two drawings of a bar
LAYOUT = "{percentage:3.0f}% |{bar:8}| {desc}"  # what is too long for the terminal is cut off at its end
WIDGET = LAYOUT.replace(":8", "")  # of a notebook, in HTML


class Progress(NamedTuple):
    """So much of a stage is done, in a unit that takes about the same time throughout the stage."""

    stage: str
    done: float
    total: float  # as far as it is known
    note: str = ""  # shown beside it
    resumed: str = ""  # what an earlier call has done, if nothing else is done yet: it says nothing on the speed


class Plan(NamedTuple):
    """Stages to come, in order, and about how many seconds each takes."""

    stages: dict[str, float]
    before: float = 0.0  # about how many seconds the work took that was done before them
    later: float = 0.0  # and takes that comes after them


Show = Callable[[Progress | Plan], None]  # displays progress
Say = Callable[[str], None]  # gives the user a note or a warning


def silent(_: Progress | Plan) -> None:
    """Show nothing."""


def one_of(progress: Show, index: int, count: int) -> Show:
    """Report one of several pieces of work that take about the same time each."""

    def show(p: Progress | Plan) -> None:
        if isinstance(p, Plan):
            whole = sum(p.stages.values())
            p = Plan(p.stages, index * whole, (count - index - 1) * whole)
        progress(p)

    return show


def within(progress: Show, stage: str, index: int = 0, count: int = 1) -> Show:
    """Report work with stages of its own as part `index` of the `count` parts of one stage."""

    def show(p: Progress | Plan) -> None:
        if isinstance(p, Progress):
            progress(Progress(stage, (index + p.done / (p.total or 1)) / count, 1, p.note, p.resumed))

    return show


class Forecast:
    """How long the rest takes, learned from reports. The stage under way goes on as fast as so far; stages to come take
    as much longer than planned as those that have ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = {}  # stage → time it took, of those that have ended
        self.now = Progress("", 0, 0)  # the last report
        self._clock = clock
        self._started = clock()
        self._began = self._started  # the stage under way,
        self._timed = self._started, 0.0  # its timing, with what was done then,
        self._seen = self._started  # and its last report
        self._planned = 0.0  # seconds of it
        self._plan = Plan({})  # of stages to come
        self._ended = 0.0, 0.0  # seconds of planned stages that have ended: planned, taken

    def see(self, p: Progress | Plan) -> None:
        """Learn from a report."""
        if isinstance(p, Plan):
            self._plan = p._replace(stages=dict(p.stages))
            return
        now = self._clock()
        if p.stage != self.now.stage:
            self.end()
            while p.stage in self._plan.stages:  # those before it were left out: their results were known
                self._planned = self._plan.stages.pop(next(iter(self._plan.stages)))
            self._timed = now, 0.0
        if p.resumed or p.done < self.now.done:
            self._timed = now, p.done
        self.now = p
        self._seen = now

    def end(self) -> None:
        """The stage under way has ended."""
        took = self._clock() - self._began
        if self.now.stage:
            self.seconds[self.now.stage] = self.seconds.get(self.now.stage, 0.0) + took
        if self._planned:
            self._ended = self._ended[0] + self._planned, self._ended[1] + took
        self._began += took
        self._planned = 0.0
        self.now = Progress("", 0, 0)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def left(self) -> float | None:
        """Seconds that the rest takes; None if nothing tells."""
        rate = self._rate()
        if rate is None:
            return None
        here = rate * (self.now.total - self.now.done) - (self._clock() - self._seen)
        return max(0.0, here) + self._slower() * (sum(self._plan.stages.values()) + self._plan.later)

    def share(self) -> float:
        """The share of the time that is over, with that of resumed work."""
        left = self.left()
        if left is None:
            return 0.0
        before = (self._rate() or 0.0) * self._timed[1]
        over = max(self.elapsed(), self._slower() * self._plan.before) + before
        return over / (over + left)

    def _rate(self) -> float | None:
        """Seconds per unit of the stage under way."""
        begin, before = self._timed
        if self.now.done > before:
            return (self._seen - begin) / (self.now.done - before)
        return self._slower() * self._planned / self.now.total if self._planned and self.now.total else None

    def _slower(self) -> float:
        planned, took = self._ended
        return took / planned if planned else 1.0


class Bar:
    """Shows progress on stderr; called with every report."""

    def __init__(self, bar: Any = None, lines: bool = False, quiet: bool = False, clock: Any = time.monotonic) -> None:
        """`bar`: of tqdm, or `lines`: a line every 30 s instead; `quiet`: only warnings are said."""
        self.forecast = Forecast(clock)
        self._bar = bar
        self._every = DRAW_EVERY if bar is not None else LINE_EVERY if lines else math.inf
        self._quiet = quiet
        self._drawn = 0.0  # when, in seconds since the start
        self._told: set[str] = set()  # messages
        self._lock = threading.RLock()  # a thread draws, too

    def __call__(self, p: Progress | Plan) -> None:
        """Report."""
        with self._lock:
            self.forecast.see(p)
            if isinstance(p, Progress) and p.resumed:
                self.say(f"resumed: {p.resumed}")
            self.draw()

    def draw(self) -> None:
        """Draw the bar or write the line, unless the last one is recent."""
        with self._lock:
            now = self.forecast.elapsed()
            if now - self._drawn < self._every:
                return
            self._drawn = now
            if self._bar is None:
                say(f"{self.forecast.share():4.0%} {self.text()}")
                return
            self._bar.n = self.forecast.share()
            self._bar.set_description_str(self.text())

    def text(self) -> str:
        """The stage, the time until the end of all stages, and the note."""
        from tqdm import tqdm

        left = self.forecast.left()
        seconds, what = (self.forecast.elapsed(), "so far") if left is None else (left, "left")
        parts = (self.forecast.now.stage, f"{tqdm.format_interval(seconds)} {what}", self.forecast.now.note)
        return printable(", ".join(part for part in parts if part))

    def say(self, *messages: str) -> None:
        """Print messages to stderr, above the bar, each once."""
        new = [message for message in dict.fromkeys(messages) if message not in self._told]
        self._told.update(new)
        said = [message for message in new if not self._quiet or message.startswith("warning")]
        with self._lock, self._bar.external_write_mode(sys.stderr) if self._bar is not None else nullcontext():
            say(*said)


@contextmanager
def progress_bar(shown: bool = True, quiet: bool = False, verbose: bool = False) -> Iterator[Bar]:
    """Show progress on stderr: a bar that disappears at the end, in a notebook a widget, and a line now and then where
    stderr is neither. If `verbose`, say at the end how many seconds each stage took."""
    from tqdm.auto import tqdm

    shown = shown and not quiet and sys.stderr is not None  # None: it was closed from the start
    widget = "ipykernel" in sys.modules
    drawn = shown and (widget or sys.stderr.isatty())
    layout = WIDGET if widget else LAYOUT
    with tqdm(total=1.0, disable=not drawn, dynamic_ncols=True, leave=False, bar_format=layout) as of_tqdm:
        bar = Bar(of_tqdm if drawn else None, shown and not drawn, quiet)
        bar(Progress("loading", 0, 0))
        over = threading.Event()

        def tick() -> None:
            while not over.wait(1.0):  # time goes by between reports
                bar.draw()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield bar
        finally:
            over.set()
            thread.join()
            bar.forecast.end()
    if verbose:
        for stage, seconds in bar.forecast.seconds.items():
            say(f"{stage:<12} {seconds:8.1f} s")
