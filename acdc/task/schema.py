"""The schema of a task file, which is data: it runs no code and loads no model. Rules across mappings: rules.py."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, field_validator, model_validator

from acdc.errors import short
from acdc.io.schema import Flag, Number, Strict, Text, Texts, Whole, one_line, one_or_many
from acdc.task.words import MAX_WORDS, NumberRange, Slot, WordList

MAX_ANSWERS = 10_000
MAX_SPAN = 24  # characters of a span's name

Metric = Text  # one of acdc.registry.METRICS; a rule checks it and gives a hint
Ablation = Literal["corrupted", "zero", "mean"]
POSITIONS = TypeAdapter(tuple[Whole, ...])


def as_positions(value: Any) -> Any:
    """Return `last`, `all` or a list of positions, checked; a number or a range becomes a list."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, dict):
        low, high = NumberRange.model_validate(value).range
        return tuple(range(low, high + 1))
    if isinstance(value, list | tuple) and value:
        return POSITIONS.validate_python(value)
    if isinstance(value, str) and value in ("last", "all"):
        return value
    raise ValueError(f"should be last, all, a list of positions or {{range: [first, last]}}, got {short(value)}")


Positions = Annotated[Literal["last", "all"] | tuple[Whole, ...], BeforeValidator(as_positions)]


def as_answers(value: Any) -> Any:
    """Return answers as a list; raise ValueError for a number, which may be meant as a token id."""
    answers = one_or_many(value)
    for answer in answers if isinstance(answers, list | tuple) else (answers,):
        if type(answer) in (int, float):
            why = "token ids differ between tokenizers; a number that is the text needs quotes"
            raise ValueError(f"should be a text such as ' she', got the number {short(answer)}: {why}")
    return answers


AnswerTexts = Annotated[tuple[Text, ...], BeforeValidator(as_answers)]


def span_name(name: str) -> str:
    """Return the name of a span; raise ValueError if a span can't be called so."""
    if not 0 < len(one_line(name)) <= MAX_SPAN or name != name.strip() or "@" in name or "->" in name or name == "BOS":
        rule = f"have 1 to {MAX_SPAN} characters, without @, -> and spaces around it, and not be BOS"
        raise ValueError(f"the name of a span should {rule}, got {short(name)}")
    return name


def as_span(value: Any) -> Any:
    """Return a part of a template, as text, or [start, end) of a row; None if the row lacks it."""
    if value is None or isinstance(value, str):
        return value
    two = isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int for n in value)
    if two and 0 <= value[0] < value[1]:
        return tuple(value)
    rule = "[start, end], whole numbers with 0 ≤ start < end, or null if the row lacks it"
    raise ValueError(f"should be {rule}; in a template, its text; got {short(value)}")


SpanName = Annotated[Text, AfterValidator(span_name)]
Span = Annotated[Text | tuple[Whole, Whole] | None, BeforeValidator(as_span)]


class Prompt(Strict):
    """A clean prompt with its corrupted prompt and answers; missing keys come from `corrupt` and `answers`. Texts in
    templates have slots; texts in rows and files are literal.

    Args:
        clean: the prompt
        corrupted: the same prompt with the relevant words replaced, in equally many tokens
        correct: correct answers, one token each
        wrong: wrong answers, one token each
        spans: the parts of the clean prompt, for `--positions`: in a template, each one's text by name, joined exactly
            the template; in rows, each one's [start, end) in `span_units`, null if the row lacks it
    """

    clean: Text = Field(min_length=1)
    corrupted: Text | None = Field(default=None, min_length=1)
    correct: AnswerTexts | None = None
    wrong: AnswerTexts | None = None
    spans: dict[SpanName, Span] | None = None

    @field_validator("spans")
    @classmethod
    def _apart(cls, spans: dict[str, Any] | None) -> dict[str, Any] | None:
        stated = sorted((value, name) for name, value in (spans or {}).items() if isinstance(value, tuple))
        for (one, name), (other, behind) in pairwise(stated):
            if other[0] < one[1]:
                raise ValueError(f"{name} {list(one)} and {behind} {list(other)} overlap; each token is in one span")
        return spans


def as_prompt(value: Any) -> Any:
    """Return a single text as a clean prompt."""
    return {"clean": value} if isinstance(value, str) else value


class Generator(Strict):
    """Prompts of `length` distinct words, repeated once. In the corrupted prompt the first half has other words.

    Args:
        name: name of the generator
        words: the words to draw from, at least twice as many as `length`; each once
        length: words in one half of the prompt
    """

    name: Literal["repeated-tokens"]
    words: tuple[Text, ...]
    length: Whole = Field(ge=2, le=1000)


class Source(Strict):
    """The task's `data`: where prompts come from. Give exactly one of template, templates, rows, file and generator.

    Args:
        template: a prompt with slots, written `{slot}` or `{slot.column}`; `{{` and `}}` are braces
        templates: several templates, used in turn; each a text, or a mapping with its own corrupted prompt or answers
        rows: the prompts themselves; each is used at most once
        file: a JSONL file with one row per line, or a CSV file (.csv) with a column per key; relative to the YAML file
        generator: a rule that makes prompts
        slots: what fills each slot: words, a range, a table, or the name of one of `lists`
        lists: word lists by name; slots that name the same list draw different words within an example
        pieces: templates with `|` between tokens; draws that don't split exactly there are redrawn
        different: groups of slots; draws that fill two slots of a group alike are redrawn
        spans: the parts of `template` by name, for `--positions`; joined they are exactly the template. Without it,
            each slot is a span, and so is the text between two slots
        span_units: what the spans of rows are counted in: `tokens` of the prompt, without BOS and padding, or
            `characters`
        bos: put the tokenizer's BOS token in front; a tokenizer without one is refused
        padding: `left` pads shorter prompts on the left and masks the padding; `none` asks for prompts of equal length
        splits: `disjoint` draws two halves without a common prompt, one for discovery, one held out; `same` draws
            one half that serves as both
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
    spans: dict[SpanName, Text] | None = None
    span_units: Literal["tokens", "characters"] = "tokens"
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
            has = " and ".join(given) or "none"
            raise ValueError(f"should have exactly one of template, templates, rows, file and generator, has {has}")
        return self

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The templates, without rows; `template` counts as one."""
        if self.template is None:
            return self.templates or ()
        return (Prompt.model_construct(clean=self.template, spans=self.spans),)

    def row(self, i: int) -> str:
        """Return the name of a row for messages: `mine.jsonl row 3`."""
        return f"{self.file} row {i + 1}" if self.file else f"data.rows.{i}"

    def words(self, slot: str) -> WordList:
        """Return the words that fill a slot; raise KeyError if it names a missing list."""
        source = self.slots[slot]
        return self.lists[source] if isinstance(source, str) else source


class Corrupt(Strict):
    """How the corrupted prompt differs from the clean one. Give exactly one key.

    Args:
        template: the corrupted prompt, with the same slots as the clean one
        fix: slots that get a fixed word
        redraw: slots that are drawn again, with other words than in the clean prompt
        shuffle: use the clean prompt of another example of the same half
    """

    template: Text | None = Field(default=None, min_length=1)
    fix: dict[Text, Text] | None = None
    redraw: tuple[Text, ...] | None = None
    shuffle: Literal[True] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Corrupt:
        if len(self.model_fields_set) != 1:
            has = " and ".join(sorted(self.model_fields_set)) or "none"
            raise ValueError(f"should have exactly one of template, fix, redraw and shuffle, has {has}")
        return self


class Compare(Strict):
    """Correct answers are the numbers in `among` greater (or less) than the slot's value; the others are wrong.

    Args:
        slot: a slot of the prompt whose words are whole numbers
        relation: how a correct number compares to the slot's
        among: the numbers that are answers, each one token
        equal: whether the slot's own number is a wrong answer or neither
    """

    slot: Text
    relation: Literal["greater", "less"]
    among: NumberRange
    equal: Literal["wrong", "neither"] = "wrong"

    @field_validator("among")
    @classmethod
    def _few(cls, among: NumberRange) -> NumberRange:
        if len(among) > MAX_ANSWERS:
            raise ValueError(f"has {len(among):,} numbers; it should have at most {MAX_ANSWERS:,}")
        return among


class Answers(Strict):
    """What follows the scored position: texts, a comparison, or the prompt's own next token.

    Args:
        correct: correct answers, one token each; may have slots
        wrong: wrong answers, one token each; may have slots; only together with `correct`
        compare: numbers greater or less than a slot's
        next: the correct answer is the next token of the clean prompt, at each scored position
    """

    correct: AnswerTexts | None = None
    wrong: AnswerTexts = ()
    compare: Compare | None = None
    next: Literal[True] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Answers:
        given = [key for key in ("correct", "compare", "next") if getattr(self, key) is not None]
        if len(given) != 1 or (self.wrong and given != ["correct"]):
            has = " and ".join(sorted(self.model_fields_set)) or "none"
            raise ValueError(f"should have correct (and wrong), or compare, or next: true, has {has}")
        return self


class Override(Strict):
    """Defaults for one model; a key that is not set has the task's default.

    Args:
        metric, threshold, examples, seed, ablation: for this model
    """

    metric: Metric | None = None
    threshold: Number | None = Field(default=None, ge=0)
    examples: Whole | None = Field(default=None, ge=1, le=MAX_WORDS)
    seed: Whole | None = None
    ablation: Ablation | None = None


class Defaults(Strict):
    """Values that a run uses unless the command line or a config sets others.

    Args:
        metric: what is minimised: `kl` against the full model and `nll` in nats, `logit-diff` in logits and `prob-diff`
            with a minus sign, `l2` the mean squared distance of the logits to the full model's
        threshold: τ in the metric's units; an edge is removed if its removal raises the metric by less
        examples: prompts in each half, discovery and held out
        seed: seed of the prompts and of everything random
        ablation: what a removed edge carries: the sender's output on the corrupted prompt, nothing (zero), or its mean
            over the clean prompts
        model: the model, if none is given
        models: other defaults for single models, by model name
    """

    metric: Metric
    threshold: Number = Field(ge=0)
    examples: Whole = Field(ge=1, le=MAX_WORDS)
    seed: Whole = 0
    ablation: Ablation = "corrupted"
    model: Text | None = None
    models: dict[Text, Override] = Field(default={})


class Task(Strict):
    """A behaviour as data. Everything that needs no tokenizer is checked when the file is read.

    Args:
        name: the file's name without .yaml, which may be left out
        version: raise it when the prompts change; each version draws other prompts
        source: where the behaviour, the words and the numbers come from
        description: what the model should do, and what the corrupted prompts change
        defaults: values that a run uses unless others are given
        data: where prompts come from
        corrupt: how the corrupted prompt differs, for prompts without one of their own
        answers: the answers, for prompts without their own; `kl` and `l2` need none
        score_at: positions where predictions are scored: the last, all, some, or a range; counted from 0 without BOS
            and padding, negative ones from the end
        metrics: the metrics that a run may minimise with these answers; a run reports all of them
        variant: a task for tokenizers that can't serve this one
    """

    name: Text = ""
    version: Whole = Field(ge=1)
    source: Text = Field(min_length=1)
    description: Text = Field(min_length=1)
    defaults: Defaults
    data: Source
    corrupt: Corrupt | None = None
    answers: Answers | None = None
    score_at: Positions = "last"
    metrics: tuple[Metric, ...] = Field(min_length=1)
    variant: Text | None = None

    def defaults_for(self, model: str) -> Defaults:
        """Return the task's defaults with those for this model over them."""
        override = self.defaults.models.get(model, Override())
        return self.defaults.model_copy(update=override.model_dump(exclude_none=True))

    def begins(self, text: str) -> bool:
        """Return whether the template of a prompt begins with a text."""
        paired = self.corrupt.template if self.corrupt else None
        templates = [paired, *(text for prompt in self.data.prompts for text in (prompt.clean, prompt.corrupted))]
        return any(template is not None and template.startswith(text) for template in templates)

    def templates(self) -> Iterator[tuple[str, str]]:
        """Yield key and text of every template that may have slots."""
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
