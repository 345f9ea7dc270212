"""A directory that one process at a time writes, for one config."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from acdc.errors import FileError, InUse
from acdc.io.files import read_text, write_atomic


@contextmanager
def locked(out: Path, what: str = "there") -> Iterator[None]:
    """Make the directory if needed and lock it; raise InUse if another process is writing `what` there."""
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
        # Keep the lock file: if it were removed, a process that has just locked it would hold a lock nobody else sees.
        lock.release()


def enter(folder: Path) -> None:
    """Make the directory if needed and remove half-written files of a killed process. Nobody else may be writing it."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".acdc-*.tmp"):
        left.unlink(missing_ok=True)


def claim(folder: Path, config: str) -> None:
    """Enter the directory and tie it to a config, given as YAML; raise FileError if it belongs to another config."""
    enter(folder)
    stated = folder / "config.yaml"
    if not stated.exists():
        write_atomic(stated, config)
    if read_text(stated) != config:
        raise FileError(f"{folder}: was made with other options, prompts or weights; choose another --out")
