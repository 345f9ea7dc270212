"""Runs as jobs of a Slurm cluster."""

import json
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from acdc.errors import FileError, UserError
from acdc.io.files import read_json, write_atomic
from acdc.io.progress import Say
from acdc.sweep.executors import PYTHON, Executor, Unit, by_inputs, last_words, write_unit
from acdc.sweep.file import Slurm
from acdc.sweep.grid import Run

GONE = 3  # looks without a job in the queue before it counts as ended: file systems of clusters lag behind
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")


@dataclass
class Cluster(Executor):
    """Jobs of a Slurm cluster, submitted as an array by submitit.

    Their states come from `squeue`: without an accounting database Slurm forgets a job that was killed, and submitit
    would wait for it forever. `jobs.json` lists the submitted jobs, so that a sweep that is called again waits for
    those that are still in the queue.
    """

    options: Slurm
    place = "slurm"
    pause = 2.0
    _submitted: dict[str, list[str]] = field(default_factory=dict, init=False)  # names of runs by job
    _missing: Counter[str] = field(default_factory=Counter, init=False)
    _held: set[str] = field(default_factory=set, init=False)

    def check(self) -> None:
        """Raise UserError if there is no cluster, Slurm doesn't answer, or submitit is not installed."""
        for program in ("sbatch", "squeue", "srun"):
            if shutil.which(program) is None:
                where = "run it on a login node of a cluster, or use --executor local"
                raise UserError(f"--executor slurm: {program} is not on PATH; {where}")
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise UserError("--executor slurm: needs submitit; pip install 'acdc-circuits[sweeps]'") from None
        _queued()

    def device(self, name: str) -> str:
        """The nodes that submit jobs often have no GPU."""
        kind = name.partition(":")[0]
        if kind == "cuda" and not (self.options.gpus or self.options.extra):
            raise UserError(f"--executor slurm: device is {name}, but slurm.gpus is 0; give the jobs gpus: 1")
        return kind if kind != "auto" else "cuda" if self.options.gpus else "cpu"

    def _start(self, runs: Sequence[Run]) -> None:
        """Submit the runs that no job in the queue has: an array with a job per group of runs that share inputs."""
        path = self.folder / "jobs.json"
        if not self._submitted and path.exists():  # jobs of an earlier call
            known = read_json(path).get("jobs")
            if not isinstance(known, dict):
                raise FileError(f"{path}: should have the key jobs; remove the file to submit unfinished runs again")
            queued = _queued()
            self._submitted = {job_id: names for job_id, names in known.items() if job_id in queued}
        waiting = {name for names in self._submitted.values() for name in names}
        units = []
        for group in by_inputs([run for run in runs if run.name not in waiting]):
            size = self.options.runs_per_job or len(group)
            units += [group[i : i + size] for i in range(0, len(group), size)]
        if not units:
            return
        import submitit

        from acdc.sweep.worker import make_unit

        unit_files = [write_unit(self.folder, unit, self.out) for unit in units]
        executor = submitit.SlurmExecutor(folder=self.folder, python=shlex.join(PYTHON))
        o = self.options
        parameters = {
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
        executor.update_parameters(**{key: value for key, value in parameters.items() if value is not None})
        try:
            with executor.batch():
                handles = [executor.submit(make_unit, unit_file) for unit_file in unit_files]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--executor slurm: sbatch refuses: {reason[-300:]}") from None
        for handle, unit in zip(handles, units, strict=True):
            self._submitted[handle.job_id] = [run.name for run in unit]
        write_atomic(path, json.dumps({"jobs": self._submitted}, indent=1) + "\n")

    def _look(self, say: Say) -> list[Unit]:
        queued = _queued()
        units = []
        for job_id, names in list(self._submitted.items()):
            self._missing[job_id] = 0 if job_id in queued else self._missing[job_id] + 1
            reason = queued.get(job_id, "")
            if "held" in reason.lower() and job_id not in self._held:
                self._held.add(job_id)
                say(f"job {job_id} is held by Slurm ({reason}); scontrol release {job_id} releases it")
            end = None
            if self._missing[job_id] >= GONE:
                del self._submitted[job_id]
                logs = [last_words(log) for log in self.folder.glob(f"{job_id}_*_log.err")]
                end = "the Slurm job ended too early" + "".join(logs)
            units.append(Unit(names, end))
        return units

    def _doing(self) -> str:
        return f"{len(self._submitted)} jobs"

    def _stop(self, finished: bool, say: Say) -> None:
        """Leave unfinished jobs in the queue."""
        if finished:
            (self.folder / "jobs.json").unlink(missing_ok=True)
        elif self._submitted:
            ids = " ".join(sorted({job_id.split("_")[0] for job_id in self._submitted}))
            say(f"the jobs stay in the queue; scancel {ids} would remove them")


def _queued() -> dict[str, str]:
    """Return the jobs in the queue, by id, with the reason why they wait, if they do."""
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i|%T|%r"]
    for wait in (1.0, 5.0, 20.0, None):  # a controller may be busy for a while
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            rows = (line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 2)
            return {job_id: reason for job_id, status, reason in rows if status not in ENDED}
        if wait is not None:
            time.sleep(wait)
    raise UserError(f"--executor slurm: squeue fails: {' '.join(done.stderr.split())[:300]}")
