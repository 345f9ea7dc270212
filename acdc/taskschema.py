"""What a task file may say: the schema of a `Task`, and the rules across its keys.

A task is data: it runs no code and loads no model. Everything that can be known without a tokenizer is
checked here. Rules within one key are validators; rules across keys are the functions `check_…`, which
yield problems in the words that the user typed.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from acdc.errors import unknown

METRICS = ("kl", "logit-diff", "prob-diff", "nll", "l2")
NEEDS_CORRECT = ("logit-diff", "prob-diff", "nll")  # metrics that read the correct answers
NEEDS_WRONG = ("logit-diff", "prob-diff")  # metrics that also read the wrong ones
MAX_WORDS = 1_000_000  # words of one slot


# ---------------------------------------------------------------- templates

FIELD = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")


@cache
def parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template as (literal text, field or None) pairs. A field is `{slot}` or `{slot.column}`."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; write {{{{ and }}}} for braces in the text") from None
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or not FIELD.fullmatch(name)):
            raise ValueError(f"template {template!r}: fields are {{slot}} or {{slot.column}}, not {{{name}…}}")
    return tuple((text, name) for text, name, _, _ in parts)


def fields(template: str) -> list[str]:
    """The fields of a template: slot or slot.column."""
    return [name for _, name in parse(template) if name is not None]


def render(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields filled in. Not `str.format`, which can reach attributes of values."""
    return "".join(text + (values[name] if name is not None else "") for text, name in parse(template))


def short(value: Any) -> str:
    """The value for a message, cut to one readable line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


# ---------------------------------------------------------------- schema


def one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Text = Annotated[str, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(one_or_many)]
Metric = Text  # checked against METRICS with a hint
Ablation = Literal["corrupted", "zero", "mean"]


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
                raise ValueError(unknown("key", str(key), cls.model_fields))
        return value


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

    @model_validator(mode="after")
    def _enough(self) -> Generator:
        for problem in check_words("words", self.words):
            raise ValueError(problem)
        if len(self.words) < 2 * self.length:
            raise ValueError(f"length {self.length} needs {2 * self.length} words, words has {len(self.words)}")
        return self


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

    template: Text | None = None
    templates: tuple[Annotated[Prompt, BeforeValidator(as_prompt)], ...] | None = None
    rows: tuple[Prompt, ...] | None = None
    file: Text | None = None
    generator: Generator | None = None
    slots: dict[Text, Slot] = {}
    lists: dict[Text, WordList] = {}
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


class Corrupt(Strict):
    """How the corrupted prompt differs. Exactly one key.

    Args:
        template: the corrupted prompt, with the same slots as the clean one
        fix: slots that get a fixed word
        redraw: slots that are drawn again, different from the clean prompt's
        shuffle: the clean prompt of another example of the same half
    """

    template: Text | None = None
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
    models: dict[Text, Override] = {}


Positions = Annotated[
    Annotated[Literal["last", "all"], Tag("~word")] | Annotated[tuple[Whole, ...], Tag("~list")],
    Discriminator(lambda value: "~word" if isinstance(value, str) else "~list"),
]


class Task(Strict):
    """A behaviour as data; everything that can be known without a tokenizer has been checked.

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

    @field_validator("score_at", mode="before")
    @classmethod
    def _positions(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return (value,)
        if isinstance(value, dict):
            low, high = Range(**value).range
            return tuple(range(low, high + 1))
        if value not in ("last", "all") and not (isinstance(value, (list, tuple)) and value):
            raise ValueError(
                f"should be last, all, a list of positions or {{range: [first, last]}}, got {short(value)}"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        for check in (check_metrics, check_slots, check_different, check_corrupted, check_answers):
            for problem in check(self):
                raise ValueError(problem)
        return self


# ---------------------------------------------------------------- rules across keys; each yields problems


def check_metrics(task: Task) -> Iterator[str]:
    for metric in task.metrics:
        if metric not in METRICS:
            yield "metrics: " + unknown("metric", metric, METRICS)
    chosen = {"defaults.metric": task.defaults.metric}
    chosen |= {f"defaults.models.{m}.metric": o.metric for m, o in task.defaults.models.items() if o.metric}
    for key, metric in chosen.items():
        if metric not in task.metrics:
            yield f"{key}: " + unknown("metric", metric, task.metrics)


def check_slots(task: Task) -> Iterator[str]:
    data, known = task.data, set[str]()
    for name, slot in data.slots.items():
        words = data.lists.get(slot) if isinstance(slot, str) else slot
        if words is None:
            yield f"data.slots.{name}: " + unknown("list", str(slot), data.lists)
            return
        yield from check_words(f"data.slots.{name}", words)
        known |= {f"{name}.{column}" for column in words.columns} if isinstance(words, Table) else {name}
    used = set[str]()
    for key, template in templates(task):
        try:
            named = fields(template)
        except ValueError as error:
            yield f"{key}: {error}"
            return
        for field in named:
            if field not in known:
                yield f"{key}: {template!r} uses a slot that has no list: " + unknown("slot", field, known)
            used.add(field.partition(".")[0])
    if task.answers and task.answers.compare:
        used.add(task.answers.compare.slot)
    for name in data.slots:
        if name not in used:
            yield f"data.slots.{name}: is used by no template; remove it or write {{{name}}}"
    for name in data.lists:
        if name not in data.slots.values():
            yield f"data.lists.{name}: is used by no slot; remove it"


def check_different(task: Task) -> Iterator[str]:
    words = forms(task.data)
    for group in task.data.different:
        for field in group:
            if field not in words:
                yield "data.different: " + unknown("slot", field, words)
                return
        if len(set(group)) != len(group) or len(group) < 2:
            yield f"data.different: {list(group)} should be two or more slots, each once"
        elif len(set().union(*(words[field] for field in group))) < len(group):
            yield f"data.different: {list(group)} can't all be different: there are fewer words than slots"


def forms(data: Source) -> dict[str, set[str]]:
    """The words that may fill each field."""
    found: dict[str, set[str]] = {}
    for name, slot in data.slots.items():
        words = data.lists.get(slot, ()) if isinstance(slot, str) else slot
        if isinstance(words, Table):
            found |= {f"{name}.{column}": {row[i] for row in words.rows} for i, column in enumerate(words.columns)}
        else:
            found[name] = set(words.texts() if isinstance(words, Range) else words)
    return found


def check_words(key: str, words: Any) -> Iterator[str]:
    if isinstance(words, Range):
        return
    rows = words.rows if isinstance(words, Table) else words
    if not rows:
        yield f"{key}: has no words; a slot needs at least one"
    seen = set()
    for row in rows:
        if row in seen:
            yield f"{key}: {short(row)} is there twice; every word should be there once"
        seen.add(row)


def templates(task: Task) -> Iterator[tuple[str, str]]:
    """Every (key, template) of the task in which slots may occur."""
    for i, prompt in enumerate(task.data.prompts):
        at = "data.template" if task.data.template is not None else f"data.templates.{i}"
        yield at, prompt.clean
        yield from ((f"{at}.corrupted", text) for text in [prompt.corrupted] if text is not None)
        yield from ((f"{at}.correct", text) for text in prompt.correct or ())
        yield from ((f"{at}.wrong", text) for text in prompt.wrong or ())
    yield from (("data.pieces", text) for text in task.data.pieces)
    if task.corrupt and task.corrupt.template is not None:
        yield "corrupt.template", task.corrupt.template
    if task.answers:
        yield from (("answers.correct", text) for text in task.answers.correct or ())
        yield from (("answers.wrong", text) for text in task.answers.wrong)


def check_corrupted(task: Task) -> Iterator[str]:
    data, corrupt = task.data, task.corrupt
    if data.generator:
        if data.slots or data.lists or data.pieces or data.different or corrupt:
            yield "data.generator: brings its own prompts; slots, lists, pieces, different and corrupt don't go with it"
        return
    for i, prompt in enumerate(data.prompts or data.rows or ()):
        if prompt.corrupted is None and corrupt is None:
            where = f"prompt {i + 1} of data" if len(data.prompts) != 1 else "the template"
            yield f"corrupt: is missing and {where} has no corrupted of its own"
    yield from check_enough(task)
    if corrupt is None:
        return
    if data.rows and not corrupt.template and not corrupt.shuffle:
        yield "corrupt: rows have no slots to fix or redraw; give each row a corrupted, or use shuffle: true"
        return
    clean = {field for prompt in data.prompts for field in fields(prompt.clean)}
    slots = {field.partition(".")[0] for field in clean}
    for key, named in (("fix", corrupt.fix or ()), ("redraw", corrupt.redraw or ())):
        for slot in named:
            if slot not in slots:
                yield f"corrupt.{key}: " + unknown("slot", slot, slots)
            if key == "fix" and slot not in clean:
                yield f"corrupt.fix: {slot!r} is a table, fix needs a slot of one form; use corrupt.template"


def check_enough(task: Task) -> Iterator[str]:
    data, redrawn = task.data, set((task.corrupt and task.corrupt.redraw) or ())
    for name, words in data.lists.items():
        drawn = [slot for slot, source in data.slots.items() if source == name]
        need = len(drawn) + len(set(drawn) & redrawn)
        if need > size(words):
            yield f"data.lists.{name}: {need} different words an example are needed, has {size(words)}"
    for slot in sorted(redrawn & data.slots.keys()):
        source = data.slots[slot]
        if not isinstance(source, str) and size(source) < 2:
            yield f"corrupt.redraw: slot {slot!r} has only one word, so it can't be drawn differently"


def size(words: Any) -> int:
    """The number of entries of a word list."""
    if isinstance(words, Range):
        return words.range[1] - words.range[0] + 1
    return len(words.rows if isinstance(words, Table) else words)


def check_answers(task: Task) -> Iterator[str]:
    data, answers = task.data, task.answers
    prompts = data.prompts or data.rows or ()
    correct = answers is not None or (bool(prompts) and all(p.correct for p in prompts))
    if not correct and any(p.correct for p in prompts):
        yield "answers: is missing, and only some of the prompts have a correct of their own"
    wrong = answers is not None and bool(answers.wrong or answers.compare)
    wrong = wrong or (bool(prompts) and all(p.wrong for p in prompts))
    for names, there, what in ((NEEDS_CORRECT, correct, "correct"), (NEEDS_WRONG, wrong, "wrong")):
        for metric in task.metrics:
            if metric in names and not there:
                yield f"metrics: {metric} needs {what} answers; state answers.{what} or leave {metric} out"
    texts = (answers and (answers.correct or answers.compare)) or any(p.correct for p in prompts)
    if texts and task.score_at != "last" and (task.score_at == "all" or len(task.score_at) != 1):
        yield "score_at: answers are for one position; write last, one position, or answers: {next: true}"
    if answers and answers.next and task.score_at == "last":
        yield "score_at: the last position has no next token; with answers.next, list positions or write all"
    if answers and answers.compare:
        yield from check_compare(task, answers.compare)


def check_compare(task: Task, compare: Compare) -> Iterator[str]:
    if compare.slot not in task.data.slots:
        yield "answers.compare.slot: " + unknown("slot", compare.slot, task.data.slots)
        return
    words = task.data.slots[compare.slot]
    words = task.data.lists[words] if isinstance(words, str) else words
    if not isinstance(words, Range) and not all(isinstance(w, str) and w.isdecimal() for w in words):
        yield f"answers.compare.slot: the words of {compare.slot!r} should be whole numbers"
