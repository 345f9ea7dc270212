"""What a piece of work costs: seconds, and the memory that it adds; kept in a file, so that it is known later."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from acdc.errors import FileError
from acdc.io.files import read_json, write_atomic

EVERY = 0.01  # seconds between two looks at resident memory


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and peak memory in MB over what there was at the beginning: the device's on CUDA, else
    resident memory, of which what the allocator keeps for later use is missed."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(self.seconds + other.seconds, max(self.peak_memory_mb, other.peak_memory_mb))


def read_cost(path: Path) -> Cost:
    """Read `cost.json`.

    Raises:
        FileError: it is missing, can't be read, or is something else.
    """
    if not path.exists():
        raise FileError(f"{path}: is missing; remove {path.parent}, and its work is done again")
    try:
        return Cost(**{key: float(value) for key, value in read_json(path).items()})
    except (TypeError, ValueError):
        raise FileError(f"{path}: should have the numbers seconds and peak_memory_mb; remove {path.parent}") from None


@contextmanager
def metered(path: Path, device: torch.device) -> Iterator[None]:
    """Add the cost of what is done inside to `cost.json`, also where it is interrupted and goes on later."""
    before = read_cost(path) if path.exists() else Cost()
    _release()
    with watched(device) as memory:
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            begin, most = memory()
            cost = before + Cost(seconds, (most - begin) / 1e6)
            write_atomic(path, json.dumps(asdict(cost), indent=1) + "\n")


def _release() -> None:
    """Give freed memory back to the system, so that using it again is seen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc has it
    if trim is not None:
        trim(0)


@contextmanager
def watched(device: torch.device) -> Iterator[Callable[[], tuple[int, int]]]:
    """Gives a function that says how many bytes of memory there were at the beginning, and at most since then: the
    device's on CUDA, else resident memory, looked at every 10 ms."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        begin = torch.cuda.memory_allocated(device)
        yield lambda: (begin, torch.cuda.max_memory_allocated(device))
        return
    process, done = psutil.Process(), threading.Event()
    begin = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(EVERY):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: (begin, max(highest, process.memory_info().rss))
    finally:
        done.set()
        thread.join()
