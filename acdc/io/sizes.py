"""Sizes of memory, as users write them."""

import re

from acdc.errors import UserError


def parse_bytes(text: str) -> float:
    """Return the bytes of a size such as 4GB, 500MB or 1.5 GiB; raise ValueError if the text is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])(i?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size; write it as 4GB or 500MB")
    number, unit, binary = match.groups()
    base = 1024 if binary else 1000
    size = float(number) * base ** (2 if unit in "Mm" else 3)
    if not 1e6 <= size <= 1e18:
        raise ValueError(f"{text!r}: should be 1 MB or more, and less than a billion GB")
    return size


def memory_bound(text: str | None) -> float | None:
    """Return the bytes of --memory, or None if it is not given; raise UserError if it is not a size."""
    if text is None:
        return None
    try:
        return parse_bytes(str(text))
    except ValueError as error:
        raise UserError(f"--memory: {error}") from None


def in_name(value: float) -> str:
    """A number as a part of a name, with as many digits as tell it from all others."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
