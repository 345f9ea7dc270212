"""What the schemas of YAML files share: types of values, mappings without unknown keys, errors in the user's words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from acdc.errors import short, unknown

MAX_PROBLEMS = 10  # lines of one message


def one_or_many(value: Any) -> Any:
    """A text alone is a list of one."""
    return (value,) if isinstance(value, str) else value


Text = Annotated[str, Field(strict=True)]
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

    model_config = ConfigDict(extra="forbid", frozen=True)

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


def mistakes(where: str, error: ValidationError) -> str:
    """Pydantic's errors in the user's words, one line each."""
    problems = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("~"))
        got = f", got {short(problem['input'])}"
        text = {
            "missing": "is missing",
            "value_error": str(problem.get("ctx", {}).get("error", "")),
            "string_type": f"should be a text; put it in quotes{got}",
            "tuple_type": f"should be a list{got}",
            "dict_type": f"should be a mapping{got}",
            "finite_number": f"should be a finite number{got}",
        }.get(problem["type"], problem["msg"].replace("Input should", "should") + got)
        problems.append(": ".join(part for part in (key, text) if part))
    return listed(where, problems)


def listed(where: str, problems: list[str]) -> str:
    """Problems as one message, a line each; `where` is the file."""
    lines = [": ".join(part for part in (where, problem) if part) for problem in problems]
    if len(lines) > MAX_PROBLEMS:
        lines[MAX_PROBLEMS:] = [f"{where}: and {len(lines) - MAX_PROBLEMS} more"]
    return "\n".join(lines)
