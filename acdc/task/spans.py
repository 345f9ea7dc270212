"""Spans: the named parts of prompts, which tell a circuit's edges apart by where they matter.

The slots of a template are spans, and so are the texts between them; or the task names its parts. Rows state theirs.
Every token belongs to the span in which its first character lies that is not white space. The last scored token is a
span of its own, `END`, and so is the BOS token, `BOS`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from acdc.task.draw import TextExample
from acdc.task.schema import Prompt, Task, span_name
from acdc.task.template import parse, render

BOS = "BOS"
END = "END"
STATE = 'state "spans": {"S1": [4, 5], …} in every row, each [start, end) in tokens'

Offsets = Sequence[tuple[int, int]]
Show = Callable[[Sequence[int]], str]
# A part of a prompt: its span, None between spans, and its characters or token ids.
Part = tuple[str | None, str | Sequence[int]]


def states_spans(task: Task) -> bool:
    """Return whether the prompts have spans: those of templates always have, a generator's never."""
    return task.data.generator is None and (task.data.rows is None or task.data.rows[0].spans is not None)


def name_tokens(
    task: Task, example: TextExample, ids: Sequence[int], offsets: Offsets, last: int, show: Show
) -> list[str]:
    """Return the span of every token of a clean prompt; of a task without spans, the positions from 0.

    Args:
        ids: the prompt's tokens, without BOS
        offsets: where each token begins and ends in the prompt, in characters
        last: the last scored position, counted in `ids`
        show: tokens as readable text, for messages
    Raises:
        ValueError: a span has no token, ends beyond the prompt, or has a name that can't be
    """
    if not states_spans(task):
        return [str(i) if i != last else END for i in range(len(ids))]
    in_tokens = task.data.rows is not None and task.data.span_units == "tokens"
    spans = _spans(_parts(example, ids if in_tokens else example.clean))
    starts = [start for _, start in spans]
    at = range(len(ids)) if in_tokens else [_first_character(example.clean, *offset) for offset in offsets]
    found = [spans[bisect_right(starts, place) - 1][0] for place in at]
    present = set(found)
    if absent := next((span for span in spans if span[0] not in present), None):
        name, start = absent
        place = _first_character(example.clean, start, len(example.clean))
        token = max(bisect_right(at, place) - 1, 0)
        owner = f"token {show(ids[token : token + 1])} is in {found[token]!r}"
        raise ValueError(f"span {name!r} has no token of its own ({owner}); name spans that begin where tokens do")
    other = next((i for i, name in enumerate(found) if name == END and i != last), None)
    if other is not None:
        rule = f"END is the last scored token, {show(ids[last : last + 1])}, alone: name it otherwise"
        raise ValueError(f"span 'END' has the token {show(ids[other : other + 1])}; {rule}")
    found[last] = END
    return found


def _first_character(text: str, start: int, end: int) -> int:
    """Where the first character between two places stands that is not white space; `start` if there is none."""
    return next((i for i in range(start, end) if not text[i].isspace()), start)


def _parts(example: TextExample, whole: str | Sequence[int]) -> list[Part]:
    """Return a prompt in parts; `whole` are its characters, or its token ids if its spans are counted in tokens."""
    prompt = example.prompt
    assert prompt is not None
    if example.values is not None:
        if prompt.spans is None:
            return _of_template(prompt, example.values)
        return [(name, render(str(part), example.values)) for name, part in prompt.spans.items()]
    found: list[Part] = []
    done = 0
    stated = [(value, name) for name, value in (prompt.spans or {}).items() if isinstance(value, tuple)]
    for (start, end), name in sorted(stated):
        if end > len(whole):
            what = "characters" if isinstance(whole, str) else "tokens"
            raise ValueError(f"spans.{name}: [{start}, {end}] ends beyond the prompt's {len(whole)} {what}")
        found += [(None, whole[done:start]), (name, whole[start:end])]
        done = end
    return [*found, (None, whole[done:])]


def _of_template(prompt: Prompt, values: Mapping[str, str]) -> list[Part]:
    """Return the slots of a template, by name, and the texts between them. Slots that are there twice are numbered."""
    template = parse(prompt.clean)
    times = Counter(slot for _, slot in template)
    seen = Counter[str]()
    found: list[Part] = []
    text = ""
    for literal, slot in template:
        text += literal
        if slot is not None:
            seen[slot] += 1
            found += [(None, text), (f"{slot}.{seen[slot]}" if times[slot] > 1 else slot, values[slot])]
            text = ""
    return [*found, (None, text)]


def _spans(parts: Sequence[Part]) -> list[tuple[str, int]]:
    """Return name and start of every span; parts between them become spans, white space goes to the part behind it."""
    found = list[tuple[str, int]]()
    ends = accumulate(len(part) for _, part in parts)
    between = "start"
    start = 0
    for (name, part), end in zip(parts, ends, strict=True):
        if name is not None and not part:
            raise ValueError(f"span {name!r} is empty, as its slot is; fill it, or name a part that is never empty")
        if name is None and not (part.strip() if isinstance(part, str) else part):
            continue
        found.append((span_name(name or between), start))
        if name is not None:
            between = f"after {name}"
        start = end
    for name, times in Counter(name for name, _ in found).most_common(1):
        if times > 1:
            raise ValueError(f"two of its spans are called {name!r}; give one another name")
    return found or [(between, 0)]
