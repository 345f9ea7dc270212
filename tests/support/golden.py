"""`make golden` renews the golden circuits of configs/regression*.yaml. Look at the diff before you commit it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from acdc.commands import run as runner
from acdc.commands.check import read_checks
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support import ROOT

CONFIGS = ROOT / "configs"
LIST, SMOLLM2 = CONFIGS / "regression.yaml", CONFIGS / "regression-smollm2.yaml"


def main() -> None:
    for path in (LIST, SMOLLM2):
        for entry in read_checks(path):
            config, task, _ = resolve(entry.run or {}, None, None)
            with tempfile.TemporaryDirectory() as folder:
                runner.run(load(config, task), Path(folder) / "run")
                (path.parent / entry.against).parent.mkdir(exist_ok=True)
                shutil.copy(Path(folder) / "run" / "circuit.json", path.parent / entry.against)


if __name__ == "__main__":
    main()
