"""Draw examples from a task: pairs of prompts with answers, as text, from templates, rows or a generator, seeded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from acdc.errors import TaskError, short
from acdc.task.schema import Answers, Compare, Generator, Prompt, Task
from acdc.task.template import render
from acdc.task.words import NumberRange, Table

MAX_MISSES = 20_000  # draws in a row without a new prompt before the prompts count as used up
MAX_UNFIT = 1_000  # draws without any that fits data.pieces before the tokenizer counts as unfit

Unfit = Callable[[dict[str, str]], Iterator[str]]  # slot values -> why they can't be used


@dataclass(frozen=True)
class TextExample:
    """A pair of prompts with answers, as text."""

    clean: str
    corrupted: str
    correct: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    # slot -> the clean prompt with only this slot changed, to check that its number of tokens stays the same
    steps: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """The words of a slot. Slots with the same pool name draw different words within an example."""

    name: str
    fields: tuple[str, ...]  # slot, or slot.column for a table
    rows: Sequence[Sequence[str]]  # one word per field

    def form(self, index: int) -> dict[str, str]:
        """Return the words of a row: field -> word."""
        return dict(zip(self.fields, self.rows[index], strict=True))


def pools(task: Task) -> dict[str, Pool]:
    """Return the pool of every slot."""
    if task.data.generator:
        return generator_pools(task.data.generator)
    found = {}
    for slot, source in task.data.slots.items():
        words = task.data.words(slot)
        name = f"list {source}" if isinstance(source, str) else f"slot {slot}"
        if isinstance(words, Table):
            found[slot] = Pool(name, tuple(f"{slot}.{column}" for column in words.columns), words.rows)
        else:
            texts = words.texts() if isinstance(words, NumberRange) else words
            found[slot] = Pool(name, (slot,), [(text,) for text in texts])
    return found


def generator_pools(generator: Generator) -> dict[str, Pool]:
    """Return the pool of every slot of `generator_prompt`; all draw from the same words."""
    slots = [f"{half}{i}" for half in "wx" for i in range(generator.length)]
    rows = [(word,) for word in generator.words]
    return {slot: Pool("words", (slot,), rows) for slot in slots}


def generator_prompt(generator: Generator) -> Prompt:
    """Return repeated words as a template: clean `w0 w1 w0 w1`, corrupted `x0 x1 w0 w1`."""
    first, other = ("".join(f" {{{half}{i}}}" for i in range(generator.length)) for half in "wx")
    return Prompt(clean=first + first, corrupted=other + first)


def draw(task: Task, unfit: Unfit, rng: Random, examples: int, halves: int) -> list[TextExample]:
    """Draw distinct examples for all halves. The templates are used in turn, so that each is used equally often.

    Raises:
        TaskError: the task has too few prompts, or the tokenizer can't serve it.
    """
    if task.data.rows is not None:
        return draw_rows(task, rng, examples, halves)
    generator = task.data.generator
    prompts = (generator_prompt(generator),) if generator else task.data.prompts
    slots = pools(task)
    found = dict[str, TextExample]()
    misses = 0
    while len(found) < examples * halves:
        prompt = prompts[len(found) % len(prompts)]
        example, values = fill(task, prompt, slots, rng)
        wrong = next((reason for each in values for reason in unfit(each)), None)
        alike = any(len({values[0][field] for field in group}) < len(group) for group in task.data.different)
        if wrong is None and not alike and example.clean not in found:
            right, others = answers_of(task, prompt, values[0])
            found[example.clean] = replace(example, correct=right, wrong=others)
            misses = 0
            continue
        misses += 1
        if wrong and not found and misses >= MAX_UNFIT:
            raise TaskError(
                f"{task.name}: data.pieces: {wrong}; none of {misses} draws fits, so this tokenizer "
                "can't serve the task"
            )
        # A draw takes longer the longer the prompt and the more slots: give up earlier.
        slowness = 1 + (len(example.clean) + 100 * (len(slots) + len(task.data.pieces))) // 20_000
        if misses >= MAX_MISSES // slowness:
            raise TaskError(too_few_prompts(task, len(found), examples, halves))
    return list(found.values())


def too_few_prompts(task: Task, available: int, examples: int, halves: int) -> str:
    """Return the message for a task with too few prompts."""
    need = f"{examples * halves} ({halves} halves of {examples})" if halves > 1 else f"{examples}"
    most = available // halves
    noun = "example" if most == 1 else "examples"
    advice = f"use at most {most} {noun}" if most else "add some"
    return f"{task.name}: has only {available} different prompts, {need} are needed; {advice}"


def draw_rows(task: Task, rng: Random, examples: int, halves: int) -> list[TextExample]:
    """Sample examples from the task's own rows.

    Raises:
        TaskError: there are too few rows, or a prompt is there twice.
    """
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
        raise TaskError(too_few_prompts(task, len(rows), examples, halves))
    paired = (task.corrupt and task.corrupt.template) or ""
    pairs = [TextExample(row.clean, row.corrupted or paired, *answers_of(task, row, None)) for row in rows]
    return rng.sample(pairs, examples * halves)


def fill(task: Task, prompt: Prompt, slots: dict[str, Pool], rng: Random) -> tuple[TextExample, list[dict[str, str]]]:
    """Return a random example of a template, without answers, and the slot values of its clean and corrupted
    prompt."""
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
    example = TextExample(
        render(prompt.clean, values),
        render(template, after),
        steps={slot: render(prompt.clean, values | words) for slot, words in change.items()},
    )
    return example, [values, after]


def answers_of(task: Task, prompt: Prompt, values: dict[str, str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return correct and wrong answers as text. Without slot values, as for rows, the prompt's own are literal."""
    answers = task.answers or Answers.model_construct()
    if answers.compare and prompt.correct is None:
        return compared(answers.compare, (values or {})[answers.compare.slot])

    def texts(own: tuple[str, ...] | None, common: tuple[str, ...] | None) -> tuple[str, ...]:
        if own is not None and values is None:
            return own
        return tuple(render(text, values or {}) for text in (own if own is not None else common or ()))

    return texts(prompt.correct, answers.correct), texts(prompt.wrong, answers.wrong)


def compared(compare: Compare, value: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the numbers on the correct side of the slot's value, and the others."""
    sign = 1 if compare.relation == "greater" else -1
    numbers = [n for n in compare.among.texts() if compare.equal == "wrong" or int(n) != int(value)]
    right = tuple(n for n in numbers if sign * int(n) > sign * int(value))
    return right, tuple(n for n in numbers if n not in set(right))


def shuffled(task: Task, half: list[TextExample], rng: Random) -> list[TextExample]:
    """Return the examples, each with the clean prompt of another one as its corrupted prompt.

    Raises:
        TaskError: there are fewer than two examples.
    """
    if len(half) < 2:
        raise TaskError(f"{task.name}: corrupt.shuffle: needs at least 2 examples, got {len(half)}")
    order = list(range(len(half)))
    while any(i == j for i, j in enumerate(order)):
        rng.shuffle(order)
    return [replace(example, corrupted=half[j].clean) for example, j in zip(half, order, strict=True)]
