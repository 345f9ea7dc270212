"""What a task file may say: the schema of a `Task`.

A task is data: it runs no code and loads no model. Rules within one mapping are validators here; those across
mappings are in acdc/task/rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from acdc.errors import short
from acdc.io.schema import Flag, Number, Strict, Text, Texts, Whole

MAX_WORDS = 1_000_000  # words of all slots, and examples
MAX_ANSWERS = 10_000

Metric = Text  # one of acdc.registry.METRICS, which a rule checks with a hint
Ablation = Literal["corrupted", "zero", "mean"]


class Range(Strict):
    """The numbers low..high, both included, as texts.

    Args:
        range: the first and the last number
        width: digits of each, filled up with zeros on the left; 0: as many as it has
    """

    range: tuple[Whole, Whole]
    width: Whole = Field(default=0, ge=0, le=20)

    @model_validator(mode="after")
    def _size(self) -> Range:
        low, high = self.range
        if not 0 <= high - low < MAX_WORDS:
            raise ValueError(f"range [{low}, {high}] has {high - low + 1} numbers; it should have 1 to {MAX_WORDS}")
        return self

    def texts(self) -> tuple[str, ...]:
        """The numbers as words."""
        low, high = self.range
        return tuple(str(n).zfill(self.width) for n in range(low, high + 1))


class Table(Strict):
    """Words in several forms; a slot that draws from it is written `{slot.column}`.

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


def kind(value: Any) -> str | None:
    """Which form of a word list is meant. The ~ marks what is no key in the location of an error."""
    if isinstance(value, (list, tuple)):
        return "~words"
    if isinstance(value, str):
        return "~name"
    if isinstance(value, Range) or (isinstance(value, dict) and "range" in value):
        return "~range"
    if isinstance(value, Table) or (isinstance(value, dict) and ("columns" in value or "rows" in value)):
        return "~table"
    return None


Words = Annotated[tuple[Text, ...], Tag("~words")]
WordList = Annotated[
    Words | Annotated[Range, Tag("~range")] | Annotated[Table, Tag("~table")],
    Discriminator(
        kind,
        custom_error_type="word_list",
        custom_error_message="should be a list of words, {range: [low, high], width: 2} or {columns: […], rows: [[…]]}",
    ),
]
Slot = Annotated[
    Words | Annotated[Range, Tag("~range")] | Annotated[Table, Tag("~table")] | Annotated[Text, Tag("~name")],
    Discriminator(
        kind,
        custom_error_type="slot",
        custom_error_message="should be a list of words, "
        "{range: [low, high], width: 2}, {columns: […], rows: [[…]]} or the name of a list in data.lists",
    ),
]


class Prompt(Strict):
    """A clean prompt and what belongs to it; what is left out comes from `corrupt` and `answers`. In templates texts
    have slots; in rows and files they are taken as they are.

    Args:
        clean: the prompt
        corrupted: the same with what matters exchanged, in equally many tokens
        correct: what should follow, one token each
        wrong: what should not follow, one token each
    """

    clean: Text = Field(min_length=1)
    corrupted: Text | None = Field(default=None, min_length=1)
    correct: Texts | None = None
    wrong: Texts | None = None


def as_prompt(value: Any) -> Any:
    """A text alone is a clean prompt."""
    return {"clean": value} if isinstance(value, str) else value


class Generator(Strict):
    """`length` distinct words, then the same again. Corrupted: the first half is other words.

    Args:
        name: of the generator
        words: what is drawn from, at least twice as many as `length`; each once
        length: words of one half of the prompt
    """

    name: Literal["repeated-tokens"]
    words: tuple[Text, ...]
    length: Whole = Field(ge=2, le=1000)


class Source(Strict):
    """The task's `data`: where prompts come from. Exactly one of template, templates, rows, file and generator.

    Args:
        template: a prompt with slots, written `{slot}` or `{slot.column}`; `{{` and `}}` are braces
        templates: several, which take turns; each a text, or a mapping where it has a corrupted prompt or answers of
            its own
        rows: the prompts themselves; each serves at most once
        file: JSONL with such a row per line, relative to the YAML
        generator: a rule that makes prompts
        slots: what each slot is filled from: words, a range, a table, or the name of one of `lists`
        lists: words by name; slots that name one list draw different words within an example
        pieces: templates with `|` between tokens: draws that don't split exactly there are redrawn
        different: groups of slots: draws that fill two of a group alike are redrawn
        bos: put the tokenizer's BOS in front, where it has one
        padding: `left` fills up shorter prompts on the left, and masks that; with `none` all have equally many tokens
        splits: `disjoint` draws two halves without a prompt in common, one for discovery, one held out; `same` draws
            one that serves as both
    """

    template: Text | None = Field(default=None, min_length=1)
    templates: tuple[Annotated[Prompt, BeforeValidator(as_prompt)], ...] | None = None
    rows: tuple[Prompt, ...] | None = None
    file: Text | None = None
    generator: Generator | None = None
    slots: dict[Text, Slot] = Field(default={})
    lists: dict[Text, WordList] = Field(default={})
    pieces: Texts = ()
    different: tuple[tuple[Text, ...], ...] = ()
    bos: Flag = False
    padding: Literal["none", "left"] = "none"
    splits: Literal["disjoint", "same"] = "disjoint"

    @field_validator("slots")
    @classmethod
    def _slot_names(cls, slots: dict[str, Any]) -> dict[str, Any]:
        for name in slots:
            if not name.isidentifier():
                raise ValueError(f"slot name {name!r} should be letters, digits and _")
        return slots

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        given = [key for key in ("template", "templates", "rows", "generator") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                "should have exactly one of template, templates, rows, file and generator, "
                f"has {' and '.join(given) or 'none'}"
            )
        return self

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The templates (not the rows), the short form `template` included."""
        return (Prompt(clean=self.template),) if self.template is not None else self.templates or ()

    def words(self, slot: str) -> WordList:
        """What a slot is filled from; a KeyError where that is a list that isn't there."""
        source = self.slots[slot]
        return self.lists[source] if isinstance(source, str) else source


class Corrupt(Strict):
    """How the corrupted prompt differs. Exactly one key.

    Args:
        template: the corrupted prompt, with the same slots as the clean one
        fix: slots that get a fixed word
        redraw: slots that are drawn again, different from the clean prompt's
        shuffle: the clean prompt of another example of the same half
    """

    template: Text | None = Field(default=None, min_length=1)
    fix: dict[Text, Text] | None = None
    redraw: tuple[Text, ...] | None = None
    shuffle: Literal[True] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Corrupt:
        if len(self.model_fields_set) != 1:
            raise ValueError(
                "should have exactly one of template, fix, redraw and shuffle, "
                f"has {' and '.join(sorted(self.model_fields_set)) or 'none'}"
            )
        return self


class Compare(Strict):
    """Correct: the numbers of `among` that are greater (or less) than the slot's value; wrong: the others.

    Args:
        slot: of the prompt, with whole numbers as words
        relation: of a correct number to the slot's
        among: the numbers that are answers, each one token
        equal: what the slot's own number is
    """

    slot: Text
    relation: Literal["greater", "less"]
    among: Range
    equal: Literal["wrong", "neither"] = "wrong"

    @field_validator("among")
    @classmethod
    def _few(cls, among: Range) -> Range:
        if (count := among.range[1] - among.range[0] + 1) > MAX_ANSWERS:
            raise ValueError(f"has {count:,} numbers; it should have at most {MAX_ANSWERS:,}")
        return among


class Answers(Strict):
    """What follows the scored position: texts, a comparison, or the prompt's own next token.

    Args:
        correct: what should follow, one token each, with slots
        wrong: what should not follow, likewise; only beside `correct`
        compare: numbers that are greater or less than a slot's
        next: the token of the clean prompt that follows each scored position
    """

    correct: Texts | None = None
    wrong: Texts = ()
    compare: Compare | None = None
    next: Literal[True] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Answers:
        given = [key for key in ("correct", "compare", "next") if getattr(self, key) is not None]
        if len(given) != 1 or (self.wrong and given != ["correct"]):
            raise ValueError(
                "should have correct (and wrong), or compare, or next: true, "
                f"has {' and '.join(sorted(self.model_fields_set)) or 'none'}"
            )
        return self


class Override(Strict):
    """Defaults that differ for one model; what is not set is the task's.

    Args:
        metric, threshold, examples, seed, ablation: for this model
    """

    metric: Metric | None = None
    threshold: Number | None = Field(default=None, ge=0)
    examples: Whole | None = Field(default=None, ge=1, le=MAX_WORDS)
    seed: Whole | None = None
    ablation: Ablation | None = None


class Defaults(Strict):
    """What a run uses unless the command line or a config says otherwise.

    Args:
        metric: what is minimised: `kl` against the full model and `nll` in nats, `logit-diff` in logits and `prob-diff`
            with a minus sign, `l2` the mean squared distance of the logits to the full model's
        threshold: τ in the metric's units; an edge goes if its removal raises the metric by less
        examples: prompts of each half, for discovery and held out
        seed: of the prompts and of everything random
        ablation: what a removed edge carries: the sender's output on the corrupted prompt, nothing (zero), or its mean
            over the clean prompts
        model: used where none is named
        models: defaults that differ for a model, by its name
    """

    metric: Metric
    threshold: Number = Field(ge=0)
    examples: Whole = Field(ge=1, le=MAX_WORDS)
    seed: Whole = 0
    ablation: Ablation = "corrupted"
    model: Text | None = None
    models: dict[Text, Override] = Field(default={})


Positions = Annotated[
    Annotated[Literal["last", "all"], Tag("~word")] | Annotated[tuple[Whole, ...], Tag("~list")],
    Discriminator(lambda value: "~word" if isinstance(value, str) else "~list"),
]


class Task(Strict):
    """A behaviour as data; everything that can be known without a tokenizer is checked when it is read.

    Args:
        name: the file's name without .yaml
        version: to be raised when the prompts change; every version draws its own
        source: where the behaviour, the words and the numbers come from
        description: what the model should do, and what the corrupted prompts change
        defaults: what a run uses unless it is told otherwise
        data: where prompts come from
        corrupt: how the corrupted prompt differs, where prompts have none of their own
        answers: what should follow, where prompts have none of their own; `kl` and `l2` need none
        score_at: where predictions count: the last position, all, some, or a range of them; counted from 0 without BOS
            and padding, negative ones from the end
        metrics: what a run may minimise, given these answers; it reports all of them
    """

    name: Text
    version: Whole = Field(ge=1)
    source: Text = Field(min_length=1)
    description: Text = Field(min_length=1)
    defaults: Defaults
    data: Source
    corrupt: Corrupt | None = None
    answers: Answers | None = None
    score_at: Positions = "last"
    metrics: tuple[Metric, ...] = Field(min_length=1)

    def defaults_for(self, model: str) -> Defaults:
        """The task's defaults, with what it states for this model."""
        override = self.defaults.models.get(model, Override())
        return self.defaults.model_copy(update=override.model_dump(exclude_none=True))

    def templates(self) -> Iterator[tuple[str, str]]:
        """The key and the text of every template in which slots may occur."""
        for i, prompt in enumerate(self.data.prompts):
            at = "data.template" if self.data.template is not None else f"data.templates.{i}"
            yield at, prompt.clean
            yield from ((f"{at}.corrupted", text) for text in [prompt.corrupted] if text is not None)
            yield from ((f"{at}.correct", text) for text in prompt.correct or ())
            yield from ((f"{at}.wrong", text) for text in prompt.wrong or ())
        yield from (("data.pieces", text) for text in self.data.pieces)
        if self.corrupt and self.corrupt.template is not None:
            yield "corrupt.template", self.corrupt.template
        if self.answers:
            yield from (("answers.correct", text) for text in self.answers.correct or ())
            yield from (("answers.wrong", text) for text in self.answers.wrong)

    @field_validator("score_at", mode="before")
    @classmethod
    def _positions(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return (value,)
        if isinstance(value, dict):
            low, high = Range.model_validate(value).range
            return tuple(range(low, high + 1))
        if value not in ("last", "all") and not (isinstance(value, (list, tuple)) and value):
            raise ValueError(
                f"should be last, all, a list of positions or {{range: [first, last]}}, got {short(value)}"
            )
        return value
