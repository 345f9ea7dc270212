"""Files that are whole or absent, never half written; and JSON, read with messages that a user can act on."""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from acdc.errors import FileError

MAX_BYTES = 500_000_000  # of a text file


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, nothing between.

    Raises:
        FileError: it can't be written; then nothing has changed.
    """
    raw = data.encode() if isinstance(data, str) else data
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.exists() and not target.is_file():
        raise FileError(f"{path}: can't be written (not a regular file)")
    # Not tempfile: its files are readable by their owner only, and would stay so.
    temporary = target.with_name(f".acdc-{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise FileError(f"{path}: can't be written ({error.strerror})") from None
    finally:
        with suppress(OSError):  # there is none, or there is nothing to be done about it
            temporary.unlink()


def plain_json(content: dict[str, Any]) -> str:
    """JSON, where the same values give the same text, and numbers that there are none of are null."""
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """None for every float that is not finite, at any depth."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a file. What is none is not opened: a pipe would be waited for, a device may have no end.

    Raises:
        FileError: it is missing, unreadable, larger than `limit`, or a folder, pipe or device.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileError(f"{path}: can't be read (not a regular file)")
        with path.open("rb") as file:  # some that say they have no bytes have many, as in /proc
            data = file.read(limit + 1)
    except OSError as error:
        raise FileError(f"{path}: can't be read ({error.strerror})") from None
    except ValueError:  # it has a NUL
        raise FileError(f"{str(path)!r}: is no path of a file") from None
    if len(data) > limit:
        raise FileError(f"{path}: is larger than {limit:,} bytes; no {path.suffix or 'such'} file should be")
    return data


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        FileError: as `read_bytes`; or it is no text.
    """
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError:
        raise FileError(f"{path}: is not a text file in UTF-8") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileError: as `read_text`; or it is no JSON (the message has the line), or not an object.
    """
    try:
        raw = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise FileError(f"{path}, line {error.lineno}: is not JSON ({error.msg})") from None
    except (RecursionError, ValueError):  # nested without end; a number of thousands of digits
        raise FileError(f"{path}: is not JSON that can be read") from None
    if not isinstance(raw, dict):
        raise FileError(f"{path}: should be a JSON object, starts with {json.dumps(raw)[:30]}")
    return raw
