"""A directory that one process at a time writes, for one config."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import yaml
from filelock import FileLock, Timeout

from acdc.errors import FileError, InUse, UserError
from acdc.io.files import read_text, write_atomic
from acdc.io.yaml_file import read_yaml

# Keys of a run's config.yaml that the run finds out; not options.
FOUND = ("model_hash", "data_hash", "features_hash", "part")


@contextmanager
def locked(out: Path, what: str = "there", config: str | None = None, others: tuple[str, ...] = ()) -> Iterator[None]:
    """Make the directory if needed and lock it; raise InUse if another process is writing `what` there.

    Raises FileError if the directory holds something and was not made by acdc: it has no lock file, nor the run of this
    `config` (copies of a run often lack the hidden file); or if another command made it, as one of the names `others`
    shows. If what is done inside is refused, a new directory goes.
    """
    lock = out / ".lock"
    try:
        before = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        stated = out / "config.yaml"
        ours = lock.exists() or (config is not None and stated.is_file() and read_text(stated) == config)
        if not ours and (some := min((path.name for path in out.iterdir()), default=None)):
            raise FileError(f"--out {out}: holds files that are not acdc's ({some}); choose a new or an empty folder")
        if made := next((name for name in others if (out / name).exists()), None):
            raise FileError(f"--out {out}: was made by another command, which wrote {made}; choose another folder")
        if lock.is_symlink():
            raise FileError(f"--out {lock}: is a link; remove it or choose another folder")
        held = FileLock(lock, timeout=0)
        held.acquire()
    except Timeout:
        raise InUse(f"{out}: another acdc process is writing {what}; wait for it or choose another --out") from None
    except (OSError, ValueError) as error:  # no space, no permission, a name that no folder can have
        raise FileError(f"--out {out}: can't be written ({getattr(error, 'strerror', None) or error})") from None
    try:
        enter(out)
        yield
    except UserError:
        if before and {path.name for path in out.rglob("*") if path.is_file()} <= {lock.name, "config.yaml"}:
            rmtree(out)
            for folder in before[1:]:
                folder.rmdir()
        raise
    finally:
        # Keep the lock file: if it were removed, a process that has just locked it would hold a lock nobody else sees.
        held.release()


def inside(root: Path, *names: str) -> Path:
    """Return a directory below one that is ours; raise FileError if a link on the way may lead out of it."""
    folder = root
    for name in names:
        folder /= name
        if folder.is_symlink():
            raise FileError(f"{folder}: is a link; remove it: acdc writes only below {root}")
    return folder


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
    wanted = yaml.safe_load(config)
    if others := differences(read_yaml(stated, wanted), wanted):
        raise FileError(f"{folder}: was made with other options, prompts or weights: {others}; choose another --out")


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Where two configs differ, as `threshold 0.01, here 0.02`; hashes only if nothing else differs."""
    keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    keys = [key for key in keys if key not in FOUND] or keys
    values = (f"{key} {found.get(key, 'not set')}, here {wanted.get(key, 'not set')}" for key in keys)
    return "; ".join(values)
