"""From a task to checked prompts and answers.

1. draw      clean prompt, corrupted prompt and answers as text (acdc/task/draw.py)
2. tokenize  with the model's tokenizer
3. check     every rule that the tokens must keep; a violation names the example, its tokens and the rule

Same task, tokenizer, number of examples and seed: same bytes. Discovery and held-out half share no prompt,
unless the task says that its few prompts serve as both. What a task file may say is in acdc/task/schema.py.

Axes: example, pos (position in the padded sequence), row (a scored place: one example at one position).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Protocol

import numpy as np

from acdc.errors import TaskError, short
from acdc.task.draw import Example, draw, shuffled
from acdc.task.schema import Task
from acdc.task.template import fields, render


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


class Prompts(Protocol):
    """Checked prompts as token ids: see `Split`."""

    @property
    def clean(self) -> np.ndarray:
        """Int[example pos], padded on the left."""

    @property
    def corrupted(self) -> np.ndarray:
        """Int[example pos]."""

    @property
    def pad(self) -> np.ndarray:
        """Int[example], positions of padding."""

    @property
    def rows(self) -> np.ndarray:
        """Int[row 2], scored (example, position) pairs."""

    @property
    def correct(self) -> np.ndarray:
        """Int[row k], filled up with −1."""

    @property
    def wrong(self) -> np.ndarray:
        """Int[row k], likewise."""


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


def make_data(task: Task, tokenizer: Tokenizer, examples: int, seed: int) -> Data:
    """Draw, tokenize and check `examples` examples for each half. A broken rule is a one-line `TaskError`."""
    if examples < 1:
        raise TaskError(f"{task.name}: examples: should be at least 1, got {examples}")
    rng = Random(f"{task.name} {task.version} {seed}")
    encoder = Encoder(task, tokenizer)
    same = task.data.splits == "same"
    drawn = draw(task, encoder.unfit, rng, examples, 1 if same else 2)
    halves = [drawn] if same else [drawn[:examples], drawn[examples:]]
    if task.corrupt and task.corrupt.shuffle:
        halves = [shuffled(task, half, rng) for half in halves]
    splits = [tokenize(task, encoder, half, offset) for half, offset in zip(halves, (0, examples), strict=False)]
    digest = hashlib.sha256()
    for split in (splits[0], splits[-1]):
        for array in split.arrays():
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return Data(splits[0], splits[-1], digest.hexdigest())


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
