"""Draw examples from a task: pairs of prompts with answers, as text, from templates, rows or a generator, seeded."""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from acdc.errors import TaskError, short
from acdc.task.schema import Answers, Generator, Prompt, Task
from acdc.task.template import fields, render
from acdc.task.words import NumberRange, Table

MAX_MISSES = 20_000  # draws in a row without a new prompt before the prompts count as used up
MAX_UNFIT = 1_000  # draws without any that fits data.pieces before the tokenizer counts as unfit

Texts = tuple[str, ...]
Values = dict[str, str]  # slot or slot.column -> word
Unfit = Callable[[Values], Iterator[str]]  # yields why the values can't be used


@dataclass(frozen=True)
class TextExample:
    """A pair of prompts with answers, as text."""

    clean: str
    corrupted: str
    correct: Texts = ()
    wrong: Texts = ()
    # slot -> the clean prompt with only this slot changed, to check that its number of tokens stays the same
    steps: dict[str, str] = field(default_factory=dict)
    # where the clean prompt's spans come from: its template with the words in its slots, or its row
    prompt: Prompt | None = None
    values: Values | None = None


@dataclass(frozen=True)
class Pool:
    """The words of a slot. Slots with the same pool name draw different words within an example."""

    name: str
    fields: Texts  # slot, or slot.column for a table
    rows: Sequence[Sequence[str]]  # one word per field


def pools(task: Task) -> dict[str, Pool]:
    """Return the pool of every slot."""
    if generator := task.data.generator:
        rows = [(word,) for word in generator.words]
        prompt = generator_prompt(generator)
        return {slot: Pool("words", (slot,), rows) for slot in fields(prompt.clean + (prompt.corrupted or ""))}
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


def generator_prompt(generator: Generator) -> Prompt:
    """Return repeated words as a template: clean `w0 w1 w0 w1`, corrupted `x0 x1 w0 w1`."""
    first, other = ("".join(f" {{{half}{i}}}" for i in range(generator.length)) for half in "wx")
    return Prompt(clean=first + first, corrupted=other + first)


def draw(task: Task, unfit: Unfit, rng: Random, examples: int, halves: int) -> list[TextExample]:
    """Draw distinct examples for all halves, from all templates equally often; raise TaskError if it can't."""
    if task.data.rows is not None:
        return draw_rows(task, task.data.rows, rng, examples, halves)
    generator = task.data.generator
    prompts = (generator_prompt(generator),) if generator else task.data.prompts
    slots = pools(task)
    found = dict[str, TextExample]()
    misses = 0
    while len(found) < examples * halves:
        prompt = prompts[len(found) % len(prompts)]
        example, clean, corrupted = fill(task, prompt, slots, rng)
        wrong = next((reason for values in (clean, corrupted) for reason in unfit(values)), None)
        alike = any(len({clean[field] for field in group}) < len(group) for group in task.data.different)
        if wrong is None and not alike and example.clean not in found:
            correct, others = answers_of(task, prompt, clean)
            origin = None if generator else prompt
            found[example.clean] = replace(example, correct=correct, wrong=others, prompt=origin, values=clean)
            misses = 0
            continue
        misses += 1
        if wrong and not found and misses >= MAX_UNFIT:
            unserved = f"none of {misses} draws fits, so this tokenizer can't serve the task"
            instead = f"; use the task {task.variant}" if task.variant else ""
            raise TaskError(f"{task.name}: data.pieces: {wrong}; {unserved}{instead}")
        # A draw takes longer the longer the prompt and the more slots: give up earlier.
        slowness = 1 + (len(example.clean) + 100 * (len(slots) + len(task.data.pieces))) // 20_000
        if misses >= MAX_MISSES // slowness:
            raise too_few_prompts(task, len(found), examples, halves)
    return list(found.values())


def too_few_prompts(task: Task, available: int, examples: int, halves: int) -> TaskError:
    """Return the error for a task with too few prompts."""
    need = f"{examples * halves} ({halves} halves of {examples})" if halves > 1 else f"{examples}"
    most = available // halves
    noun = "example" if most == 1 else "examples"
    advice = f"use at most {most} {noun}" if most else "add some"
    found = "1 distinct prompt" if available == 1 else f"{available} distinct prompts"
    return TaskError(f"{task.name}: has only {found}, {need} are needed; {advice}")


def draw_rows(task: Task, rows: Sequence[Prompt], rng: Random, examples: int, halves: int) -> list[TextExample]:
    """Sample examples from the task's own rows; raise TaskError if a prompt is there twice, or there are too few."""
    first: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if row.clean in first:
            repeats = f"row {number} {short(row.clean)} repeats row {first[row.clean]}"
            raise TaskError(f"{task.name}: data.rows: {repeats}; every prompt should be there once")
        first[row.clean] = number
    if len(rows) < examples * halves:
        raise too_few_prompts(task, len(rows), examples, halves)
    paired = (task.corrupt and task.corrupt.template) or ""
    pairs = [TextExample(row.clean, row.corrupted or paired, *answers_of(task, row, None), prompt=row) for row in rows]
    return rng.sample(pairs, examples * halves)


def fill(task: Task, prompt: Prompt, slots: dict[str, Pool], rng: Random) -> tuple[TextExample, Values, Values]:
    """Return a random example of a template, without answers, and the slot values of both its prompts."""
    taken: dict[str, set[int]] = {}

    def pick(slot: str) -> Values:
        pool = slots[slot]
        used = taken.setdefault(pool.name, set())
        while (index := rng.randrange(len(pool.rows))) in used:
            continue
        used.add(index)
        return dict(zip(pool.fields, pool.rows[index], strict=True))

    values = {key: word for slot in slots for key, word in pick(slot).items()}
    change: dict[str, Values] = {}
    corrupt = task.corrupt
    if corrupt and prompt.corrupted is None:
        change = {slot: pick(slot) for slot in corrupt.redraw or ()}
        change |= {slot: {slot: word} for slot, word in (corrupt.fix or {}).items()}
    after = values | {key: word for words in change.values() for key, word in words.items()}
    template = prompt.corrupted or (corrupt and corrupt.template) or prompt.clean
    steps = {slot: render(prompt.clean, values | words) for slot, words in change.items()}
    return TextExample(render(prompt.clean, values), render(template, after), steps=steps), values, after


def answers_of(task: Task, prompt: Prompt, values: Values | None) -> tuple[Texts, Texts]:
    """Return correct and wrong answers as text. Without slot values, as for rows, the prompt's own are literal."""
    answers = task.answers or Answers.model_construct()
    if (compare := answers.compare) and prompt.correct is None:
        value = int((values or {})[compare.slot])
        is_correct = operator.gt if compare.relation == "greater" else operator.lt
        numbers = [n for n in compare.among.texts() if compare.equal == "wrong" or int(n) != value]
        correct = tuple(n for n in numbers if is_correct(int(n), value))
        return correct, tuple(n for n in numbers if not is_correct(int(n), value))

    def texts(own: Texts | None, common: Texts | None) -> Texts:
        if own is not None and values is None:
            return own
        return tuple(render(text, values or {}) for text in (own if own is not None else common or ()))

    return texts(prompt.correct, answers.correct), texts(prompt.wrong, answers.wrong)


def shuffled(task: Task, half: list[TextExample], rng: Random) -> list[TextExample]:
    """Return the examples, each with the clean prompt of another one as its corrupted prompt."""
    if len(half) < 2:
        raise TaskError(f"{task.name}: corrupt.shuffle: needs at least 2 examples, got {len(half)}")
    order = list(range(len(half)))
    while any(i == j for i, j in enumerate(order)):
        rng.shuffle(order)
    return [replace(example, corrupted=half[j].clean) for example, j in zip(half, order, strict=True)]
