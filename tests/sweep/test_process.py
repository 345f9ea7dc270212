"""Processes that a command starts import nothing from the current folder, and the reason of a death is passed on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from acdc.errors import UserError
from acdc.sweep import executors
from acdc.sweep.executors import PYTHON, last_words
from acdc.sweep.file import Slurm, read_sweep
from acdc.sweep.grid import runs_of
from acdc.sweep.slurm import Cluster

HOSTILE = "from pathlib import Path\nwith open('IMPORTED', 'a') as f:\n    f.write(__name__)\n"
# Modules that workers import: before and after a launcher has begun, of the library, of others, and our own.
NAMES = ("runpy", "codecs", "typing", "json", "queue", "torch", "numpy", "yaml", "filelock", "acdc", "sitecustomize")
SWEEP = "base: {task: or-gate, model: or-gate, device: cpu}\ngrid: {seed: [0]}\n"


@pytest.fixture
def trapped(tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    (tmp_path / "s.yaml").write_text(SWEEP)
    return tmp_path


def test_workers_import_nothing_from_the_current_folder(acdc, trapped):
    result = acdc("sweep", "s.yaml", "--no-plots")
    assert not (trapped / "IMPORTED").exists()
    assert result.code == 0, result.err


def others():
    """Python 3.10, which has no option for this, if it is there."""
    found = shutil.which("python3.10")
    works = found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
    return [found] if works else []


@pytest.mark.parametrize("python", [sys.executable, *others()])
def test_any_python_starts_modules_so(trapped, python):
    command = [python, *PYTHON[1:], "-u", "-m", "json.tool", "in.json", "--json-lines"]
    (trapped / "in.json").write_text("{}\n1\n")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=trapped, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "{}\n1\n"), done.stderr
    assert not (trapped / "IMPORTED").exists()


def test_jobs_of_slurm_are_started_so(trapped, monkeypatch):
    """As far as that goes without Slurm; tests/sweep has a real one."""
    submitit = pytest.importorskip("submitit")
    given = {}

    class Executor(submitit.SlurmExecutor):
        def __init__(self, **options):
            given.update(options)
            raise UserError("not sent")

    monkeypatch.setattr(submitit, "SlurmExecutor", Executor)
    sweep = read_sweep(trapped / "s.yaml")
    with pytest.raises(UserError, match="not sent"):
        Cluster(trapped / "out", Slurm())._start(runs_of(sweep, None)[0])
    command = f"{given['python']} -u -m submitit.core._submit {trapped}"
    done = subprocess.run(["bash", "-c", command], cwd=trapped, capture_output=True, text=True, check=False)
    assert "site-packages/submitit" in done.stderr  # it runs, and finds no job
    assert not (trapped / "IMPORTED").exists()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", ""),
        ("no torch\n", ": no torch"),
        (
            "note\nTraceback (most recent call last):\n  File\n    x\nImportError: no é\nhint\nbye\n",
            ": ImportError: no é",
        ),
        (
            "Traceback (most recent call last):\n  a\nKeyError: 1\n\nDuring handling of the above exception, another "
            "exception occurred:\n\nTraceback (most recent call last):\n  b\n    c\na.B: 2\n",
            ": a.B: 2",
        ),
    ],
)
def test_the_last_words_of_a_process_are_its_reason(tmp_path, said, reason):
    (tmp_path / "log").write_text("Traceback (most recent call last):\n  x\nValueError: of an earlier process\n" + said)
    assert last_words(tmp_path / "log", 73) == reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nothing_like_this", "ended with code 1: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("import os; os.abort()", "was killed by signal 6"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by signal 9"),
    ],
)
def test_what_a_dead_worker_has_said_is_the_reason_and_memory_only_if_it_was_killed(
    acdc, tmp_path, monkeypatch, code, reason
):
    monkeypatch.setattr(executors, "COMMAND", (sys.executable, "-c", code))
    (tmp_path / "s.yaml").write_text(SWEEP)
    result = acdc("sweep", "s.yaml", "--no-plots")
    assert result.code == 1 and f"failed: the worker process {reason}, 3 times; " in result.err
    (failure,) = tmp_path.glob("sweeps/s/runs/*/failure.json")
    message = json.loads(failure.read_text())["message"]
    assert reason in message and ("--memory" in message) == ("signal 9" in reason)
