"""Word lists: what fills the slots of a template."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from acdc.errors import short
from acdc.io.schema import Strict, Text, Whole

MAX_WORDS = 1_000_000  # words of all slots together; also the most examples


class NumberRange(Strict):
    """The numbers from low to high, both included, as texts.

    Args:
        range: the first and the last number
        width: pad each number with zeros on the left to this many digits; 0: no padding
    """

    range: tuple[Whole, Whole]
    width: Whole = Field(default=0, ge=0, le=20)

    @model_validator(mode="after")
    def _size(self) -> NumberRange:
        low, high = self.range
        if not 0 <= high - low < MAX_WORDS:
            raise ValueError(f"range [{low}, {high}] has {high - low + 1} numbers; it should have 1 to {MAX_WORDS}")
        return self

    def __len__(self) -> int:
        return self.range[1] - self.range[0] + 1

    def texts(self) -> tuple[str, ...]:
        """Return the numbers as words."""
        low, high = self.range
        return tuple(str(n).zfill(self.width) for n in range(low, high + 1))


class Table(Strict):
    """Words in several forms; a slot that draws from a table is written `{slot.column}`.

    Args:
        columns: the names of the forms
        rows: the forms of each word, one per column
    """

    columns: tuple[Text, ...] = Field(min_length=1)
    rows: tuple[tuple[Text, ...], ...]

    @model_validator(mode="after")
    def _rectangle(self) -> Table:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"row {list(row)} should have {len(self.columns)} words: {', '.join(self.columns)}")
        return self

    def __len__(self) -> int:
        return len(self.rows)


TEXTS = TypeAdapter(tuple[Text, ...])


def as_words(value: Any) -> Any:
    """Return a word list, checked in the form that it has, so that errors are about that form alone."""
    if isinstance(value, list | tuple):
        return TEXTS.validate_python(value)
    if isinstance(value, NumberRange | Table):
        return value
    if isinstance(value, dict) and "range" in value:
        return NumberRange.model_validate(value)
    if isinstance(value, dict) and ("columns" in value or "rows" in value):
        return Table.model_validate(value)
    raise ValueError(
        "should be a list of words, {range: [low, high], width: 2}, {columns: […], rows: [[…]]} or, for a slot, "
        f"the name of a list in data.lists, got {short(value)}"
    )


def as_slot(value: Any) -> Any:
    """Return a word list, checked, or the name of one."""
    return value if isinstance(value, str) else as_words(value)


WordList = Annotated[tuple[Text, ...] | NumberRange | Table, BeforeValidator(as_words)]
Slot = Annotated[tuple[Text, ...] | NumberRange | Table | Text, BeforeValidator(as_slot)]
