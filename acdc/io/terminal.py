"""All text for the terminal: `show` writes results to stdout, `say` messages to stderr. Nothing in a text can steer the
terminal, and neither its encoding nor a closed stream stops the work."""

import codecs
import os
import re
import sys
from contextlib import suppress
from typing import Any

# More control characters, line separators, marks that turn the direction of text, and what XML can't hold.
MARKS = "\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufffe\uffff"
STEERING = re.compile(f"[\0-\x08\x0b-\x1f{MARKS}\ud800-\udfff]")  # also halves of characters; not newline and tab


def printable(text: str) -> str:
    """Return text with the characters that could steer a terminal as JSON may write them: \\u001b."""
    return STEERING.sub(lambda found: _escaped(found[0]), text)


def _escaped(text: str) -> str:
    return re.sub("....", r"\\u\g<0>", text.encode("utf-16-be", "surrogatepass").hex())


def open_terminal() -> None:
    """From now on stdout and stderr write characters that their encoding lacks like that, too."""
    codecs.register_error("escaped", lambda e: (_escaped(e.object[e.start : e.end]), e.end))  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="escaped")


def show(text: str | bytes, end: str = "\n") -> None:
    """Print text to stdout, or bytes, which are those of a file unless stdout is a terminal. If nobody reads any more,
    that is no error. Raises OSError if stdout is a file that can't be written."""
    if isinstance(text, bytes) and sys.stdout is not None and sys.stdout.isatty():
        text = text.decode(errors="replace")
    with suppress(BrokenPipeError):
        _write(sys.stdout, printable(text) + end if isinstance(text, str) else text)


def say(*messages: str) -> None:
    """Print messages to stderr, a line each, if it can be written."""
    for message in messages:
        with suppress(OSError):
            _write(sys.stderr, printable(message.replace("\n", " ")) + "\n")


def _write(stream: Any, text: str | bytes) -> None:
    """Write at once. After an error the stream leads nowhere: Python would try again at its end."""
    if stream is None:  # was closed from the start
        return
    to = stream.buffer if isinstance(text, bytes) else stream
    try:
        to.write(text)
        to.flush()
    except OSError:
        with suppress(OSError, ValueError):  # it has no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise
