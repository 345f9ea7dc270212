"""Every run of a sweep logged to Weights & Biases or trackio, where the sweep file says `track: wandb` or `trackio`.

Off by default; nothing in acdc needs an account. Both have the same few functions. How they are set up (project's
entity, offline mode, where their server is) is their own business: their environment variables are left as they are.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from acdc.errors import UserError
from acdc.files.table import HASHES, OPTIONS, Row

PLAIN = re.compile(r"[^A-Za-z0-9_.-]+")


class Tracking:
    """Logs runs; with no tracker it does nothing.

    Args:
        tracker: `wandb`, `trackio` or None
        project: name of the project there
        folder: where wandb puts its files
        say: told when the tracker fails; it is then left alone
    Raises:
        UserError: the tracker is not installed.
    """

    def __init__(self, tracker: str | None, project: str, folder: Path, say: Callable[[str], None]) -> None:
        self.project, self.folder, self.say = PLAIN.sub("-", project), folder, say
        self.module: Any = None
        if tracker is None:
            return
        try:
            self.module = importlib.import_module(tracker)
        except ImportError:
            raise UserError(f"track: {tracker} is not installed; pip install 'acdc-circuits[{tracker}]'") from None

    def log(self, row: Row) -> None:
        """One run there for one run here: its options as the config, the rest of its row as what it gave."""
        if self.module is None:
            return
        stated = {k: v for k, v in row.items() if v is not None}
        config = {k: v for k, v in stated.items() if k in (*OPTIONS, *HASHES)}
        own = {"dir": str(self.folder)} if self.module.__name__ == "wandb" else {}
        numbers = {k: v for k, v in stated.items() if k not in config and isinstance(v, int | float)}
        try:
            self.module.init(project=self.project, name=str(row["run"]), config=config, **own)
            self.module.log({**numbers, "failed": int(row["state"] == "failed")})
            self.module.finish()
        except Exception as error:  # whatever their network or login has; the runs go on
            reason = " ".join(str(error).split())
            self.say(f"warning: {self.module.__name__}: {reason[:300]}; no more runs are logged there")
            self.module = None
