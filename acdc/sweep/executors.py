"""Where the runs of a sweep are made: in processes of this machine, or as jobs of a Slurm cluster.

Both know a run by its folder only. What becomes of it is read from there, so that neither a process nor a job has to
live to tell. Runs that share a model and prompts go to the same process.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from acdc.errors import FileError, UserError
from acdc.files.table import record_failure, state
from acdc.io.files import read_json, write_atomic
from acdc.setup.config import Config
from acdc.sweep.file import Slurm

COMMAND = (sys.executable, "-m", "acdc.sweep.worker")
ATTEMPTS = 3  # at a run whose process is killed
GRACE = 10.0  # seconds for a worker to end
POLL = 2.0  # seconds between two looks at a cluster
GONE = 3  # looks at which a job is not in the queue, before it counts as gone: file systems of clusters are late


class Job(NamedTuple):
    """A run to be made."""

    name: str
    folder: Path
    config: Config

    def order(self) -> dict[str, Any]:
        """As the worker is told of it."""
        return {"name": self.name, "folder": str(self.folder.absolute()), "config": self.config.model_dump()}


class Callbacks(NamedTuple):
    """Who is told: of a run that has ended, of what the user should know, and of how far the others are."""

    ended: Callable[[str], None]
    say: Callable[[str], None]
    at: Callable[[dict[str, str]], None]


# ---------------------------------------------------------------- this machine


@dataclass(frozen=True)
class Local:
    """Processes of this machine.

    Args:
        workers: how many, of `threads` threads each
        memory: bytes that each stays below; None for its share of the default
        devices: of CUDA, dealt out among the workers; none for the CPU
        logs: folder for what they write to stderr
    """

    workers: int
    threads: int
    memory: float | None
    devices: tuple[str, ...]
    logs: Path

    def make(self, jobs: Sequence[Job], callbacks: Callbacks) -> None:
        """Make the runs. A process that is killed is replaced, and its run goes on.

        Raises:
            UserError: a failure can't be recorded; the runs so far are safe.
        """
        waiting, attempts, now = list(jobs), Counter[str](), dict[str, str]()
        events: queue.Queue[tuple[_Process, dict[str, Any] | None]] = queue.Queue()
        team: list[_Process] = []
        with ExitStack() as stack:
            stack.callback(_stop, team)
            for number in range(min(self.workers, len(jobs))):
                team.append(_Process(number, self, events))
                team[-1].take(waiting, team)
            while any(p.job for p in team):
                process, event = events.get()
                if event is None:
                    self._replace(process, waiting, attempts, team, events, callbacks)
                elif "fatal" in event:
                    raise UserError(
                        event["fatal"] + "; the sweep is stopped, and goes on from here with the same command"
                    )
                elif "note" in event:
                    callbacks.say(f"{process.doing}: {event['note']}")
                elif "ended" in event:
                    now.pop(event["ended"], None)
                    callbacks.ended(event["ended"])
                    process.take(waiting, team)
                else:
                    now[process.doing] = f"{event['done'] / max(1, event['total']):.0%}"
                    callbacks.at(now)

    def _replace(
        self,
        dead: _Process,
        waiting: list[Job],
        attempts: Counter[str],
        team: list[_Process],
        events: queue.Queue[tuple[_Process, dict[str, Any] | None]],
        callbacks: Callbacks,
    ) -> None:
        """Put another process in the place of one that has ended without being told to."""
        job, code = dead.job, dead.code()
        team.remove(dead)
        if job is None:
            return
        attempts[job.name] += 1
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if attempts[job.name] < ATTEMPTS:
            callbacks.say(f"{job.name}: its process {how}; it goes on in another one")
            waiting.insert(0, job)
        else:
            record_failure(
                job.folder,
                f"its process {how}, {ATTEMPTS} times; if it wants more memory than there is, try fewer --workers or a "
                f"lower --memory ({dead.log} has what it said)",
            )
            callbacks.ended(job.name)
        if waiting:
            team.append(_Process(dead.number, self, events))
            team[-1].take(waiting, team)


class _Process:
    """A worker process (acdc/sweep/worker.py), and the run that it is making."""

    def __init__(self, number: int, place: Local, events: queue.Queue[tuple[_Process, dict[str, Any] | None]]) -> None:
        self.number = number
        self.job: Job | None = None
        self.last: tuple[str | int, ...] | None = None
        place.logs.mkdir(parents=True, exist_ok=True)
        self.log = place.logs / f"worker-{number}.log"
        env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(place.threads))
        env |= {"ACDC_WORKER_SHARE": str(1 / place.workers)}
        if place.memory is not None:
            env["ACDC_WORKER_MEMORY"] = str(place.memory)
        if place.devices:
            env["CUDA_VISIBLE_DEVICES"] = place.devices[number % len(place.devices)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                text=True,
                start_new_session=True,  # Ctrl-C is for us; we tell it
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin: IO[str] = self.process.stdin
        threading.Thread(target=self._listen, args=(self.process.stdout, events), daemon=True).start()

    def _listen(self, stdout: IO[str], events: queue.Queue[tuple[_Process, dict[str, Any] | None]]) -> None:
        for line in stdout:
            try:
                event = json.loads(line)
            except ValueError:  # cut off, or not the worker's: a library that prints
                continue
            if isinstance(event, dict):
                events.put((self, event))
        events.put((self, None))

    @property
    def doing(self) -> str:
        return self.job.name if self.job else ""

    def take(self, waiting: list[Job], team: list[_Process]) -> None:
        """Begin with the next run: one that shares inputs with the last one, else one that nobody shares inputs with,
        of the kind that there are most of."""
        self.job = None
        if not waiting:
            return
        kinds = Counter(job.config.needs for job in waiting)
        taken = {p.last for p in team if p is not self}
        best = max(kinds, key=lambda kind: (kind == self.last, kind not in taken, kinds[kind]))
        self.job = waiting.pop(next(i for i, job in enumerate(waiting) if job.config.needs == best))
        self.last = best
        with suppress(OSError):  # it has died; that is told by its stdout
            self.stdin.write(json.dumps(self.job.order()) + "\n")
            self.stdin.flush()

    def code(self) -> int:
        """Its exit code, once it has closed its stdout."""
        return self.process.wait()


def _stop(team: list[_Process]) -> None:
    """Tell all to end, and see that they do."""
    for p in team:
        with suppress(OSError):
            p.stdin.close()
    for p in team:
        try:
            p.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            p.process.kill()
            p.process.wait()


# ---------------------------------------------------------------- Slurm


@dataclass(frozen=True)
class Cluster:
    """Jobs of a Slurm cluster, submitted as an array by submitit.

    Their states are asked of `squeue`: without an accounting database Slurm forgets a job that was killed, and submitit
    would wait for it forever. Which jobs there are is kept in `jobs.json`: a sweep that is called again waits for those
    that are still there.
    """

    options: Slurm
    folder: Path

    def check(self) -> None:
        """Whether there is a cluster, and what is needed to use it.

        Raises:
            UserError: there isn't.
        """
        for program in ("sbatch", "squeue", "srun"):
            if shutil.which(program) is None:
                raise UserError(
                    f"--executor slurm: {program} is not on PATH; run it on a login node of a cluster, or use "
                    "--executor local"
                )
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise UserError("--executor slurm: needs submitit; pip install 'acdc-circuits[sweeps]'") from None
        self._queued()

    def make(self, jobs: Sequence[Job], callbacks: Callbacks) -> None:
        """Make the runs: submit what is not submitted yet, and wait. Ctrl-C leaves the jobs in the queue.

        Raises:
            UserError: Slurm refuses.
        """
        left, attempts, missing = {job.name: job for job in jobs}, Counter[str](), Counter[str]()
        submitted = {
            job_id: [name for name in names if name in left] for job_id, names in self._known().items()
        }  # by an earlier call
        queued = self._queued()
        submitted = {job_id: names for job_id, names in submitted.items() if names and job_id in queued}
        self._submit([j for j in jobs if not any(j.name in names for names in submitted.values())], submitted)
        held: set[str] = set()
        try:
            while left:
                queued, again = self._queued(), list[Job]()
                for name, job in list(left.items()):
                    if state(job.folder) in ("done", "failed"):
                        del left[name]
                        callbacks.ended(name)
                for job_id, names in list(submitted.items()):
                    reason = queued.get(job_id)
                    missing[job_id] = 0 if reason is not None else missing[job_id] + 1
                    if reason and "held" in reason.lower() and job_id not in held:
                        held.add(job_id)
                        callbacks.say(
                            f"job {job_id} is held by Slurm ({reason}); scontrol release {job_id} lets it go on"
                        )
                    if missing[job_id] < GONE and any(name in left for name in names):
                        continue
                    del submitted[job_id]
                    for job in (left[name] for name in names if name in left):
                        attempts[job.name] += 1
                        if attempts[job.name] < ATTEMPTS:
                            again.append(job)
                        else:
                            record_failure(
                                job.folder,
                                f"its Slurm job ended {ATTEMPTS} times before it; {self.folder} has the logs",
                            )
                if again:
                    callbacks.say(f"{len(again)} runs whose jobs have ended before them are submitted again")
                    self._submit(again, submitted)
                callbacks.at({f"{len(submitted)} jobs": ""})
                if left:
                    time.sleep(POLL)
        except KeyboardInterrupt:
            ids = " ".join(sorted({job_id.split("_")[0] for job_id in submitted}))
            callbacks.say(f"the jobs stay in the queue; scancel {ids} would remove them")
            raise
        (self.folder / "jobs.json").unlink(missing_ok=True)

    def _submit(self, jobs: list[Job], submitted: dict[str, list[str]]) -> None:
        """Submit runs as one array, a job for each group of runs that share inputs; `submitted` gets them."""
        if not jobs:
            return
        import submitit

        from acdc.sweep.worker import make_listed

        units = list(_units(jobs, self.options.runs_per_job))
        self.folder.mkdir(parents=True, exist_ok=True)
        executor = submitit.SlurmExecutor(folder=self.folder)
        executor.update_parameters(**self._parameters())
        paths = [self.folder / f"unit-{time.time_ns()}-{i}.json" for i in range(len(units))]
        for path, unit in zip(paths, units, strict=True):
            write_atomic(path, json.dumps({"runs": [job.order() for job in unit]}) + "\n")
        try:
            with executor.batch():
                handles = [executor.submit(make_listed, str(path.absolute())) for path in paths]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--executor slurm: sbatch refuses: {reason[-300:]}") from None
        submitted |= {h.job_id: [job.name for job in unit] for h, unit in zip(handles, units, strict=True)}
        write_atomic(self.folder / "jobs.json", json.dumps({"jobs": submitted}, indent=1) + "\n")

    def _parameters(self) -> dict[str, Any]:
        o = self.options
        given = {
            "job_name": "acdc",
            "time": o.time,
            "partition": o.partition,
            "account": o.account,
            "cpus_per_task": o.cpus,
            "gpus_per_node": o.gpus or None,
            "mem": o.memory,
            "array_parallelism": o.parallel,
            "setup": [f"export {name}={o.cpus}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")],
            "additional_parameters": {"requeue": True, **o.extra},
        }
        return {key: value for key, value in given.items() if value is not None}

    def _known(self) -> dict[str, list[str]]:
        path = self.folder / "jobs.json"
        if not path.exists():
            return {}
        jobs = read_json(path).get("jobs")
        if not isinstance(jobs, dict):
            raise FileError(f"{path}: should have the key jobs; remove it, and what is not done is submitted again")
        return jobs

    def _queued(self) -> dict[str, str]:
        """The jobs in the queue, by id, with the reason why they wait, if they do.

        Raises:
            UserError: Slurm doesn't answer.
        """
        command = ["squeue", "--noheader", "--array", "--me", "--format=%i|%T|%r"]
        for wait in (1.0, 5.0, 20.0, None):  # a controller may be busy for a while
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode == 0:
                rows = (line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 2)
                ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")
                return {job_id: reason for job_id, now, reason in rows if now not in ended}
            if wait is not None:
                time.sleep(wait)
        raise UserError(f"--executor slurm: squeue fails: {' '.join(done.stderr.split())[:300]}")


def _units(jobs: Sequence[Job], most: int | None) -> Iterator[list[Job]]:
    """The runs that share inputs, at most so many together."""
    by_kind = sorted(jobs, key=lambda job: [str(x) for x in job.config.needs])
    for _, group in itertools.groupby(by_kind, key=lambda job: job.config.needs):
        members = list(group)
        size = most or len(members)
        yield from (members[i : i + size] for i in range(0, len(members), size))
