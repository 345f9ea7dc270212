"""Where the runs of a sweep are made. `Local` is processes of this machine; `Cluster` (slurm.py) is jobs of Slurm.

Both start workers (worker.py) on unit files, which list runs, and then look at the runs' folders to see what was done.
So a dead worker needn't report: the runs that it has not finished go to another one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from acdc.errors import FileError, UserError
from acdc.files.table import ENDED, record_failure, state
from acdc.io.files import open_own, write_atomic
from acdc.io.folder import inside
from acdc.io.progress import Say
from acdc.model.load import pick_device
from acdc.sweep.grid import Run

# What follows `-m` is run as Python does, but without the current folder on the path: a torch.py or queue.py there
# would be imported. Python's own options for this came with 3.11.
_RUN = (
    f"import sys; sys.path[:] = [*filter(None, sys.path), {str(Path(__file__).resolve().parents[2])!r}]; "
    "del sys.argv[: sys.argv.index('-m') + 1]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
PYTHON = (sys.executable, "-c", _RUN)  # then "-m", a module and its arguments
COMMAND = (*PYTHON, "-m", "acdc.sweep.worker")
ATTEMPTS = 3  # at a run whose worker dies
TOO_LARGE = "if it needs more memory than there is, use fewer --workers or a lower --memory"
GRACE = 5.0  # seconds in which a worker without runs ends by itself


class Unit(NamedTuple):
    """A worker and its runs."""

    runs: list[str]  # names of the runs that it may have finished
    end: str | None  # how the worker ended; None while it works
    advice: str = ""  # what to do about that


@dataclass
class Executor(ABC):
    """Makes runs in units."""

    out: Path  # the sweep's directory
    place: ClassVar[str]  # its folder for unit files and logs
    pause: ClassVar[float]  # seconds between two looks at the units

    @property
    def folder(self) -> Path:
        """The folder for unit files and logs."""
        return inside(self.out, self.place)

    @abstractmethod
    def device(self, name: str) -> str:
        """Return the kind of the device that a run's option `device` means there: cpu, cuda or mps; raise UserError if
        there is none such."""

    @abstractmethod
    def _start(self, runs: Sequence[Run]) -> None:
        """Start workers for these runs."""

    @abstractmethod
    def _look(self, say: Say) -> list[Unit]:
        """Return all units; a unit that has ended is returned once more, with how it ended."""

    @abstractmethod
    def _doing(self) -> str:
        """Return what is being made, with its progress."""

    @abstractmethod
    def _stop(self, finished: bool, say: Say) -> None:
        """Clean up; `finished` says whether all runs have ended."""

    def make(self, runs: Sequence[Run], say: Say) -> Generator[tuple[list[Run], str], None, None]:
        """Make the runs; yield those that have ended since the last time, and what is being made. The runs that a dead
        worker leaves are made again, up to `ATTEMPTS` times. Raises UserError if a failure can't be recorded, or Slurm
        refuses; finished runs are safe."""
        left = {run.name: run for run in runs}
        attempts = Counter[str]()
        last = Unit([], "no worker is left")
        try:
            self._start(runs)
            while left:
                time.sleep(self.pause)
                # No units: all died before they began a run.
                units = self._look(say) or [last._replace(runs=list(left))]
                begun = dict.fromkeys(name for unit in units for name in unit.runs if name in left)
                yield [left.pop(name) for name in begun if state(left[name].folder(self.out)) in ENDED], self._doing()
                for unit in units:
                    last = unit if unit.end else last
                    lost = [name for name in unit.runs if unit.end and name in left]
                    if not lost:
                        continue
                    attempts.update(lost)
                    failed = [left.pop(name) for name in lost if attempts[name] >= ATTEMPTS]
                    for run in failed:
                        message = f"{last.end}, {ATTEMPTS} times; {last.advice}{self.folder} has the logs"
                        try:
                            record_failure(run.folder(self.out), message)
                        except FileError as error:
                            again = "the sweep is stopped, and the same command continues it"
                            raise UserError(f"{error}; {again}") from None
                    yield failed, self._doing()
                    once_more = [left[name] for name in lost if name in left]
                    if once_more:
                        which = once_more[0].name if len(once_more) == 1 else f"{len(once_more)} runs"
                        say(f"{which}: {last.end}; trying again")
                    if left:
                        self._start(once_more)
        finally:
            self._stop(not left, say)


def by_inputs(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs in groups that share model, prompts and activations; groups of one model are neighbours."""
    inputs = attrgetter("config.needs")
    return [list(group) for _, group in groupby(sorted(runs, key=inputs), key=inputs)]


def write_unit(folder: Path, runs: Sequence[Run], out: Path, share: float = 1.0, memory: float | None = None) -> Path:
    """Write a unit file, with the memory for its worker (see `Worker`), and return its path."""
    entries = [
        {"folder": str(run.folder(out).absolute()), "config": run.config.model_dump(exclude_none=True)} for run in runs
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"unit-{time.time_ns()}.json"
    write_atomic(path, json.dumps({"share": share, "memory": memory, "runs": entries}) + "\n")
    return path.absolute()


def last_words(log: Path, begin: int = 0) -> str:
    """Return the reason in what a process has written to its log from byte `begin` on, with ": " before it: the last
    line of its last traceback, or the last line; "" if there is none."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 10_000))
        text = file.read().decode(errors="replace").strip()
    reason = (re.findall(r"^Traceback.*\n(?: .*\n)+(.+)", text, re.MULTILINE) or text.split("\n"))[-1]
    return f": {reason[:300]}" if reason else ""


@dataclass
class Local(Executor):
    """Processes of this machine, all on one unit file. Each begins at another group of runs that share inputs."""

    workers: int  # number of processes
    threads: int  # of each process
    memory: float | None  # bytes that each stays below; None for its share of the default
    devices: list[str]  # CUDA devices, one after the other for each worker, from the first again; empty for the CPU
    place = "logs"
    pause = 0.1
    _unit: Path | None = field(default=None, init=False)
    _starts: list[int] = field(default_factory=list, init=False)  # index of each worker's first run in the unit file
    _team: dict[int, _Process] = field(default_factory=dict, init=False)

    def device(self, name: str) -> str:
        """That of this machine."""
        return pick_device(name).type

    @property
    def cards(self) -> list[str]:
        """The CUDA device of each worker; empty for the CPU."""
        return [self.devices[number % len(self.devices)] for number in range(self.workers)] if self.devices else []

    def _start(self, runs: Sequence[Run]) -> None:
        """Start as many processes as there are runs, up to `workers`; on the first call, write the unit file."""
        if self._unit is None:
            groups = by_inputs(runs)
            together = [run for group in groups for run in group]
            share = 1 / max(Counter(self.cards).values(), default=self.workers)
            self._unit = write_unit(self.folder, together, self.out, share, self.memory)
            first_groups = [number * len(groups) // self.workers for number in range(self.workers)]
            self._starts = [sum(map(len, groups[:first])) for first in first_groups]
        free = [number for number in range(self.workers) if number not in self._team]
        for number in free[: max(1, len(runs))]:
            command = [*COMMAND, str(self._unit), str(self._starts[number])]
            env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
            if self.cards:
                env["CUDA_VISIBLE_DEVICES"] = self.cards[number]
            self._team[number] = _Process(command, env, self.folder / f"worker-{number}.log")

    def _look(self, say: Say) -> list[Unit]:
        units = {number: process.look(say) for number, process in self._team.items()}
        self._team = {number: process for number, process in self._team.items() if not units[number].end}
        return list(units.values())

    def _doing(self) -> str:
        return ", ".join(f"{worker.begun[-1]} {worker.at}".strip() for worker in self._team.values() if worker.begun)

    def _stop(self, finished: bool, say: Say) -> None:
        for worker in self._team.values():
            worker.end(GRACE if finished else 0.0)  # a run that is cut off continues from its log
            worker.look(say)  # notes that it has left
        if self._unit is not None:
            self._unit.unlink(missing_ok=True)
            shutil.rmtree(self._unit.with_suffix(".locks"), ignore_errors=True)


class _Process:
    """A worker process, with what it has said on stdout."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self.begun: list[str] = []  # names of runs
        self.at = ""  # progress of the last one
        self._notes: list[str] = []
        self._log = log
        with open_own(log, "ab") as stderr:
            self._begin = stderr.tell()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=env,
                text=True,
                start_new_session=True,  # Ctrl-C goes to the parent only, which ends the workers
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            try:
                event: Any = json.loads(line)
            except ValueError:  # cut off, or printed by a library
                continue
            if not isinstance(event, dict):
                continue
            if "run" in event:
                self.at = ""
                self.begun.append(event["run"])
            elif "note" in event:
                self._notes.append(f"{self.begun[-1]}: {event['note']}")
            elif "at" in event:
                self.at = event["at"]

    def end(self, grace: float) -> None:
        """Kill the process unless it ends by itself within `grace` seconds."""
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def look(self, say: Say) -> Unit:
        """Pass on notes, and return the runs that have been begun and how the process ended, if it has."""
        code = self.process.poll()
        if code is not None:
            self._listener.join()
        while self._notes:
            say(self._notes.pop(0))
        if code is None:
            return Unit(self.begun, None)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if code == -signal.SIGKILL:
            return Unit(self.begun, f"the worker process {how}", f"{TOO_LARGE}; ")
        return Unit(self.begun, f"the worker process {how}{last_words(self._log, self._begin)}")
