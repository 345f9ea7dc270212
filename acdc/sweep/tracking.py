"""Logging of a sweep's runs to Weights & Biases or trackio, if the sweep file says `track: wandb` or `track: trackio`.

Off by default; nothing in acdc needs an account. Both services have the functions used here. Set them up (entity,
offline mode, server) with their own environment variables.
"""

import importlib
import re
from pathlib import Path
from typing import Any

from acdc.errors import UserError
from acdc.files.table import HASHES, OPTIONS, Row
from acdc.io.progress import Say


class Tracking:
    """Logs runs with `wandb` or `trackio`; without a tracker, or after one has failed, it does nothing. Raises
    UserError if the tracker is not installed."""

    def __init__(self, tracker: str | None, project: str, folder: Path, say: Say) -> None:
        self.options = {"project": re.sub(r"[^A-Za-z0-9_.-]+", "-", project)}
        if tracker == "wandb":
            self.options["dir"] = str(folder)  # for its files
        self.say = say
        self.module: Any = None
        if tracker is None:
            return
        try:
            self.module = importlib.import_module(tracker)
        except ImportError:
            raise UserError(f"track: {tracker} is not installed; pip install 'acdc-circuits[{tracker}]'") from None

    def log(self, row: Row) -> None:
        """Log a run: its options as the config, the numbers in its row as the results."""
        if self.module is None:
            return
        values = {key: value for key, value in row.items() if value is not None}
        config = {key: value for key, value in values.items() if key in (*OPTIONS, *HASHES)}
        numbers = {k: v for k, v in values.items() if k not in config and isinstance(v, int | float)}
        try:
            self.module.init(name=str(row["run"]), config=config, **self.options)
            self.module.log({**numbers, "failed": int(row["state"] == "failed")})
            self.module.finish()
        except Exception as error:  # such as of network or login; the sweep goes on
            reason = " ".join(str(error).split())
            self.say(f"warning: {self.module.__name__}: {reason[:300]}; no more runs are logged")
            self.module = None
