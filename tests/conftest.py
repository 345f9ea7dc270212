"""Fixtures that run commands. Test processes use one thread: `-n 2` fills two cores, and small tensors need no more."""

from __future__ import annotations

import os
import signal
import sys

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # processes that tests start inherit it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from acdc import cli

torch.set_num_threads(1)


class Result:
    """Exit code, stdout and stderr of a command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


# A shell starts background jobs with Ctrl-C ignored, and processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # after those that are not wanted are left out
def pytest_collection_modifyitems(items):
    """Put the longest tests first, so that none is left to one process when the others are done: at every other place,
    since a process is dealt two tests at first."""

    def minutes(item):
        slow = item.get_closest_marker("slow")
        return slow.kwargs.get("minutes", 0) if slow else 0

    longest = sorted(filter(minutes, items), key=minutes, reverse=True)
    items[:] = [item for item in items if not minutes(item)]
    for i, item in enumerate(longest):
        items.insert(2 * i, item)


@pytest.fixture(autouse=True)
def seeded():
    """Tests draw the same random numbers in any order."""
    torch.manual_seed(0)


@pytest.fixture
def acdc(monkeypatch, capfd, tmp_path):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["acdc", *map(str, arguments)])
        capfd.readouterr()  # drops what the test itself printed
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return Result(end.value.code, out, err)

    return call


@pytest.fixture
def call(acdc):
    """Like `acdc`, but returns a tuple: exit code, stdout, stderr."""

    def run(*arguments):
        result = acdc(*arguments)
        return result.code, result.out, result.err

    return run
