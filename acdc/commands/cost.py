"""What a piece of work costs in seconds and memory, added up in a file over interruptions."""

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

EVERY = 0.01  # seconds between two readings of resident memory


@dataclass(frozen=True)
class Cost:
    """Seconds of wall clock, and peak memory in MB above the level at the start: the device's on CUDA, else resident
    memory. Resident memory misses what reuses memory that the allocator already holds."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """The cost of one after the other."""
        return Cost(self.seconds + other.seconds, max(self.peak_memory_mb, other.peak_memory_mb))


def read_cost(path: Path) -> Cost:
    """Read `cost.json`; raise FileError if it is missing, can't be read, or isn't a cost."""
    remedy = f"remove {path.parent} to do its work again"
    if not path.exists():
        raise FileError(f"{path}: is missing; {remedy}")
    try:
        return Cost(**{key: float(value) for key, value in read_json(path).items()})
    except (TypeError, ValueError):
        raise FileError(f"{path}: should have the numbers seconds and peak_memory_mb; {remedy}") from None


@contextmanager
def metered(path: Path, device: torch.device) -> Iterator[None]:
    """Add the cost of the block to `cost.json`, also when the block is interrupted."""
    before = read_cost(path) if path.exists() else Cost()
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc only
        libc.malloc_trim(0)  # gives freed memory back to the system, so that reuse shows up in resident memory
    with watched(device) as memory:
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            begin, peak = memory()
            cost = before + Cost(seconds, (peak - begin) / 1e6)
            write_atomic(path, json.dumps(asdict(cost), indent=1) + "\n")


@contextmanager
def watched(device: torch.device) -> Iterator[Callable[[], tuple[int, int]]]:
    """Yield a function that returns the bytes of memory in use at the start, and the peak since: the device's on CUDA,
    else resident memory, read every 10 ms."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        begin = torch.cuda.memory_allocated(device)
        yield lambda: (begin, torch.cuda.max_memory_allocated(device))
        return
    process = psutil.Process()
    done = threading.Event()
    begin = process.memory_info().rss
    peak = begin

    def watch() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: (begin, max(peak, process.memory_info().rss))
    finally:
        done.set()
        thread.join()
