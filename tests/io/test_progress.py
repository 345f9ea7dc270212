"""The forecast, by a clock that tests move, and what a bar shows of it."""

import io
import sys

import pytest
from tqdm import tqdm

from acdc.io import progress
from acdc.io.progress import Bar, Forecast, Plan, Progress, one_of, progress_bar


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_stage_goes_on_as_fast_as_so_far(clock):
    forecast = Forecast(clock)
    forecast.see(Progress("search", 0, 100))
    assert forecast.left() is None and forecast.share() == 0
    clock.now += 10
    forecast.see(Progress("search", 20, 100))
    assert (forecast.left(), forecast.share()) == (40, 0.2)
    clock.now += 5  # nothing is reported: time goes by all the same
    assert forecast.left() == 35
    forecast.see(Progress("search", 30, 180))  # there is more to do than was thought
    assert forecast.left() == 75


def test_stages_to_come_are_corrected_by_those_that_have_ended(clock):
    forecast = Forecast(clock)
    forecast.see(Plan({"loading": 1, "filter": 2, "search": 10, "report": 3}, later=5))
    forecast.see(Progress("filter", 0, 8))  # loading is left out
    assert forecast.left() == 2 + 10 + 3 + 5
    clock.now += 6  # three times as long as planned
    forecast.see(Progress("search", 0, 50))
    assert forecast.left() == 3 * (10 + 3 + 5)
    clock.now += 4
    forecast.see(Progress("search", 25, 50))
    assert forecast.left() == 4 + 3 * (3 + 5)
    assert forecast.share() == pytest.approx(10 / 38)
    forecast.end()
    assert forecast.seconds == {"filter": 6, "search": 4}


def test_resumed_work_counts_as_done_but_not_as_fast(clock):
    """122,553 decisions a second were those of the log."""
    forecast = Forecast(clock)
    forecast.see(Plan({"search": 60}))
    forecast.see(Progress("search", 0, 100))
    for done in range(10, 61, 10):
        clock.now += 0.001
        forecast.see(Progress("search", done, 100, resumed="60 decisions from the log"))
    assert forecast.left() == pytest.approx(0.4 * 60)  # as planned: nothing else is known
    assert forecast.share() == pytest.approx(0.6, abs=0.001)
    clock.now += 20
    forecast.see(Progress("search", 80, 100))
    assert forecast.left() == pytest.approx(20)
    assert forecast.share() == pytest.approx(0.8, abs=0.001)


def test_pieces_of_work_that_are_alike_share_one_forecast(clock):
    forecast = Forecast(clock)
    for i, begun in enumerate((100, 108, 116)):
        show = one_of(forecast.see, i, 3)
        show(Plan({"search": 2, "report": 2}))
        show(Progress("search", 0, 1))
        assert clock.now == begun
        assert forecast.left() == (4 + 8 if i == 0 else 2 * 4 * (3 - i))  # the first one took twice as long as planned
        clock.now += 4
        show(Progress("report", 0, 1))
        clock.now += 4


NOTE = "metric 0.01234, a11.h11<q>, kept 123, left 20,023, removed 12,345"


def test_at_80_columns_the_metric_is_visible(clock):
    stream = io.StringIO()
    with tqdm(total=1.0, file=stream, ncols=80, bar_format=progress.LAYOUT, leave=False) as of_tqdm:
        bar = Bar(of_tqdm, clock=clock)
        bar(Progress("elimination", 0, 100, NOTE))
        clock.now += 3600
        bar(Progress("elimination", 10, 100, NOTE))
        shown = stream.getvalue().split("\r")[-1]
    assert len(shown) <= 80
    assert shown.startswith(" 10% |")
    assert "| elimination, 9:00:00 left, metric 0.01234, a11.h11<q>, kept" in shown


def test_messages_stand_above_the_bar_and_what_was_resumed_is_said_once(clock, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with tqdm(total=1.0, file=stream, ncols=80, bar_format=progress.LAYOUT) as of_tqdm:
        bar = Bar(of_tqdm, clock=clock)
        for done in (1, 2):
            bar(Progress("search", done, 10, resumed="1,234 decisions from the log"))
    lines = stream.getvalue().split("\n")
    assert lines[0].endswith("\rresumed: 1,234 decisions from the log")
    assert stream.getvalue().count("resumed") == 1


def test_without_a_terminal_there_is_a_line_every_30_seconds(clock, capsys):
    bar = Bar(lines=True, clock=clock)
    bar(Progress("search", 0, 200))
    for done in range(100):
        clock.now += 1
        bar(Progress("search", done + 1, 200, f"metric {done}\x1b"))
    assert capsys.readouterr().err.splitlines() == [
        " 15% search, 02:50 left, metric 29\\u001b",
        " 30% search, 02:20 left, metric 59\\u001b",
        " 45% search, 01:50 left, metric 89\\u001b",
    ]


def test_a_long_stage_without_reports_is_shown_all_the_same(clock, capsys):
    bar = Bar(lines=True, clock=clock)
    bar(Plan({"filter": 100, "search": 60}))
    bar(Progress("filter", 0, 1))
    clock.now += 40
    bar.draw()  # by the thread
    assert capsys.readouterr().err == " 25% filter, 02:00 left\n"


@pytest.mark.parametrize(
    ("quiet", "verbose", "said"),
    [(False, False, ["a note", "warning: b"]), (True, False, ["warning: b"]), (False, True, ["a note", "warning: b"])],
)
def test_quiet_and_verbose(capsys, quiet, verbose, said):
    with progress_bar(quiet=quiet, verbose=verbose) as bar:
        bar.say("a note", "warning: b")
        bar(Progress("search", 0, 1))
    lines = capsys.readouterr().err.splitlines()
    assert lines[: len(said)] == said
    assert [line.split()[0] for line in lines[len(said) :]] == (["loading", "search"] if verbose else [])
    assert all(line.endswith(" s") for line in lines[len(said) :])


def test_a_terminal_gets_a_bar_and_nothing_else_does(monkeypatch):
    for terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bar() as bar:
            bar._drawn = -1.0
            bar(Progress("search", 0, 1))
        assert ("search" in stream.getvalue()) == terminal
    for nothing in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stderr", nothing)
        with progress_bar(shown=False) as bar:
            bar(Progress("search", 0, 1))
    assert not nothing.getvalue()
