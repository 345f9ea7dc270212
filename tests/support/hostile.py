"""Hostile input: nasty values, mutations of good files, and a watch on what reading them does.

`ACDC_FUZZ=N` tries N inputs of each kind, `ACDC_FUZZ_SEED` other ones.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acdc.errors import UserError
from tests.support import ROOT

INPUTS = int(os.environ.get("ACDC_FUZZ", "300"))
FIRST = int(os.environ.get("ACDC_FUZZ_SEED", "0"))  # number of the first input; each number is an input
LONGEST = 5  # seconds of computing for one input
BLOCKED = 120  # seconds of waiting for one input; the machine may be busy
NASTY = (
    *(
        "",
        "null",
        "~",
        "true",
        "-1",
        "0",
        "1",
        "1e999",
        ".nan",
        "-.inf",
        "9" * 40,
        "1e-320",
        "0x10",
        "1_000",
        "[]",
        "{}",
    ),
    *(
        "''",
        '"',
        "'",
        "&a",
        "*a",
        "<<: *a",
        "!!python/object/apply:os.system [ls]",
        "!!binary aGk=",
        "!!timestamp 2001-01-01",
    ),
    *(
        "{a}",
        "{",
        "}",
        "{a.b}",
        "{0}",
        "%s",
        "../../etc/passwd",
        "/dev/zero",
        "C:\\x",
        "a/b",
        ".",
        "..",
        "~root",
        "-",
        "--",
    ),
    *(
        "\u202e",
        "\u2028",
        "\x00",
        "\ud800",
        "🙂",
        "é" * 300,
        "  ",
        "\t",
        "#",
        ": ",
        "? ",
        "- - -",
        "---",
        "...",
        "|",
        ">",
    ),
    *(
        "input->logits",
        "a0.h0->m0",
        "a99.h99->logits",
        "m0->a0.h0<v>",
        "acdc",
        "eap",
        "ioi",
        "tiny",
        "kl",
        "2001-01-01",
    ),
    *("[[[[[[[[[[", "{" * 50, "a: &b [*b]", "{log: [0, 1], count: 5}", "{log: [1, 10], count: 1e9}"),
    *('"\\0"', '"a\\nb"', "<<: {a: 1}", "1" + ":59" * 60, "0x" + "f" * 4000, "9" * 5000, "yes", "0.10", "1e3"),
)


def mutated(text: str, rng: random.Random) -> str:
    """A text with one to four changed lines, values or characters."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        lines = text.split("\n")
        i = rng.randrange(len(lines))
        kind = rng.randrange(10)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(i, lines[rng.randrange(len(lines))])
        elif kind == 2:
            lines[i] = " " * rng.choice((1, 2, 7)) + lines[i]
        elif kind == 3:
            lines[i] = lines[i].lstrip()
        elif kind == 4:  # a value
            key, colon, _ = lines[i].partition(":")
            lines[i] = f"{key}{colon} {rng.choice(NASTY)}"
        elif kind == 5:  # a key
            _, colon, value = lines[i].partition(":")
            lines[i] = f"{rng.choice(NASTY)}{colon}{value}"
        else:
            words = lines[i].replace(",", " , ").replace("[", "[ ").replace("]", " ]").split(" ")
            words[rng.randrange(len(words))] = rng.choice(NASTY)
            lines[i] = " ".join(words)
        text = "\n".join(lines)
        if rng.random() < 0.1:
            text = text[: rng.randrange(len(text) + 1)]
        if rng.random() < 0.1 and text:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(NASTY) + text[at:]
    return text


def mutated_json(text: str, rng: random.Random) -> str:
    """JSON with a changed value or key, or at times with changed characters."""
    if rng.random() < 0.2:
        return mutated(text, rng)
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        at = tree
        while True:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            if not keys:
                break
            key = rng.choice(list(keys))
            if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.8:
                at = at[key]
                continue
            kind = rng.randrange(4)
            if kind == 0:
                del at[key]
            elif kind == 1 and isinstance(at, dict):
                at[rng.choice(NASTY)] = at[key]
            else:
                at[key] = rng.choice(
                    (*NASTY, None, True, -1, 0, 2**63, 10**400, 1e308, float("nan"), float("inf"), [], {}, [1], at[key])
                )
            break
    return json.dumps(tree)


class TooLong(BaseException):
    """Not an Exception, so that no handler of errors catches it."""


@contextmanager
def in_time() -> Iterator[None]:
    """Raise TooLong after LONGEST seconds of computing, or BLOCKED seconds."""

    def late(*_):
        raise TooLong(f"computed for {LONGEST} s, or waited for {BLOCKED}")

    clocks = ((signal.ITIMER_PROF, signal.SIGPROF, LONGEST), (signal.ITIMER_REAL, signal.SIGALRM, BLOCKED))
    before = [signal.signal(number, late) for _, number, _ in clocks]
    for clock, _, most in clocks:
        signal.setitimer(clock, most)
    try:
        yield
    finally:
        for clock, _, _ in clocks:
            signal.setitimer(clock, 0)
        for (_, number, _), handler in zip(clocks, before, strict=True):
            signal.signal(number, handler)


def mutated_tensors(raw: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a changed header (length, bytes or values), length or numbers."""
    size = int.from_bytes(raw[:8], "little")
    header, body = bytearray(raw[8 : 8 + size]), bytearray(raw[8 + size :])
    kind = rng.randrange(6)
    if kind == 0:
        lies = (0, 1, size - 1, size + 1, size + len(body), 2**31, 2**63, 2**64 - 1)
        return rng.choice(lies).to_bytes(8, "little") + header + body
    if kind == 1:
        for _ in range(rng.choice((1, 2, 8))):
            header[rng.randrange(size)] = rng.randrange(256)
        return raw[:8] + header + body
    if kind == 2:
        text = mutated_header(json.loads(header), rng).encode("utf-8", "surrogatepass")
        return len(text).to_bytes(8, "little") + text + body
    if kind == 3:
        return raw[: rng.randrange(len(raw))] if rng.random() < 0.7 else raw + bytes(rng.randrange(1, 99))
    if not body:
        return raw[:-1]
    for _ in range(rng.choice((1, 1, 9))):
        if kind == 4:
            number = rng.choice((float("nan"), float("inf"), float("-inf"), 3e38))
            at = 4 * rng.randrange(max(1, len(body) // 4))
            body[at : at + 4] = struct.pack("<f", number)[: len(body) - at]
        else:
            body[rng.randrange(len(body))] = rng.randrange(256)
    return raw[:8] + header + body


def mutated_header(tree: dict[str, Any], rng: random.Random) -> str:
    """What another file might say of its tensors: types, shapes, offsets, names."""
    name = rng.choice(list(tree))
    of, kind = tree[name], rng.randrange(5)
    if kind == 0 or "shape" not in of:
        return mutated_json(json.dumps(tree), rng)
    if kind == 1:
        of["dtype"] = rng.choice(("F64", "F16", "BF16", "I32", "I8", "U64", "BOOL", "F8_E4M3", "F4", "C64", "f32", ""))
    elif kind == 2:
        of["shape"] = rng.choice(([], [0], [1], [2**62, 4], of["shape"][::-1], [*of["shape"], 1], [-1], [2**32, 2**32]))
    elif kind == 3:
        begin, end = of["data_offsets"]
        of["data_offsets"] = rng.choice(([begin, end + 4], [begin + 4, end], [end, begin], [0, 2**63], [0, 0], [begin]))
    else:
        tree[rng.choice((*NASTY, *tree))] = tree.pop(name)
    return json.dumps(tree)


def mutated_bytes(raw: bytes, rng: random.Random, header: int) -> bytes:
    """A change of any file that begins with `header` bytes on the rest: bytes, numbers of 4 or 8 bytes, the length."""
    out, kind = bytearray(raw), rng.randrange(4)
    if kind == 0:
        return raw[: rng.randrange(len(raw))]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(header)
        if kind == 1:
            out[at] = rng.randrange(256)
        else:
            lie = rng.choice((0, 1, 2, 9, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
            width = rng.choice((4, 8))
            out[at : at + width] = (lie % 256**width).to_bytes(width, "little")
    return bytes(out)


# ---------------------------------------------------------------- the watch

_allowed: Path | None = None  # where files may be written; None while nothing is watched
TEMPORARY = os.path.realpath(tempfile.gettempdir())
_code = True  # whether compiled or executed text is noted
_reads = False  # whether files that are read elsewhere are noted
_seen: list[str] = []
PATHS = {"os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.truncate": 1}
NEVER = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "socket.bind", "pickle.find_class"),
}
LIBRARIES = (sys.prefix, sys.base_prefix, str(ROOT), "/proc")
OWN = ("<frozen ", "<class 'networkx.")  # code that libraries generate themselves, not from data


def _audit(event: str, args: tuple[Any, ...]) -> None:
    """Note what reading a file must never do. An exception raised here might be caught, so it is noted instead."""
    if _allowed is None:
        return
    if event == "open":
        flags = args[2] if isinstance(args[2], int) else 0
        written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if written or (_reads and not os.path.realpath(os.fsdecode(args[0])).startswith(LIBRARIES)):
            _look(event, args[0])
    elif event in PATHS:
        for path in args[: PATHS[event]]:
            _look(event, path)
    elif event in NEVER:
        _seen.append(f"{event} {args!r}"[:300])
    elif event in ("compile", "exec") and _code:
        name = str(args[1] if event == "compile" else getattr(args[0], "co_filename", "<code>"))
        if name.startswith("<") and not name.startswith(OWN):
            _seen.append(f"{event} {args!r}"[:300])


def _look(event: str, path: Any) -> None:
    if isinstance(path, int) or str(path) == os.devnull or "__pycache__" in str(path):  # written by an import
        return
    real = os.path.realpath(os.fsdecode(path))
    if real == TEMPORARY or real.startswith(os.path.join(TEMPORARY, "tmp")):  # temporary files of libraries
        return
    if Path(real) != _allowed and _allowed not in Path(real).parents:
        _seen.append(f"{event} {path!r}")


sys.addaudithook(_audit)


@contextmanager
def watched(folder: Path, code: bool = True, reads: bool = False) -> Iterator[None]:
    """Fail if a file is written outside the folder, a process started, the network used, or text compiled or executed.

    Args:
        code: whether compiling and executing counts; some modules do that when they are imported
        reads: whether reading files elsewhere counts, but for those of Python and its packages
    """
    global _allowed, _code, _reads  # noqa: PLW0603
    _seen.clear()
    _allowed, _code, _reads = Path(os.path.realpath(folder)), code, reads
    try:
        yield
    finally:
        _allowed = None
    assert not _seen, _seen


def numbers(count: int = INPUTS) -> range:
    """The numbers of that many inputs."""
    return range(FIRST, FIRST + count)


def judge(read: Callable[[Path], object], path: Path, folder: Path) -> tuple[bool, str | None]:
    """Read a file. Returns whether it was refused, and what is wrong, if anything: only success and one message are
    right."""
    try:
        with in_time(), watched(folder):
            read(path)
    except UserError as error:
        said = str(error)
        good = said.strip() and "Traceback" not in said and len(said) <= 20_000
        return True, None if good else f"said {said[:300]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return False, f"{type(error).__name__}: {str(error)[:300]}"
    return False, None


def refusals(
    name: str, count: int, breaks: Callable[[random.Random], Path], read: Callable[[Path], object], folder: Path
) -> int:
    """Break a good file `count` times, each with its own random generator, and read it.

    Args:
        breaks: writes a broken file and returns its path
        folder: the only folder in which reading may write
    Returns:
        how often the file was refused
    Raises:
        AssertionError: some were neither read nor refused; it lists them.
    """
    wrong, refused = list[str](), 0
    for number in numbers(count):
        no, mistake = judge(read, breaks(random.Random(f"{name} {number}")), folder)
        refused += no
        wrong += [f"{name} {number}: {mistake}"] if mistake else []
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:20])
    return refused
