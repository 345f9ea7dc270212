"""The base class of all schemas of files and options, and the one rendering of what is wrong with their values."""

import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from acdc.errors import FileError, short, unknown
from acdc.io.terminal import MARKS

MAX_PROBLEMS = 10  # lines of one message
ODD = re.compile(f"[\0-\x1f{MARKS}]")


def one_or_many(value: Any) -> Any:
    """Return a single text as a list of one."""
    return (value,) if isinstance(value, str) else value


def one_line(text: str) -> str:
    """Return the text; raise ValueError if it has a character that a line of text can't have."""
    if odd := ODD.search(text):
        raise ValueError(f"has the character {odd[0]!r}; it should be one line, without control characters")
    return text


Text = Annotated[str, Field(strict=True)]
Line = Annotated[Text, AfterValidator(one_line)]
Name = Annotated[str, Field(strict=True, min_length=1), AfterValidator(one_line)]
Label = Annotated[str, Field(strict=True, max_length=300), AfterValidator(one_line)]  # a file's name has 255 at most
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(one_or_many)]


class UnknownKey(ValueError):
    """A key that a mapping doesn't have."""

    def __init__(self, key: str, known: Iterable[str]) -> None:
        super().__init__(unknown("key", key, known))
        self.key = key


class Strict(BaseModel):
    """A frozen mapping without unknown keys; a mistyped key gets a hint."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"should be a mapping with the keys {', '.join(cls.model_fields)}, got {short(value)}")
        for key in value:
            if key not in cls.model_fields:
                raise UnknownKey(str(key), cls.model_fields)
        return value


S = TypeVar("S", bound=Strict)


def validated(schema: type[S], content: Any, where: str) -> S:
    """Return the content of file `where` as its schema; raise FileError with a line per problem if it doesn't fit."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise FileError(mistakes(where, error)) from None


def mistakes(where: str, error: ValidationError) -> str:
    """Return pydantic's errors as one message, a line per problem."""
    return listed(where, [": ".join(part for part in problem if part) for problem in problems(error)])


def problems(error: ValidationError) -> list[tuple[str, str]]:
    """Return pydantic's errors in plain words, each with its key, such as `data.slots`; "" for the whole mapping."""
    found = []
    for problem in error.errors():
        got = f", got {short(problem['input'])}"
        texts = {
            "missing": "is missing",
            "value_error": str(problem.get("ctx", {}).get("error", "")),
            "string_type": f"should be a text; put it in quotes{got}",
            "string_too_short": "should not be empty",
            "tuple_type": f"should be a list{got}",
            "dict_type": f"should be a mapping{got}",
            "bool_type": f"should be true or false{got}",
            "bool_parsing": f"should be true or false{got}",
        }
        if problem["type"] in ("float_type", "int_type") and (number := _meant(problem["input"])):
            got = f", not the text {short(problem['input'])}: write {number}"
        text = texts.get(problem["type"], problem["msg"].replace("Input should", "should") + got)
        found.append((".".join(str(part) for part in problem["loc"] if part != "[key]"), text))
    return found


def _meant(value: Any) -> str | None:
    """The number that a text spells, as YAML reads it: 1e-2 and "0.01" are texts, 0.01 and 1.0e-2 numbers."""
    try:
        number = float(value) if isinstance(value, str) and len(value) < 30 else math.nan
    except ValueError:
        return None
    text = f"{number:g}" if float(f"{number:g}") == number else repr(number)
    return (text if "." in text else text.replace("e", ".0e")) if math.isfinite(number) else None


def listed(where: str, problems: list[str]) -> str:
    """Return problems as one message, a line each; `where` is the file."""
    lines = [": ".join(part for part in (where, problem) if part) for problem in problems]
    if len(lines) > MAX_PROBLEMS:
        lines[MAX_PROBLEMS:] = [f"{where}: and {len(lines) - MAX_PROBLEMS} more"]
    return "\n".join(lines)
