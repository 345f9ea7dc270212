"""Golden circuits of the bundled models, in tests/golden/. `make golden` renews them; look at the difference first."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from acdc import run as runner
from acdc.config import resolve
from acdc.formats.circuit_file import CircuitFile
from acdc.inputs import load

FOLDER = Path(__file__).parent / "golden"
TASKS = (
    "greater-than",
    "ioi",
    "induction",
    "docstring",
    "gendered-pronoun",
    "subject-verb-agreement",
    "tracr-reverse",
    "tracr-xproportion",
    "or-gate",
)


def discover(task: str, folder: Path) -> CircuitFile:
    """The circuit of a shipped task in its bundled model at the task's defaults, in float64."""
    given = {"task": task, "dtype": "float64", "device": "cpu"}
    config, spec, _ = resolve(given, None, lambda: ("tiny", None))
    return runner.run(load(config, spec), folder)[0]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for task in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            discover(task, Path(folder))
            shutil.copy(Path(folder) / "circuit.json", FOLDER / f"{task}.json")


if __name__ == "__main__":
    main()
