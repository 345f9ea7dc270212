"""Rules across the keys of a task; `problems` lists every broken one, in the words that the user typed."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice, zip_longest

from acdc.errors import short, unknown
from acdc.registry import METRICS
from acdc.task.draw import pools
from acdc.task.schema import Task
from acdc.task.template import fields
from acdc.task.words import MAX_WORDS, NumberRange, Table

MAX_FOUND = 100  # problems


def problems(task: Task) -> list[str]:
    """Return what is wrong, each problem with its key, at most `MAX_FOUND`; nothing for a valid task."""
    # The rules about names come first: the others rely on them and would only repeat the same problems.
    names = (check_metrics, check_generator, check_lists, check_templates)
    words = (check_words, check_slots, check_different, check_corrupted, check_enough)
    rules = (*words, check_answers, check_compare, check_spans, check_spans_of_rows)
    for some in (names, rules):
        if found := list(islice((p for rule in some for p in rule(task)), MAX_FOUND)):
            return found
    return []


def check_metrics(task: Task) -> Iterator[str]:
    """Metrics are known, and the default metrics are among the task's."""
    for metric in task.metrics:
        if metric not in METRICS:
            yield "metrics: " + unknown("metric", metric, METRICS)
            return
    chosen = {"defaults.metric": task.defaults.metric}
    chosen |= {f"defaults.models.{m}.metric": o.metric for m, o in task.defaults.models.items() if o.metric}
    for key, metric in chosen.items():
        if metric not in task.metrics:
            yield f"{key}: " + unknown("metric", metric, task.metrics)


def check_generator(task: Task) -> Iterator[str]:
    """A generator has enough words, and no keys that don't go with it."""
    data = task.data
    generator = data.generator
    if generator is None:
        return
    yield from repeated("data.generator: words", generator.words)
    need = 2 * generator.length
    if len(generator.words) < need:
        yield f"data.generator: length {generator.length} needs {need} words, words has {len(generator.words)}"
    if data.slots or data.lists or data.pieces or data.different or task.corrupt:
        yield "data.generator: brings its own prompts; slots, lists, pieces, different and corrupt don't go with it"


def check_lists(task: Task) -> Iterator[str]:
    """Lists named by slots exist, and all slots together have at most `MAX_WORDS` words."""
    data = task.data
    total = 0
    for name, slot in data.slots.items():
        if isinstance(slot, str) and slot not in data.lists:
            yield f"data.slots.{name}: " + unknown("list", slot, data.lists)
        else:
            total += len(data.words(name))
    if total > MAX_WORDS:
        yield f"data.slots: have {total:,} words in all; at most {MAX_WORDS:,} are drawn from"


def check_templates(task: Task) -> Iterator[str]:
    """Templates can be parsed."""
    for key, template in task.templates():
        try:
            fields(template)
        except ValueError as error:
            yield f"{key}: {error}"


def check_words(task: Task) -> Iterator[str]:
    """Slots have words, each once."""
    for slot in task.data.slots:
        words = task.data.words(slot)
        if not isinstance(words, NumberRange):
            yield from repeated(f"data.slots.{slot}", words.rows if isinstance(words, Table) else words)


def repeated(key: str, rows: tuple[str, ...] | tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """Yield what is wrong with a list: it is empty, or has an entry twice."""
    if not rows:
        yield f"{key}: has no words; a slot needs at least one"
    seen = set[str | tuple[str, ...]]()
    for row in rows:
        if row in seen:
            yield f"{key}: {short(row)} is there twice; every word should be there once"
        seen.add(row)


def check_slots(task: Task) -> Iterator[str]:
    """Every slot and list is used, and every slot that is used exists."""
    known = forms(task)
    used = set[str]()
    for key, template in task.templates():
        for field in fields(template):
            if field not in known:
                yield f"{key}: {template!r} uses a slot that has no list: " + unknown("slot", field, known)
            used.add(field.partition(".")[0])
    if task.answers and task.answers.compare:
        used.add(task.answers.compare.slot)
    for name in task.data.slots:
        if name not in used:
            yield f"data.slots.{name}: is used by no template; remove it or write {{{name}}}"
    named = {source for source in task.data.slots.values() if isinstance(source, str)}
    for name in task.data.lists:
        if name not in named:
            yield f"data.lists.{name}: is used by no slot; remove it"


def check_different(task: Task) -> Iterator[str]:
    """Groups in `different` have slots that can differ."""
    words = forms(task)
    for group in task.data.different:
        strange = [field for field in group if field not in words]
        if strange:
            yield "data.different: " + unknown("slot", strange[0], words)
        elif len(set(group)) != len(group) or len(group) < 2:
            yield f"data.different: {list(group)} should be two or more slots, each once"
        elif len(set().union(*(words[field] for field in group))) < len(group):
            yield f"data.different: {list(group)} can't all be different: there are fewer words than slots"


def forms(task: Task) -> dict[str, set[str]]:
    """Return the words that may fill each field; a generator's slots are its own."""
    if task.data.generator:
        return {}
    found = {}
    for pool in pools(task).values():
        for i, field in enumerate(pool.fields):
            found[field] = {row[i] for row in pool.rows}
    return found


def check_corrupted(task: Task) -> Iterator[str]:
    """Every prompt has a corrupted prompt, and `corrupt` names slots that exist."""
    data = task.data
    corrupt = task.corrupt
    if corrupt is None:
        for i, prompt in enumerate(data.prompts or data.rows or ()):
            if prompt.corrupted is None:
                where = f"prompt {i + 1} of data" if len(data.prompts) != 1 else "the template"
                yield f"corrupt: is missing and {where} has no corrupted of its own"
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
            elif key == "fix" and slot not in clean:
                yield f"corrupt.fix: {slot!r} is a table, fix needs a slot of one form; use corrupt.template"


def check_enough(task: Task) -> Iterator[str]:
    """Lists have enough words for all slots that draw different words from them."""
    data = task.data
    redrawn = set((task.corrupt and task.corrupt.redraw) or ())
    needed = Counter[str]()
    for slot, source in data.slots.items():
        if isinstance(source, str):
            needed[source] += 2 if slot in redrawn else 1
    for name, words in data.lists.items():
        if needed[name] > len(words):
            yield f"data.lists.{name}: {needed[name]} different words an example are needed, has {len(words)}"
    for slot in sorted(redrawn & data.slots.keys()):
        source = data.slots[slot]
        if not isinstance(source, str) and len(source) == 1:
            yield f"corrupt.redraw: slot {slot!r} has only one word, so it can't be drawn differently"


def check_answers(task: Task) -> Iterator[str]:
    """Prompts have the answers that the metrics use, and `score_at` fits the answers."""
    data = task.data
    answers = task.answers
    prompts = data.prompts or data.rows or ()
    correct = answers is not None or (bool(prompts) and all(p.correct for p in prompts))
    if not correct and any(p.correct for p in prompts):
        yield "answers: is missing, and only some of the prompts have a correct of their own"
    wrong = answers is not None and bool(answers.wrong or answers.compare)
    wrong = wrong or (bool(prompts) and all(p.wrong for p in prompts))
    for metric in task.metrics:
        what = "correct" if METRICS[metric].needs_correct and not correct else "wrong"
        if what == "correct" or (METRICS[metric].needs_wrong and not wrong):
            yield f"metrics: {metric} needs {what} answers; state answers.{what} or leave {metric} out"
    texts = (answers and (answers.correct or answers.compare)) or any(p.correct for p in prompts)
    if texts and task.score_at != "last" and (task.score_at == "all" or len(task.score_at) != 1):
        yield "score_at: answers are for one position; write last, one position, or answers: {next: true}"
    if answers and answers.next and task.score_at == "last":
        yield "score_at: the last position has no next token; with answers.next, list positions or write all"


def check_compare(task: Task) -> Iterator[str]:
    """The slot in `answers.compare` exists and has whole numbers."""
    compare = task.answers and task.answers.compare
    if not compare:
        return
    if compare.slot not in task.data.slots:
        yield "answers.compare.slot: " + unknown("slot", compare.slot, task.data.slots)
        return
    words = task.data.words(compare.slot)
    if not isinstance(words, NumberRange) and not all(isinstance(w, str) and w.isdecimal() for w in words):
        yield f"answers.compare.slot: the words of {compare.slot!r} should be whole numbers"


def check_spans(task: Task) -> Iterator[str]:
    """The spans that a template names are its parts, and none cuts a slot in two."""
    if task.data.spans is not None and task.data.template is None:
        yield "data.spans: are those of data.template; state them in each of the templates, or in every row"
    for i, prompt in enumerate(task.data.prompts):
        key = "data.spans" if task.data.template is not None else f"data.templates.{i}.spans"
        if prompt.spans is None:
            continue
        for name, part in prompt.spans.items():
            if not isinstance(part, str) or not part:
                yield f"{key}.{name}: should be a part of the template, as text, got {short(part)}"
                return
        joined = "".join(map(str, prompt.spans.values()))
        if joined != prompt.clean:
            at = next(i for i, (a, b) in enumerate(zip_longest(joined, prompt.clean)) if a != b)
            differ = f"the spans have {short(joined[at:])} where the template has {short(prompt.clean[at:])}"
            yield f"{key}: joined they should be exactly the template; from character {at} on {differ}"
            continue
        for name, part in prompt.spans.items():
            try:
                fields(str(part))
            except ValueError as error:
                yield f"{key}.{name}: {error}"
                break


def check_spans_of_rows(task: Task) -> Iterator[str]:
    """Rows state all the same spans, null for one that a row lacks; those in characters end in the prompt."""
    rows = task.data.rows or ()
    for i, row in enumerate(rows):
        names = {*(row.spans or ())}
        usual = {*(rows[0].spans or ())}
        if (row.spans is None) != (rows[0].spans is None) or names != usual:
            has = f"has {', '.join(sorted(names)) or 'none'}, the first row {', '.join(sorted(usual)) or 'none'}"
            yield f"{task.data.row(i)}: spans: {has}; state the same in every row, null for one that a row lacks"
        for name, value in (row.spans or {}).items():
            key = f"{task.data.row(i)}: spans.{name}"
            if isinstance(value, str):
                yield f"{key}: should be [start, end] or null, got the text {short(value)}; texts are for templates"
            elif value and task.data.span_units == "characters" and value[1] > len(row.clean):
                yield f"{key}: {list(value)} ends beyond the prompt's {len(row.clean)} characters"
