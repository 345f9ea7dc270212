"""A process that makes runs of a sweep, one after another; what they share it keeps from one to the next.

`python -m acdc.sweep.worker` reads one run a line from stdin (JSON: name, folder, config) and says on stdout, also a
JSON object a line, what becomes of it. When stdin closes, it ends at once, whatever it is doing: nobody waits for it
any more, and a run that was cut off goes on from its log. `python -m acdc.sweep.worker FILE` makes the runs that a
file lists, as a job of a cluster does.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acdc.commands.run import run
from acdc.errors import FileError, InUse, UserError
from acdc.files.table import FAILURE, record_failure, state
from acdc.io.files import read_json
from acdc.io.progress import Progress
from acdc.io.yaml_file import read_yaml
from acdc.model.load import pick_device
from acdc.setup.config import Config
from acdc.setup.inputs import Inputs, load
from acdc.setup.memory import default_memory
from acdc.task.load import load_task

PATIENCE = 60.0  # seconds for a process that has been told to end to let go of a folder
OFTEN = 0.2  # seconds between two reports of progress

Say = Callable[[dict[str, Any]], None]


@dataclass
class Worker:
    """Makes runs.

    Args:
        share: of the memory that a run alone would take, for there are others beside it
        memory: bytes to stay below; None for the default
    """

    share: float = 1.0
    memory: float | None = None
    _last: Inputs | None = field(default=None, init=False)

    def attempt(self, folder: Path, config: Config, say: Say) -> None:
        """Make a run, or go on with it; a failure is recorded in its folder.

        Raises:
            FileError: the failure can't be recorded.
        """
        (folder / FAILURE).unlink(missing_ok=True)
        if state(folder) != "done":  # its measures were lost; they are made again from the log
            (folder / "circuit.json").unlink(missing_ok=True)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._make(folder, config, say)
                return
            except InUse as error:
                if time.monotonic() > until:
                    record_failure(folder, str(error))
                    return
                time.sleep(0.1)
            except UserError as error:
                record_failure(folder, str(error))
                return
            except Exception as error:  # a bug, or not enough memory: the other runs go on
                record_failure(folder, f"{type(error).__name__}: {error}", traceback.format_exc())
                return

    def _make(self, folder: Path, config: Config, say: Say) -> None:
        notes: list[str] = []
        reported = 0.0

        def show(progress: Progress) -> None:
            nonlocal reported
            if time.monotonic() - reported > OFTEN:
                reported = time.monotonic()
                say({"done": progress.done, "total": progress.total, "unit": progress.unit})

        run(self._inputs(_as_begun(folder, config)), folder, progress=show, say=notes.append)
        for note in notes:
            say({"note": note})

    def _inputs(self, config: Config) -> Inputs:
        """What a config names: from the last run what it shares with that."""
        last = self._last
        if last is not None and last.config.needs == config.needs and config.part in (None, last.config.part):
            self._last = last.under(config)
        else:
            model = last.model if last is not None and last.config.needs_model == config.needs_model else None
            self._last = last = None  # what is kept of the last one goes before the next one
            bound = self.memory or default_memory(pick_device(config.device)) * self.share
            self._last = load(config, load_task(config.task), bound, model)
        return self._last


def _as_begun(folder: Path, config: Config) -> Config:
    """The config with the number of prompts in memory at once that an earlier attempt had: it may have had more
    memory, or less, and its files say so."""
    try:
        return config.model_copy(update={"part": read_yaml(folder / "config.yaml", Config.model_fields).get("part")})
    except FileError:
        return config


def _serve(worker: Worker) -> None:
    """Make the runs that stdin names."""
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        order = json.loads(lines.get())
        worker.attempt(Path(order["folder"]), Config(**order["config"]), _print)
        _print({"ended": order["name"]})


def _print(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def make_listed(path: str) -> None:
    """Make the runs that a file lists, but for those that have ended already: a job of a cluster.

    Raises:
        UserError: a failure can't be recorded.
    """
    worker = _from_environment()
    for order in read_json(Path(path))["runs"]:
        folder = Path(order["folder"])
        if state(folder) not in ("done", "failed"):
            worker.attempt(folder, Config(**order["config"]), lambda _: None)


def _from_environment() -> Worker:
    """A worker with the memory that the process was given."""
    bound = os.environ.get("ACDC_WORKER_MEMORY")
    return Worker(float(os.environ.get("ACDC_WORKER_SHARE", "1")), float(bound) if bound else None)


def main() -> None:
    """Entry point of a worker process."""
    try:
        _serve(_from_environment())
    except UserError as error:  # a failure that can't be recorded: the disk is full
        _print({"fatal": str(error)})
        sys.exit(2)


if __name__ == "__main__":
    main()
