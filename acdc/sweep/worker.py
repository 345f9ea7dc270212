"""A worker: makes the runs that a unit file lists, one after another, and keeps the model and prompts that they share.

`acdc.sweep.worker FILE START` is a process of this machine. It ends when its stdin closes, so it doesn't
outlive its parent. A Slurm job calls `make_unit`. Both leave their results in the runs' folders only. Workers can share
a unit file: each locks the run that it makes.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from acdc.commands.run import run
from acdc.errors import FileError, InUse, UserError
from acdc.files.table import ENDED, record_failure, state
from acdc.io.files import read_json
from acdc.io.progress import Forecast, Plan, Progress
from acdc.io.yaml_file import read_yaml
from acdc.model.load import pick_device
from acdc.setup.config import Config
from acdc.setup.inputs import Inputs, load
from acdc.setup.memory import default_memory
from acdc.sweep.executors import TOO_LARGE
from acdc.task.load import load_task

PATIENCE = 60.0  # seconds to wait for another process to leave a folder
REPORT_EVERY = 0.2  # seconds

Tell = Callable[[dict[str, Any]], None]


def make_unit(path: Path, start: int = 0, tell: Tell = lambda _: None) -> None:
    """Make the runs of a unit file that have not ended and that no other worker is making, from index `start` on, then
    those before it; `tell` is called with events: a run begins, its progress, a note. Raises UserError if the file
    can't be read, or a failure can't be recorded."""
    unit = read_json(path)
    worker = Worker(unit["share"], unit["memory"])
    locks = path.with_suffix(".locks")
    locks.mkdir(exist_ok=True)
    for entry in unit["runs"][start:] + unit["runs"][:start]:
        folder = Path(entry["folder"])
        with suppress(Timeout), FileLock(locks / folder.name, timeout=0):  # else another worker makes it
            if state(folder) not in ENDED:
                tell({"run": folder.name})
                worker.attempt(folder, Config(**entry["config"]), tell)


@dataclass
class Worker:
    """Makes runs."""

    share: float = 1.0  # of the default memory, since other workers use the rest
    memory: float | None = None  # bytes to stay below; None for the share of the default
    _last: Inputs | None = field(default=None, init=False)  # of the last run

    def attempt(self, folder: Path, config: Config, tell: Tell) -> None:
        """Make a run or continue it; record a failure in its folder, or raise FileError if it can't be recorded."""
        (folder / "circuit.json").unlink(missing_ok=True)  # metrics.json may be lost: the run is measured again
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._make(folder, config, tell)
                return
            except UserError as error:
                if not isinstance(error, InUse) or time.monotonic() > until:
                    record_failure(folder, str(error))
                    return
                time.sleep(0.1)
            except Exception as error:  # a bug, or too little memory: the other runs are still made
                less = f"; {TOO_LARGE}" if isinstance(error, torch.OutOfMemoryError) else ""
                record_failure(folder, f"{type(error).__name__}: {error}{less}", traceback.format_exc())
                return

    def _make(self, folder: Path, config: Config, tell: Tell) -> None:
        forecast = Forecast()
        reported = 0.0

        def show(progress: Progress | Plan) -> None:
            nonlocal reported
            forecast.see(progress)
            if time.monotonic() - reported > REPORT_EVERY:
                reported = time.monotonic()
                tell({"at": f"{forecast.share():.0%}"})

        with suppress(FileError):  # keep the `part` of an earlier attempt, on which the run's files depend
            begun = read_yaml(folder / "config.yaml", Config.model_fields)
            config = config.model_copy(update={"part": begun.get("part")})
        run(self._inputs(config), folder, progress=show, say=lambda note: tell({"note": note}))

    def _inputs(self, config: Config) -> Inputs:
        """Load what a config names, and reuse what it shares with the last run."""
        last = self._last
        if last is not None and last.config.needs == config.needs and config.part in (None, last.config.part):
            self._last = last.under(config)
            return self._last
        model = last.model if last is not None and last.config.needs_model == config.needs_model else None
        self._last = None
        last = None  # free the last inputs before the next are loaded
        bound = self.memory or default_memory(pick_device(config.device)) * self.share
        self._last = load(config, load_task(config.task), bound, model)
        return self._last


def _end_with_parent() -> None:
    """End this process when the parent closes stdin or is gone. A run that is cut off continues from its log."""
    os.read(0, 1)  # not sys.stdin, whose lock a daemon thread would still hold at exit
    os._exit(0)


def main() -> None:
    """Entry point of a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        make_unit(Path(sys.argv[1]), int(sys.argv[2]), lambda event: print(json.dumps(event), flush=True))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
