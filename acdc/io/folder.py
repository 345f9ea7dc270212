"""A directory that one process at a time writes, for one config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from acdc.errors import FileError, InUse
from acdc.io.files import read_text, write_atomic


@contextmanager
def locked(out: Path, what: str = "there") -> Iterator[None]:
    """The directory, made if need be, locked against other processes.

    Raises:
        InUse: another process writes `what` there.
        FileError: it can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise InUse(f"{out}: another acdc process is writing {what}; wait for it or choose another --out") from None
    except OSError as error:
        raise FileError(f"--out {out}: can't be written ({error.strerror or error})") from None
    try:
        enter(out)
        yield
    finally:
        # The file stays. Were it removed, a process that has just locked it would hold a lock that nobody else sees.
        lock.release()


def enter(folder: Path) -> None:
    """A directory that nobody else writes, made if need be, without what a killed process left half written in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".acdc-*.tmp"):
        left.unlink(missing_ok=True)


def claim(folder: Path, config: str) -> None:
    """Enter the directory and make it that of a config, given as YAML.

    Raises:
        FileError: it is that of another one.
    """
    enter(folder)
    stated = folder / "config.yaml"
    if not stated.exists():
        write_atomic(stated, config)
    if read_text(stated) != config:
        raise FileError(f"{folder}: was made with other options, prompts or weights; choose another --out")
