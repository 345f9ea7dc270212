"""From a task to checked prompts and answers.

1. draw      clean prompt, corrupted prompt and answers as text: from templates, rows or a generator, seeded
2. tokenize  with the model's tokenizer
3. check     every rule that the tokens must keep; a violation names the example, its tokens and the rule

Same task, tokenizer, number of examples and seed: same bytes. Discovery and held-out half share no prompt,
unless the task says that its few prompts serve as both. What a task file may say is in acdc/taskschema.py.

Axes: example, pos (position in the padded sequence), row (a scored place: one example at one position).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Protocol

import numpy as np

from acdc.errors import TaskError, short
from acdc.taskschema import Answers, Compare, Generator, Prompt, Range, Table, Task
from acdc.template import fields, render

MAX_MISSES = 20_000  # draws in a row that give nothing new before the prompts count as used up
MAX_UNFIT = 1_000  # draws from the start of which none has the tokens that data.pieces asks for


class Tokenizer(Protocol):
    """What a task needs of a tokenizer; the model package supplies it.

    One that also has `unk_id` (the id that stands for any unknown word) gets unknown words reported.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""

    @property
    def bos_id(self) -> int | None:
        """The token that a text begins with, None where there is none."""

    def encode(self, text: str) -> list[int]:
        """Token ids, without special tokens."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The tokens as readable texts."""


@dataclass(frozen=True)
class Split:
    """One half of the examples as tokens."""

    clean: np.ndarray  # Int[example pos] token ids, padded on the left
    corrupted: np.ndarray  # Int[example pos]
    pad: np.ndarray  # Int[example] number of padding positions
    rows: np.ndarray  # Int[row 2] scored (example, position), sorted; the logits at that position are scored
    correct: np.ndarray  # Int[row n_correct] token ids, filled up with -1; n is 0 if the task has no answers
    wrong: np.ndarray  # Int[row n_wrong] token ids, filled up with -1; n may be 0
    texts: tuple[tuple[str, str], ...]  # clean and corrupted prompt of each example

    def arrays(self) -> Iterator[np.ndarray]:
        """All arrays, in the order of the hash."""
        yield from (self.clean, self.corrupted, self.pad, self.rows, self.correct, self.wrong)


@dataclass(frozen=True)
class Data:
    """What a run needs of a task."""

    discovery: Split
    held_out: Split
    hash: str  # sha256 of the arrays


@dataclass(frozen=True)
class Example:
    """One pair of prompts as text."""

    clean: str
    corrupted: str
    correct: tuple[str, ...]
    wrong: tuple[str, ...]
    # slot -> the clean prompt with only this slot changed; a changed length would shift what follows
    steps: dict[str, str] = field(default_factory=dict)


def make_data(task: Task, tokenizer: Tokenizer, examples: int, seed: int) -> Data:
    """Draw, tokenize and check `examples` examples for each half. A broken rule is a one-line `TaskError`."""
    if examples < 1:
        raise TaskError(f"{task.name}: examples: should be at least 1, got {examples}")
    rng = Random(f"{task.name} {task.version} {seed}")
    encoder = Encoder(task, tokenizer)
    same = task.data.splits == "same"
    drawn = draw(task, encoder, rng, examples, 1 if same else 2)
    halves = [drawn] if same else [drawn[:examples], drawn[examples:]]
    if task.corrupt and task.corrupt.shuffle:
        halves = [shuffled(task, half, rng) for half in halves]
    splits = [tokenize(task, encoder, half, offset) for half, offset in zip(halves, (0, examples), strict=False)]
    digest = hashlib.sha256()
    for split in (splits[0], splits[-1]):
        for array in split.arrays():
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return Data(splits[0], splits[-1], digest.hexdigest())


# ---------------------------------------------------------------- 1. draw


@dataclass(frozen=True)
class Pool:
    """The words of a slot. Slots with the same pool name draw different words within an example."""

    name: str
    fields: tuple[str, ...]  # slot, or slot.column for a table
    rows: Sequence[Sequence[str]]  # a word for each field

    def form(self, index: int) -> dict[str, str]:
        """What drawing this row fills in: field -> word."""
        return dict(zip(self.fields, self.rows[index], strict=True))


def pools(task: Task) -> dict[str, Pool]:
    """The pool of every slot."""
    if task.data.generator:
        return generator_pools(task.data.generator)
    found = {}
    for slot, source in task.data.slots.items():
        words = task.data.words(slot)
        name = f"list {source}" if isinstance(source, str) else f"slot {slot}"
        if isinstance(words, Table):
            found[slot] = Pool(name, tuple(f"{slot}.{column}" for column in words.columns), words.rows)
        else:
            texts = words.texts() if isinstance(words, Range) else words
            found[slot] = Pool(name, (slot,), [(text,) for text in texts])
    return found


def generator_pools(generator: Generator) -> dict[str, Pool]:
    """The pool of every slot of `generator_prompt`: all draw from the same words."""
    slots = [f"{half}{i}" for half in "wx" for i in range(generator.length)]
    return {slot: Pool("words", (slot,), [(word,) for word in generator.words]) for slot in slots}


def generator_prompt(generator: Generator) -> Prompt:
    """Repeated words as a template: clean `w0 w1 w0 w1`, corrupted `x0 x1 w0 w1`."""
    first, other = ("".join(f" {{{half}{i}}}" for i in range(generator.length)) for half in "wx")
    return Prompt(clean=first + first, corrupted=other + first)


def draw(task: Task, encoder: Encoder, rng: Random, examples: int, halves: int) -> list[Example]:
    """Distinct examples for all halves; the templates take turns, so that each serves equally often."""
    if task.data.rows is not None:
        return draw_rows(task, rng, examples, halves)
    generator = task.data.generator
    prompts = (generator_prompt(generator),) if generator else task.data.prompts
    slots, found, misses = pools(task), dict[str, Example](), 0
    while len(found) < examples * halves:
        example, values = fill(task, prompts[len(found) % len(prompts)], slots, rng)
        unfit = next((reason for each in values for reason in encoder.unfit(each)), None)
        alike = any(len({values[0][field] for field in group}) < len(group) for group in task.data.different)
        if unfit is None and not alike and example.clean not in found:
            found[example.clean], misses = example, 0
            continue
        misses += 1
        if unfit and not found and misses >= MAX_UNFIT:
            raise TaskError(
                f"{task.name}: data.pieces: {unfit}; none of {misses} draws fits, so this tokenizer "
                "can't serve the task"
            )
        if misses >= MAX_MISSES:
            raise TaskError(few(task, len(found), examples, halves))
    return list(found.values())


def few(task: Task, available: int, examples: int, halves: int) -> str:
    """The message where a task has too few prompts."""
    need = f"{examples * halves} ({halves} halves of {examples})" if halves > 1 else f"{examples}"
    most = available // halves
    cure = f"use at most {most} example{'s' * (most != 1)}" if most else "add some"
    return f"{task.name}: has only {available} different prompts, {need} are needed; {cure}"


def draw_rows(task: Task, rng: Random, examples: int, halves: int) -> list[Example]:
    """The task's own rows, sampled."""
    rows = task.data.rows or ()
    first: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if row.clean in first:
            raise TaskError(
                f"{task.name}: data.rows: row {number} {short(row.clean)} repeats row {first[row.clean]}; "
                "every prompt should be there once"
            )
        first[row.clean] = number
    if len(rows) < examples * halves:
        raise TaskError(few(task, len(rows), examples, halves))
    paired = (task.corrupt and task.corrupt.template) or ""
    pairs = [Example(row.clean, row.corrupted or paired, *answers_of(task, row, None)) for row in rows]
    return rng.sample(pairs, examples * halves)


def fill(task: Task, prompt: Prompt, slots: dict[str, Pool], rng: Random) -> tuple[Example, list[dict[str, str]]]:
    """One random example of a template, and the slot values of its clean and its corrupted prompt."""
    taken: dict[str, set[int]] = {}

    def pick(slot: str) -> dict[str, str]:
        pool = slots[slot]
        used = taken.setdefault(pool.name, set())
        index = rng.randrange(len(pool.rows))
        while index in used:
            index = rng.randrange(len(pool.rows))
        used.add(index)
        return pool.form(index)

    values = {key: word for slot in slots for key, word in pick(slot).items()}
    change: dict[str, dict[str, str]] = {}
    corrupt = task.corrupt
    if corrupt and prompt.corrupted is None:
        change = {slot: pick(slot) for slot in corrupt.redraw or ()}
        change |= {slot: {slot: word} for slot, word in (corrupt.fix or {}).items()}
    after = values | {key: word for words in change.values() for key, word in words.items()}
    template = prompt.corrupted or (corrupt and corrupt.template) or prompt.clean
    example = Example(
        render(prompt.clean, values),
        render(template, after),
        *answers_of(task, prompt, values),
        steps={slot: render(prompt.clean, values | words) for slot, words in change.items()},
    )
    return example, [values, after]


def answers_of(task: Task, prompt: Prompt, values: dict[str, str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Correct and wrong answers as text; without slot values (rows) the prompt's own are literal."""
    answers = task.answers or Answers.model_construct()
    if answers.compare and prompt.correct is None:
        return compared(answers.compare, (values or {})[answers.compare.slot])

    def texts(own: tuple[str, ...] | None, common: tuple[str, ...] | None) -> tuple[str, ...]:
        if own is not None and values is None:
            return own
        return tuple(render(text, values or {}) for text in (own if own is not None else common or ()))

    return texts(prompt.correct, answers.correct), texts(prompt.wrong, answers.wrong)


def compared(compare: Compare, value: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The numbers on the right side of the slot's value, and the others."""
    sign = 1 if compare.relation == "greater" else -1
    numbers = [n for n in compare.among.texts() if compare.equal == "wrong" or int(n) != int(value)]
    right = tuple(n for n in numbers if sign * int(n) > sign * int(value))
    return right, tuple(n for n in numbers if n not in set(right))


def shuffled(task: Task, half: list[Example], rng: Random) -> list[Example]:
    """Every example gets another one's clean prompt as its corrupted prompt."""
    if len(half) < 2:
        raise TaskError(f"{task.name}: corrupt.shuffle: needs at least 2 examples, got {len(half)}")
    order = list(range(len(half)))
    while any(i == j for i, j in enumerate(order)):
        rng.shuffle(order)
    return [replace(example, corrupted=half[j].clean) for example, j in zip(half, order, strict=True)]


# ---------------------------------------------------------------- 2. tokenize


class Encoder:
    """The tokenizer with a memory and the task's rules about single texts."""

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        self.task, self.tokenizer = task, tokenizer
        self.encode: Callable[[str], tuple[int, ...]] = lru_cache(maxsize=100_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        try:
            return tuple(int(i) for i in self.tokenizer.encode(text))
        except Exception as error:  # what tokenizers raise for a word they don't know
            raise TaskError(
                f"{self.task.name}: tokenizer {self.tokenizer.name} can't encode {short(text)}: "
                f"{(str(error) or type(error).__name__).splitlines()[0]}; use a model that knows these words"
            ) from error

    def show(self, ids: Sequence[int]) -> str:
        """The tokens, readable: 'The'|' war'."""
        return "|".join(repr(piece) for piece in self.tokenizer.pieces(list(ids))) or "nothing"

    def unfit(self, values: dict[str, str]) -> Iterator[str]:
        """Why these slot values break one of `data.pieces`: the text must split exactly at its | marks."""
        for rule in self.task.data.pieces:
            if not {name for name in fields(rule)} <= values.keys():
                continue
            parts = render(rule, values).split("|")
            text, tokens = "".join(parts), [self.encode(part) for part in parts]
            if any(len(ids) != 1 for ids in tokens) or self.encode(text) != sum(tokens, ()):
                want = "|".join(map(repr, parts))
                yield (
                    f"{text!r} should be the tokens {want}, tokenizer {self.tokenizer.name} makes "
                    f"{self.show(self.encode(text))}"
                )


def tokenize(task: Task, encoder: Encoder, half: list[Example], offset: int) -> Split:
    """Token arrays of one half, checked. `offset` is the number of its first example in messages."""
    bos = [encoder.tokenizer.bos_id] if task.data.bos and encoder.tokenizer.bos_id is not None else []
    pairs, rows, answers = [], [], []
    for i, example in enumerate(half):
        check = Check(task, encoder, f"{task.name}: example {offset + i + 1} {short(example.clean)}")
        clean, corrupted = check.pair(example)
        pairs.append((bos + clean, bos + corrupted))
        for position in check.positions(clean):
            rows.append((i, len(bos) + position))
            answers.append(check.answers(example, clean, position))
    length = check_lengths(task, encoder, half, [clean for clean, _ in pairs], offset)
    pad = np.array([length - len(clean) for clean, _ in pairs], dtype=np.int64)
    return Split(
        clean=left_padded([clean for clean, _ in pairs], length, encoder.tokenizer.bos_id or 0),
        corrupted=left_padded([corrupted for _, corrupted in pairs], length, encoder.tokenizer.bos_id or 0),
        pad=pad,
        rows=np.array([(i, position + pad[i]) for i, position in rows], dtype=np.int64).reshape(-1, 2),
        correct=filled([correct for correct, _ in answers]),
        wrong=filled([wrong for _, wrong in answers]),
        texts=tuple((example.clean, example.corrupted) for example in half),
    )


def left_padded(prompts: list[list[int]], length: int, filler: int) -> np.ndarray:
    """Int[example pos]. The filler is never read: `Split.pad` says where the prompt begins."""
    return np.array([[filler] * (length - len(ids)) + ids for ids in prompts], dtype=np.int64)


def filled(answers: list[list[int]]) -> np.ndarray:
    """Int[row n], shorter rows filled up with -1."""
    width = max(map(len, answers), default=0)
    array = np.full((len(answers), width), -1, dtype=np.int64)
    for row, ids in zip(array, answers, strict=True):
        row[: len(ids)] = ids
    return array


# ---------------------------------------------------------------- 3. check


def check_lengths(task: Task, encoder: Encoder, half: list[Example], cleans: list[list[int]], offset: int) -> int:
    """The common length; unequal ones are an error unless the task allows padding."""
    lengths = [len(clean) for clean in cleans]
    if task.data.padding == "none" and len(set(lengths)) > 1:
        usual = max(set(lengths), key=lambda n: (lengths.count(n), n))
        odd = next(i for i, n in enumerate(lengths) if n != usual)
        raise TaskError(
            f"{task.name}: example {offset + odd + 1} {short(half[odd].clean)}: has {lengths[odd]} tokens, "
            f"most have {usual}; use words of equal token length or allow data.padding: left. "
            f"Tokens: {encoder.show(cleans[odd])}"
        )
    return max(lengths)


@dataclass(frozen=True)
class Check:
    """The rules that one example must keep; every message begins with `where`."""

    task: Task
    encoder: Encoder
    where: str

    def fail(self, text: str) -> TaskError:
        """The error of this example."""
        return TaskError(f"{self.where}: {text}")

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, each in the vocabulary."""
        ids, tokenizer = list(self.encoder.encode(text)), self.encoder.tokenizer
        for i in ids:
            if not 0 <= i < tokenizer.vocab_size:
                raise self.fail(
                    f"token id {i} of {short(text)} should be below the vocabulary size "
                    f"{tokenizer.vocab_size}; is {tokenizer.name} the model's own tokenizer?"
                )
        if getattr(tokenizer, "unk_id", None) in ids:
            raise self.fail(
                f"{short(text)} has words that tokenizer {tokenizer.name} doesn't know: "
                f"{self.encoder.show(ids)}; use words of its vocabulary or another model"
            )
        return ids

    def pair(self, example: Example) -> tuple[list[int], list[int]]:
        """Clean and corrupted tokens: not empty, not the same, of one length, and aligned."""
        clean, corrupted = self.ids(example.clean), self.ids(example.corrupted)
        show = self.encoder.show
        if not clean:
            raise self.fail("the prompt has no tokens; it should have at least one")
        if clean == corrupted:
            raise self.fail(f"clean and corrupted prompt should differ, both are {show(clean)}")
        for slot, text in example.steps.items():
            if len(self.ids(text)) != len(clean):
                raise self.fail(
                    f"slot {slot!r} should keep its number of tokens when it is corrupted: "
                    f"clean {show(clean)}, with the slot changed {show(self.ids(text))}"
                )
        if len(clean) != len(corrupted):
            raise self.fail(
                f"clean and corrupted prompt should have equally many tokens, have {len(clean)} and "
                f"{len(corrupted)}: {show(clean)} and {show(corrupted)}"
            )
        return clean, corrupted

    def positions(self, clean: list[int]) -> list[int]:
        """Scored positions, counted in the prompt without BOS and padding; negative ones from its end."""
        length = len(clean)
        # with answers.next the token after a scored position must be there
        last = length - 1 if self.task.answers and self.task.answers.next else length
        if self.task.score_at == "last":
            return [length - 1]
        if self.task.score_at == "all":
            return list(range(last))
        for position in self.task.score_at:
            if not -length <= position < last or (position < 0 and position + length >= last):
                raise self.fail(
                    f"score_at: position {position} should be from {-length} to {last - 1}; "
                    f"the prompt has {length} tokens, "
                    f"{self.encoder.show(clean)}"
                )
        return sorted({position % length for position in self.task.score_at})

    def answers(self, example: Example, clean: list[int], position: int) -> tuple[list[int], list[int]]:
        """Token ids of the correct and the wrong answers: single tokens, none of them both."""
        if self.task.answers and self.task.answers.next:
            return [clean[position + 1]], []
        correct, wrong = ([self.answer(text) for text in texts] for texts in (example.correct, example.wrong))
        if not correct and (self.task.answers or wrong):
            raise self.fail("has no correct answer; it should have at least one")
        for i in set(correct) & set(wrong):
            raise self.fail(f"answer {self.encoder.show([i])} is both correct and wrong")
        return list(dict.fromkeys(correct)), list(dict.fromkeys(wrong))

    def answer(self, text: str) -> int:
        """The token id of an answer, which must be one."""
        ids = self.ids(text)
        if len(ids) != 1:
            raise self.fail(
                f"answer {text!r} should be a single token, tokenizer {self.encoder.tokenizer.name} makes "
                f"{self.encoder.show(ids)}"
            )
        return ids[0]
