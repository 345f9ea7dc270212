"""Errors that the user can fix, printed as one message without a traceback, exit code 2.

Any other exception is a bug in acdc and keeps its traceback.
"""

from collections.abc import Iterable

INTERRUPTED = "interrupted; rerun the same command to resume"
MAX_LINE = 1500  # characters per line of a message
MAX_NAME = 100  # characters quoted of an unknown name
MAX_NAMES = 200  # known names listed in a message


class UserError(Exception):
    """Says what is wrong, where (file, key, flag, example) and what would be right."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key  # the option that the message is about

    def __str__(self) -> str:
        # Quoted names and texts can be arbitrarily long.
        lines = super().__str__().split("\n")
        return "\n".join(line if len(line) <= MAX_LINE else line[:MAX_LINE] + "…" for line in lines)


class TaskError(UserError):
    """A task file, its data, or its fit with a tokenizer."""


class ModelError(UserError):
    """A model that can't be found, read or represented."""


class FileError(UserError):
    """A circuit, log, config or output file."""


class InUse(FileError):
    """A directory that another process is writing; trying again later may work."""


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of the library tokenizers, which is no Exception."""
    return type(error).__name__ == "PanicException"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name, with the nearest known names and a list of all, cut at `MAX_NAMES`."""
    import difflib  # takes time

    names = sorted(known)
    name = name if len(name) <= MAX_NAME else name[:MAX_NAME] + "…"
    near = difflib.get_close_matches(name, names[:MAX_NAMES], n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names[:MAX_NAMES])}{more}"


def short(value: object) -> str:
    """Return the value's repr for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def plural(n: int, noun: str) -> str:
    """Return a number of things: `1 edge`, `2,000 edges`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
