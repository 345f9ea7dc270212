"""Material for attacks: a finished run, files that lie, and what a refusal looks like."""

from __future__ import annotations

import copy
import errno
import io
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import acdc

ROOT = Path(acdc.__file__).parent.parent
MODEL = ROOT / "acdc" / "bundled" / "or-gate"
TASK = ROOT / "tasks" / "or-gate.yaml"
PUBLISHED = ROOT / "tasks" / "circuits" / "or-gate.yaml"
SWEEP = {"base": {"task": "or-gate", "model": "or-gate"}, "grid": {"threshold": [0.1]}}
RUN = ("run", "--task", "or-gate")
COMPARE = ("compare", "--tasks", "or-gate", "--methods", "edge-patching", "--sizes", "3", "--no-plots")
STABILITY = ("stability", "--task", "or-gate", "--seeds", "0", "--orders", "0", "--resamples", "1")
TITLE = "\x1b]0;owned\x07"  # sets the title of a terminal
SEEN = "precious\n"  # what a victim holds


class TooLong(BaseException):
    """Not an Exception, so that nothing catches it."""


class FullDisk(io.TextIOBase):
    """A stream that nothing can be written to."""

    encoding = "utf-8"
    errors = "strict"

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TooLong after that many seconds of computing."""

    def late(*_: object) -> None:
        raise TooLong(f"computed for {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def refused(result: Any, *words: str) -> None:
    """Assert exit code 2 with one message, which says these words, and no result."""
    assert result.code == 2, result.err
    assert result.out == ""
    last = result.err.splitlines()[-1]
    assert last.startswith("acdc: "), result.err
    for word in words:
        assert word in last, result.err


def plain(text: str) -> None:
    """Assert that a text does nothing to a terminal."""
    doing = [c for c in text if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f" or c in "\u202d\u202e\u2066"]
    assert not doing, doing


def changed(path: str, to: str = "e.json", **changes: Any) -> str:
    """Write a circuit.json with other values, of keys such as `task__name`; returns its path."""
    content = copy.deepcopy(json.loads(Path(path).read_text(encoding="utf-8")))
    for key, value in changes.items():
        *parts, last = key.split("__")
        part = content
        for name in parts:
            part = part[name]
        part[last] = value
    Path(to).write_text(json.dumps(content), encoding="utf-8")
    return to


def task_file(path: str, **changes: Any) -> str:
    """Write the task or-gate under another name, with other values; returns the path."""
    content = yaml.safe_load(TASK.read_text(encoding="utf-8")) | {"name": Path(path).stem} | changes
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def published_file(**changes: Any) -> str:
    """Write the published circuit of or-gate with other values; returns the path."""
    return written("pub.yaml", yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")) | {"name": "pub"} | changes)


def written(path: str, content: object) -> str:
    """Write a text, bytes, or anything else as JSON, which is YAML, too; returns the path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, (str, bytes)) else json.dumps(content)
    Path(path).write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return path


def safetensors(header: dict[str, Any], body: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def tensors() -> tuple[dict[str, Any], bytes]:
    """Header and body of the weights of or-gate."""
    raw = (MODEL / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def state(folder: str) -> dict[str, bytes]:
    """The files in a folder, at any depth."""
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def process(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, in the current folder, which is not on its path, after some code."""
    program = f"{code}\nimport sys\nsys.argv = ['acdc', *{arguments!r}]\nfrom acdc.cli import main\nmain()\n"
    script = Path(written("../program/main.py", program)).resolve()
    return subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
