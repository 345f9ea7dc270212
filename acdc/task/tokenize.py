"""Turn a task into checked token ids.

Prompts are drawn as text (acdc/task/draw.py), tokenized, and checked: an error names the example, its tokens and the
rule. The same task, tokenizer, number of examples and seed give the same bytes. The discovery and the held-out half
share no prompt, unless the task has `splits: same`.

Axes: example, pos (position in the padded sequence), row (a scored place: one example at one position).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Protocol

import numpy as np

from acdc.errors import TaskError, is_panic, short
from acdc.task.draw import TextExample, Texts, draw, shuffled
from acdc.task.schema import Task
from acdc.task.spans import BOS, END, STATE, name_tokens, states_spans
from acdc.task.template import fields, render

AS_MANY = (
    "replace words by others of as many tokens, as ' Mary' by ' John'; in a template, "
    'data.pieces: [" {slot}"] draws only words of one token'
)
ANCHOR = "\n"  # text before a continuation; no tokenizer merges it with a word


class Tokenizer(Protocol):
    """What a task needs of a tokenizer. If it also has `unk_id`, the id of unknown words, those are reported."""

    name: str  # in messages
    vocab_size: int  # every token id is below this
    bos_id: int | None  # the token that begins a text; None if there is none

    def encode(self, text: str) -> list[int]:
        """Return token ids, without special tokens."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return where each of these tokens begins and ends in the text, in characters."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens as readable texts."""


@dataclass(frozen=True)
class Split:
    """One half of the examples as tokens."""

    clean: np.ndarray  # Int[example pos] token ids, padded on the left
    corrupted: np.ndarray  # Int[example pos]
    pad: np.ndarray  # Int[example] number of padding positions
    rows: np.ndarray  # Int[row 2] scored (example, position), sorted; the logits at that position are scored
    correct: np.ndarray  # Int[row n_correct] token ids, padded with -1; n_correct is 0 if the task has no answers
    wrong: np.ndarray  # Int[row n_wrong] token ids, padded with -1; n_wrong may be 0
    texts: tuple[tuple[str, str], ...] = ()  # clean and corrupted prompt of each example
    spans: np.ndarray | None = None  # Int[example pos] index in `Data.spans`, -1 for padding; not hashed

    def arrays(self) -> Iterator[np.ndarray]:
        """Yield all arrays, in the order of the hash."""
        yield from (self.clean, self.corrupted, self.pad, self.rows, self.correct, self.wrong)

    def take(self, examples: Sequence[int]) -> Split:
        """Return some of the examples, in this order; an example may be taken more than once."""
        chosen = list(examples)
        of_each = [np.flatnonzero(self.rows[:, 0] == example) for example in chosen]
        rows = np.concatenate(of_each)
        example = np.repeat(np.arange(len(chosen)), [len(of_one) for of_one in of_each])
        return Split(
            clean=self.clean[chosen],
            corrupted=self.corrupted[chosen],
            pad=self.pad[chosen],
            rows=np.stack([example, self.rows[rows, 1]], 1),
            correct=self.correct[rows],
            wrong=self.wrong[rows],
            texts=tuple(self.texts[i] for i in chosen) if self.texts else (),
            spans=None if self.spans is None else self.spans[chosen],
        )


@dataclass(frozen=True)
class Data:
    """The tokenized prompts of a run."""

    discovery: Split
    held_out: Split
    hash: str  # sha256 of the arrays
    spans: tuple[str, ...] = ()  # names, in the order of the prompts, END last; none unless they were asked for

    @classmethod
    def of(cls, discovery: Split, held_out: Split, spans: tuple[str, ...] = ()) -> Data:
        """Return the data of two halves, hashed; the hash is the same with spans as without."""
        digest = hashlib.sha256()
        for split in (discovery, held_out):
            for array in split.arrays():
                digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        return cls(discovery, held_out, digest.hexdigest(), spans)


def make_data(task: Task, tokenizer: Tokenizer, examples: int, seed: int, positions: bool = False) -> Data:
    """Draw, tokenize and check `examples` examples for each half; raise TaskError if one breaks a rule.

    With `positions` both halves have spans, with names in common; the prompts are the same.
    """
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
    names: Texts = ()
    if positions:
        splits, names = with_spans(encoder, halves, splits)
    return Data.of(splits[0], splits[-1], names)


class Encoder:
    """A caching tokenizer wrapper, with the task's rules about texts and examples."""

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.bos: list[int] = []  # the tokens before every prompt
        if task.data.bos and tokenizer.bos_id is None:
            copy = f"{{include: {task.name}, data: {{bos: false}}}}"
            right = f"write bos: false; for a shipped task, in a copy mine.yaml: {copy}"
            raise TaskError(f"{task.name}: data.bos: is true, but tokenizer {tokenizer.name} has no BOS token; {right}")
        if task.data.bos and tokenizer.bos_id is not None:
            self.bos = [tokenizer.bos_id]
        cached = lru_cache(maxsize=100_000)
        self.encode: Callable[[str], tuple[int, ...]] = cached(self._encode)
        self.continuation: Callable[[str], tuple[int, ...]] = cached(self._continuation)

    def _encode(self, text: str) -> tuple[int, ...]:
        try:
            return tuple(int(i) for i in self.tokenizer.encode(text))
        except BaseException as error:  # unknown words raise various errors, and some patterns panics
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            what = f"{self.task.name}: tokenizer {self.tokenizer.name} can't encode {short(text)}"
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise TaskError(f"{what}: {why}; use a model that knows these words") from error

    def _continuation(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that follows other text.

        Tokenizers such as Llama 2's put a space in front of all that they encode: " Paul" alone is ▁, ▁Paul.
        """
        try:
            anchor = self.encode(ANCHOR)
            ids = self.encode(ANCHOR + text)
        except TaskError:  # there is no such token
            return self.encode(text)
        n = len(anchor)
        return ids[n:] if len(ids) > n and ids[:n] == anchor else self.encode(text)

    def show(self, ids: Sequence[int]) -> str:
        """Return tokens for a message: 'The'|' war'."""
        return "|".join(repr(piece) for piece in self.tokenizer.pieces(list(ids))) or "nothing"

    def unfit(self, values: dict[str, str]) -> Iterator[str]:
        """Yield why slot values break `data.pieces`: the text must split into tokens exactly at the | marks."""
        for rule in self.task.data.pieces:
            if not set(fields(rule)) <= values.keys():
                continue
            parts = render(rule, values).split("|")
            text = "".join(parts)
            encode = self.encode if self.task.begins(rule.replace("|", "")) else self.continuation
            tokens = [encode(parts[0]), *map(self.continuation, parts[1:])]
            whole = encode(text)
            if any(len(ids) != 1 for ids in tokens) or whole != sum(tokens, ()):
                want = "|".join(map(repr, parts))
                yield f"{text!r} should be the tokens {want}, tokenizer {self.tokenizer.name} makes {self.show(whole)}"

    # --- rules for one example; a broken one is a ValueError

    def ids(self, text: str, *, follows: bool = False) -> list[int]:
        """Return the tokens of a text, each in the vocabulary. `follows`: other text precedes it."""
        ids = list(self.continuation(text) if follows else self.encode(text))
        tokenizer = self.tokenizer
        for i in ids:
            if not 0 <= i < tokenizer.vocab_size:
                rule = f"should be below the vocabulary size {tokenizer.vocab_size}"
                raise ValueError(f"token id {i} of {short(text)} {rule}; is {tokenizer.name} the model's tokenizer?")
        if getattr(tokenizer, "unk_id", None) in ids:
            unknown = f"has words that tokenizer {tokenizer.name} doesn't know: {self.show(ids)}"
            raise ValueError(f"{short(text)} {unknown}; use words of its vocabulary or another model")
        return ids

    def pair(self, example: TextExample) -> tuple[list[int], list[int]]:
        """Return clean and corrupted tokens: not empty, different, of equal length, and aligned."""
        clean = self.ids(example.clean)
        corrupted = self.ids(example.corrupted)
        show = self.show
        if not clean:
            raise ValueError("the prompt has no tokens; it should have at least one")
        if clean == corrupted:
            raise ValueError(f"clean and corrupted prompt should differ, both are {show(clean)}")
        for slot, text in example.steps.items():
            changed = self.ids(text)
            if len(changed) != len(clean):
                rule = f"slot {slot!r} should keep its number of tokens when it is corrupted"
                both = f"clean {show(clean)}, with the slot changed {show(changed)}"
                raise ValueError(f"{rule}: {both}; {AS_MANY}")
        if len(clean) != len(corrupted):
            counts = f"have {len(clean)} and {len(corrupted)}: {show(clean)} and {show(corrupted)}"
            raise ValueError(f"clean and corrupted prompt should have equally many tokens, {counts}; {AS_MANY}")
        return clean, corrupted

    def positions(self, clean: list[int]) -> list[int]:
        """Return the scored positions, counted from 0 without BOS and padding; the task may count from the end."""
        length = len(clean)
        # With answers.next, a token must follow each scored position.
        last = length - 1 if self.task.answers and self.task.answers.next else length
        if self.task.score_at == "last":
            return [length - 1]
        if self.task.score_at == "all":
            return list(range(last))
        for position in self.task.score_at:
            if not -length <= position < last or (position < 0 and position + length >= last):
                has = f"the prompt has {length} tokens, {self.show(clean)}"
                raise ValueError(f"score_at: position {position} should be from {-length} to {last - 1}; {has}")
        return sorted({position % length for position in self.task.score_at})

    def answers(self, example: TextExample, clean: list[int], position: int) -> tuple[list[int], list[int]]:
        """Return token ids of the correct and the wrong answers: single tokens, none of them both."""
        if self.task.answers and self.task.answers.next:
            return [clean[position + 1]], []
        correct = list(dict.fromkeys(map(self.answer, example.correct)))
        wrong = list(dict.fromkeys(map(self.answer, example.wrong)))
        if not correct and (self.task.answers or wrong):
            raise ValueError("has no correct answer; it should have at least one")
        for i in set(correct) & set(wrong):
            raise ValueError(f"answer {self.show([i])} is both correct and wrong")
        return correct, wrong

    def answer(self, text: str) -> int:
        """Return the token id of an answer, which must be a single token."""
        ids = self.ids(text, follows=True)
        if len(ids) != 1:
            made = f"tokenizer {self.tokenizer.name} makes {self.show(ids)}"
            raise ValueError(f"answer {text!r} should be a single token, {made}")
        return ids[0]


def tokenize(task: Task, encoder: Encoder, half: list[TextExample], offset: int) -> Split:
    """Tokenize and check one half. `offset` is added to the numbers of its examples in messages. Unequal lengths are an
    error unless the task allows padding."""
    cleans = []
    corrupteds = []
    rows = []
    answers = []
    for i, example in enumerate(half):
        try:
            clean, corrupted = encoder.pair(example)
            for position in encoder.positions(clean):
                rows.append((i, len(encoder.bos) + position))
                answers.append(encoder.answers(example, clean, position))
        except ValueError as error:
            raise TaskError(f"{task.name}: example {offset + i + 1} {short(example.clean)}: {error}") from None
        cleans.append(encoder.bos + clean)
        corrupteds.append(encoder.bos + corrupted)
    lengths = [len(clean) for clean in cleans]
    if task.data.padding == "none" and len(set(lengths)) > 1:
        usual = max(set(lengths), key=lambda n: (lengths.count(n), n))
        odd = next(i for i, n in enumerate(lengths) if n != usual)
        where = f"{task.name}: example {offset + odd + 1} {short(half[odd].clean)}"
        tokens = f"has {lengths[odd]} tokens, most have {usual}: {encoder.show(cleans[odd])}"
        raise TaskError(f"{where}: {tokens}; use words of equal token length or allow data.padding: left")
    length = max(lengths)
    pad = np.array([length - len(clean) for clean in cleans], dtype=np.int64)
    return Split(
        clean=left_padded(cleans, length, encoder.tokenizer.bos_id or 0),
        corrupted=left_padded(corrupteds, length, encoder.tokenizer.bos_id or 0),
        pad=pad,
        rows=np.array([(i, position + pad[i]) for i, position in rows], dtype=np.int64).reshape(-1, 2),
        correct=filled([correct for correct, _ in answers]),
        wrong=filled([wrong for _, wrong in answers]),
        texts=tuple((example.clean, example.corrupted) for example in half),
    )


def with_spans(encoder: Encoder, halves: list[list[TextExample]], splits: list[Split]) -> tuple[list[Split], Texts]:
    """Return the halves with their spans, and the names of the spans; raise TaskError if they can't be had."""
    task = encoder.task
    n_bos = len(encoder.bos)
    lengths = sorted({split.clean.shape[1] - pad - n_bos for split in splits for pad in split.pad.tolist()})
    if len(lengths) > 1 and not states_spans(task):
        has = f"{task.name}: --positions needs spans, as prompts have {lengths[0]} to {lengths[-1]} tokens"
        raise TaskError(f"{has}; {STATE}")
    found: list[list[list[str]]] = []
    examples = 0
    for half, split in zip(halves, splits, strict=True):
        last = dict(split.rows.tolist())  # rows are sorted: the last scored position of each example
        found.append([])
        for i, example in enumerate(half):
            begin = int(split.pad[i]) + n_bos
            ids = split.clean[i, begin:].tolist()
            examples += 1
            try:
                offsets = encoder.tokenizer.offsets(example.clean)
                names = name_tokens(task, example, ids, offsets, last[i] - begin, encoder.show)
            except ValueError as error:
                where = f"example {examples} {short(example.clean)}"
                if task.data.rows and example.prompt:
                    where = f"{task.data.row(task.data.rows.index(example.prompt))} {short(example.clean)}"
                raise TaskError(f"{task.name}: {where}: {error}") from None
            found[-1].append([""] * int(split.pad[i]) + [BOS] * n_bos + names)
    present = dict.fromkeys(name for half in found for names in half for name in names)
    names = [name for name in present if name not in ("", END)] + [END]
    index = {name: i for i, name in enumerate(names)} | {"": -1}
    spans = [np.array([[index[name] for name in row] for row in half], dtype=np.int64) for half in found]
    return [replace(split, spans=own) for split, own in zip(splits, spans, strict=True)], tuple(names)


def left_padded(prompts: list[list[int]], length: int, filler: int) -> np.ndarray:
    """Return Int[example pos]. The filler is never used: `Split.pad` says where the prompt begins."""
    return np.array([[filler] * (length - len(ids)) + ids for ids in prompts], dtype=np.int64)


def filled(answers: list[list[int]]) -> np.ndarray:
    """Return Int[row n], shorter rows padded with -1."""
    width = max(map(len, answers), default=0)
    array = np.full((len(answers), width), -1, dtype=np.int64)
    for row, ids in zip(array, answers, strict=True):
        row[: len(ids)] = ids
    return array
