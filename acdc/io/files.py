"""Write files atomically; read text and JSON with messages that a user can act on."""

import csv
import errno
import io
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from acdc.errors import FileError
from acdc.io.terminal import printable

MAX_BYTES = 500_000_000  # largest file that is read


def file_name(text: str) -> str:
    """A name, such as a model's, as a part of that of a file or folder."""
    return re.sub(r"[^\w.-]+", "-", text)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file; even after a crash it has the old content or the new. A link is replaced, not followed: it may lead
    to a file that is not ours. Raise FileError if the file can't be written."""
    # A name of a file that is not UTF-8 can be in a text.
    raw = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    temporary = path.parent / f".acdc-{secrets.token_hex(6)}.tmp"  # not tempfile's: only their owner may read those
    try:
        if path.exists() and not path.is_file():
            raise FileError(f"{path}: can't be written (not a regular file)")
        with temporary.open("xb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # the disk is full, the name is too long or holds a NUL
        raise FileError(f"{path}: can't be written ({getattr(error, 'strerror', error)})") from None
    finally:
        with suppress(OSError, ValueError):  # it was renamed, or can't be removed
            temporary.unlink()


def write_output(path: Path, data: bytes | str) -> None:
    """Write the file that a user has named, as `write_atomic`, but through a link: the user has named that, too."""
    write_atomic(Path(os.path.realpath(path)), data)


def check_output(flag: str, path: Path | None, *inputs: Path) -> None:
    """Raise FileError if a file that is to be written is one of the files that are read, by whatever name or link."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else f"there is no directory {path.parent}"
        raise FileError(f"{flag} {path}: can't be written ({what})")
    if not path.exists():
        return
    for file in inputs:
        if file.exists() and file.samefile(path):
            raise FileError(f"{flag} {path}: is read, too ({file}), and would be lost; choose another file")


def open_own(path: Path, mode: str) -> IO[Any]:
    """Open a file of a folder that is ours, without following a link. Raises OSError as `open`."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def to_json(result: Any) -> str:
    """Return a result, a dataclass, as JSON text. The same values give the same text; NaN and infinity become null."""
    content = plain({"format_version": 1, **asdict(result)})
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV; None is empty. A text that spreadsheets take for a formula gets a ' before it (OWASP)."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(map(_cell, row) for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return value
    return ("'" if re.match(r"[=+\-@\t\r\n＝＋－＠]", value) else "") + printable(value)


def plain(value: Any) -> Any:
    """Return the value with None for every NaN and infinity, at any depth."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a file of at most `limit` bytes; raise FileError if it can't be read."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a pipe would block, a device may never end
            raise FileError(f"{path}: can't be read (not a regular file)")
        data = b""
        with path.open("rb") as file:
            # The size that stat gives can be wrong, as in /proc.
            while max(info.st_size, len(data)) <= limit and (more := file.read(max(info.st_size, 99_999) + 1)):
                data += more
    except OSError as error:
        here = "" if error.errno != errno.ENOENT or path.is_absolute() else f" in the current folder, {Path.cwd()}"
        raise FileError(f"{path}: can't be read ({error.strerror}{here})") from None
    except ValueError:  # a NUL in the path
        raise FileError(f"{str(path)!r}: is not a valid path") from None
    if max(info.st_size, len(data)) > limit:
        raise FileError(f"{path}: is larger than {limit:,} bytes; no {path.suffix or 'such'} file should be")
    return data


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Return the text of a UTF-8 file of at most `limit` bytes, without a byte order mark at its beginning; raise
    FileError if it can't be read."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileError(f"{path}: is not a text file in UTF-8") from None


def read_json(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file of at most `limit` bytes; raise FileError if it can't be read or holds none."""
    try:
        raw = json.loads(read_text(path, limit))
    except json.JSONDecodeError as error:
        raise FileError(f"{path}, line {error.lineno}: is not JSON ({error.msg})") from None
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        raise FileError(f"{path}: is not JSON that acdc can read (nested too deeply, or a huge number)") from None
    if not isinstance(raw, dict):
        raise FileError(f"{path}: should be a JSON object, starts with {json.dumps(raw)[:30]}")
    return raw
