"""Where the runs of a sweep are made. `Local` is processes of this machine; `Cluster` (slurm.py) is jobs of Slurm.

Both start workers (worker.py) on unit files, which list runs, and then look at the runs' folders to see what was done.
So a dead worker needn't report: the runs that it has not finished go to another one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

from acdc.errors import FileError, UserError
from acdc.files.table import ENDED, record_failure, state
from acdc.io.files import write_atomic
from acdc.setup.config import Config

COMMAND = (sys.executable, "-m", "acdc.sweep.worker")
ATTEMPTS = 3  # at a run whose worker dies
GRACE = 10.0  # seconds for a worker to end


class Job(NamedTuple):
    """A run to be made."""

    name: str
    folder: Path
    config: Config


class Unit(NamedTuple):
    """A worker and its runs.

    Args:
        runs: names of the runs that it may have finished
        end: how the worker ended; None while it works
    """

    runs: list[str]
    end: str | None


class Callbacks(NamedTuple):
    """Called when a run has ended, with a message for the user, and with the progress of the runs being made."""

    ended: Callable[[str], None]
    say: Callable[[str], None]
    progress: Callable[[dict[str, str]], None]


class Executor(ABC):
    """Makes runs in units."""

    pause: float  # seconds between two looks at the units

    @property
    @abstractmethod
    def advice(self) -> str:
        """What to do about a worker that dies, for the failures of its runs."""

    @abstractmethod
    def start(self, jobs: Sequence[Job]) -> None:
        """Start workers for these runs."""

    @abstractmethod
    def look(self, say: Callable[[str], None]) -> list[Unit]:
        """Return all units; a unit that has ended is returned once more, with how it ended."""

    @abstractmethod
    def doing(self) -> dict[str, str]:
        """Return what is being made, with its progress."""

    @abstractmethod
    def stop(self, finished: bool, say: Callable[[str], None]) -> None:
        """Clean up; `finished` says whether all runs have ended."""

    def make(self, jobs: Sequence[Job], callbacks: Callbacks) -> None:
        """Make the runs. The runs that a dead worker leaves are made again, up to `ATTEMPTS` times.

        Raises:
            UserError: a failure can't be recorded, or Slurm refuses; finished runs are safe.
        """
        left = {job.name: job for job in jobs}
        attempts = Counter[str]()
        end = "no worker is left"
        try:
            self.start(jobs)
            while left:
                time.sleep(self.pause)
                units = self.look(callbacks.say)
                for name in [name for unit in units for name in unit.runs if name in left]:
                    if state(left[name].folder) in ENDED:
                        del left[name]
                        callbacks.ended(name)
                for unit in units:
                    end = unit.end or end
                    if unit.end:
                        self._again([name for name in unit.runs if name in left], end, left, attempts, callbacks)
                if not units:  # all workers died before they began a run
                    self._again(list(left), end, left, attempts, callbacks)
                callbacks.progress(self.doing())
        finally:
            self.stop(not left, callbacks.say)

    def _again(
        self, lost: list[str], end: str, left: dict[str, Job], attempts: Counter[str], callbacks: Callbacks
    ) -> None:
        """Start again the runs of a dead worker; those that have used up their attempts fail."""
        attempts.update(lost)
        for name in [name for name in lost if attempts[name] >= ATTEMPTS]:
            try:
                record_failure(left.pop(name).folder, f"{end}, {ATTEMPTS} times; {self.advice}")
            except FileError as error:
                raise UserError(f"{error}; the sweep is stopped, and the same command continues it") from None
            callbacks.ended(name)
        again = [left[name] for name in lost if name in left]
        if again:
            which = again[0].name if len(again) == 1 else f"{len(again)} runs"
            callbacks.say(f"{which}: {end}; trying again")
        if lost and left:
            self.start(again)


def by_inputs(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs in groups that share model, prompts and activations; groups of one model are neighbours."""

    def inputs(job: Job) -> list[str]:
        return [str(option) for option in job.config.needs]

    return [list(group) for _, group in groupby(sorted(jobs, key=inputs), key=inputs)]


def write_unit(folder: Path, jobs: Sequence[Job], share: float = 1.0, memory: float | None = None) -> Path:
    """Write a unit file, with the memory for its worker (see `Worker`), and return its path."""
    runs = [
        {"name": job.name, "folder": str(job.folder.absolute()), "config": job.config.model_dump(exclude_none=True)}
        for job in jobs
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"unit-{time.time_ns()}.json"
    write_atomic(path, json.dumps({"share": share, "memory": memory, "runs": runs}) + "\n")
    return path.absolute()


@dataclass
class Local(Executor):
    """Processes of this machine, all on one unit file. Each begins at another group of runs that share inputs.

    Args:
        workers: number of processes
        threads: of each process
        memory: bytes that each stays below; None for its share of the default
        devices: CUDA devices, dealt out among the workers; empty for the CPU
        logs: folder for the unit file and what the workers write to stderr
    """

    workers: int
    threads: int
    memory: float | None
    devices: tuple[str, ...]
    logs: Path
    pause = 0.1
    _unit: Path | None = field(default=None, init=False)
    _starts: list[int] = field(default_factory=list, init=False)
    _team: dict[int, _Process] = field(default_factory=dict, init=False)

    @property
    def advice(self) -> str:
        """Where the logs are, and how to use less memory."""
        return (
            "if it needs more memory than there is, use fewer --workers or a lower --memory "
            f"({self.logs} has the workers' messages)"
        )

    def start(self, jobs: Sequence[Job]) -> None:
        """Start as many processes as there are runs, up to `workers`; on the first call, write the unit file."""
        if self._unit is None:
            groups = by_inputs(jobs)
            self._unit = write_unit(
                self.logs, [job for group in groups for job in group], 1 / self.workers, self.memory
            )
            first_groups = [number * len(groups) // self.workers for number in range(self.workers)]
            self._starts = [sum(map(len, groups[:first])) for first in first_groups]
        free = [number for number in range(self.workers) if number not in self._team]
        for number in free[: max(1, len(jobs))]:
            command = [*COMMAND, str(self._unit), str(self._starts[number])]
            self._team[number] = _Process(command, self._environment(number), self.logs / f"worker-{number}.log")

    def _environment(self, number: int) -> dict[str, str]:
        env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        if self.devices:
            env["CUDA_VISIBLE_DEVICES"] = self.devices[number % len(self.devices)]
        return env

    def look(self, say: Callable[[str], None]) -> list[Unit]:
        """Return a unit per process, with the runs that it has begun."""
        units = []
        for number, process in list(self._team.items()):
            units.append(process.look(say))
            if units[-1].end:
                del self._team[number]
        return units

    def doing(self) -> dict[str, str]:
        """Return the run of every process, with its progress in percent."""
        return {process.begun[-1]: process.at for process in self._team.values() if process.begun}

    def stop(self, finished: bool, say: Callable[[str], None]) -> None:
        """End all processes."""
        for process in self._team.values():
            process.tell_to_end()
        for process in self._team.values():
            process.end()
            process.look(say)  # notes that it has left
        if self._unit is not None:
            self._unit.unlink(missing_ok=True)
            shutil.rmtree(self._unit.with_suffix(".locks"), ignore_errors=True)


class _Process:
    """A worker process, with what it has said on stdout."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self.begun: list[str] = []
        self.at = ""
        self._notes: list[str] = []
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=env,
                text=True,
                start_new_session=True,  # Ctrl-C goes to the parent only, which ends the workers
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin: IO[str] = self._process.stdin
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    def _listen(self, stdout: IO[str]) -> None:
        for line in stdout:
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

    def look(self, say: Callable[[str], None]) -> Unit:
        """Pass on notes, and return the runs that have been begun and how the process ended, if it has."""
        code = self._process.poll()
        if code is not None:
            self._listener.join()
        while self._notes:
            say(self._notes.pop(0))
        if code is None:
            return Unit(self.begun, None)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return Unit(self.begun, f"the worker process {how}")

    def tell_to_end(self) -> None:
        """Close its stdin."""
        with suppress(OSError):  # it has ended
            self._stdin.close()

    def end(self) -> None:
        """Wait until it has ended; kill it if that takes too long."""
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
