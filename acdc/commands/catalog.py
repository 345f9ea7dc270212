"""`acdc tasks`, `models`, `methods` and `results`: list what there is, or show one in detail."""

import json
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acdc.commands.options import COMPLETED, Json, listed, model_names, task_names
from acdc.errors import ModelError, TaskError, UserError, plural, unknown
from acdc.io.terminal import say, show
from acdc.registry import ABLATIONS, METHODS, METRICS, ORDERS, PENALTY, SPARSITY

if TYPE_CHECKING:
    from acdc.setup.inputs import Inputs
    from acdc.task.schema import Task

ANSWERS = 3  # shown of an example
SPAN_LINES = 12  # of spans and tokens, shown of a prompt


def tasks(
    name: Annotated[str | None, typer.Argument(help="A task or a YAML file.", autocompletion=task_names)] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Show how well this model does the task, and a prompt's spans.")
    ] = None,
    json_: Json = False,
) -> None:
    """List the shipped tasks, or show one.

    Example: acdc tasks greater-than --model tiny
    """
    from acdc.task.load import load_task

    if name is None and model is not None:
        command = shlex.join(["acdc", "tasks", "greater-than", "--model", model])
        raise UserError(f"--model {model}: name a task, too: {command}")
    if name is None:
        every = [load_task(known) for known in task_names()]
        if json_:
            show(json.dumps([_facts(task) for task in every], indent=1))
            return
        rows = [(t.name, t.defaults.metric, f"{t.defaults.threshold:g}", t.description) for t in every]
        _table(("task", "metric", "τ", "what the model should do"), rows)
        return
    task = load_task(name)
    at = task.score_at
    details = {
        "name": f"{task.name} (version {task.version})",
        "description": task.description,
        **_example(task),
        "source": task.source,
        "metrics": ", ".join(task.metrics),
        "scored at": at if isinstance(at, str) else ", ".join(map(str, at)),
        "defaults": _values(task.defaults.model_dump(exclude={"models"}, exclude_none=True)),
    }
    for of, own in task.defaults.models.items():
        details[f"for {of}"] = _values(own.model_dump(exclude_none=True))
    if model is None:
        if json_:
            show(json.dumps(_facts(task), indent=1))
        else:
            _list(details)
        return
    from acdc.evaluation.competence import competence, warning  # imports torch
    from acdc.report.text import ARROWS, grid, heading, number, readable
    from acdc.setup.config import resolve
    from acdc.setup.inputs import load

    config, checked, _ = resolve({"task": name, "model": model}, None, None)
    inputs = load(config, checked)
    found = competence(inputs)
    spans, prompt = _spans(inputs)
    if json_:
        ability = found and {**asdict(found), "interval": found.interval}
        show(json.dumps(_facts(task) | {"model": model, "ability": ability, "spans": spans or None}, indent=1))
        return
    _list(details)
    show("\n" + prompt)
    if found is None:
        show(f"\n{task.name} has no answers, so there is no accuracy")
        return
    low, high = found.interval
    lines = [[ARROWS, "clean", "corrupted"]]
    lines.append([heading("accuracy"), number(found.accuracy, 4), number(found.accuracy_corrupted, 4)])
    lines += [[heading(m), *(number(x, 4) for x in readable(m, values))] for m, values in found.metrics.items()]
    on = f"{model} on {plural(inputs.config.examples, 'prompt')}, seed {inputs.config.seed}"
    show(f"\n{on}: accuracy {found.accuracy:.1%} ({low:.1%} to {high:.1%}), by chance {found.chance:.1%}")
    show("\n" + grid(lines, widths=(32, 10, 10)))
    if doubt := warning(inputs, found):
        show("\n" + doubt)


def _facts(task: "Task") -> dict[str, Any]:
    """What a task is, for JSON."""
    return {
        **{key: getattr(task, key) for key in ("name", "version", "description", "source", "metrics", "score_at")},
        "defaults": task.defaults.model_dump(exclude_none=True),
    }


def _spans(inputs: "Inputs") -> tuple[tuple[str, ...], str]:
    """The names of the prompts' spans, and a prompt's tokens below them; or none, and why."""
    from acdc.task.tokenize import make_data

    config = inputs.config
    tokenizer = inputs.model.tokenizer
    try:
        data = make_data(inputs.task, tokenizer, config.examples, config.seed, positions=True)
    except TaskError as error:
        return (), f"no spans: {error}"
    assert data.discovery.spans is not None
    tokens = [repr(token)[1:-1].replace(" ", "·") for token in tokenizer.pieces(data.discovery.clean[0].tolist())]
    spans = data.discovery.spans[0].tolist()
    named = [(data.spans[span], token) for span, token in zip(spans, tokens, strict=True) if span >= 0]
    lines = _columns(named, shutil.get_terminal_size().columns)
    return data.spans, "\n".join(["spans, over the tokens of a prompt (| between tokens, · is a space)", *lines])


def _columns(named: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Lines of spans, each with a line of their tokens below; one wider than the terminal goes on in the next."""
    cells = list[tuple[str, str]]()
    for span, tokens in groupby(named, key=itemgetter(0)):
        text = ""
        for _, token in tokens:
            if text and len(f"  {text}|{token}") > width:
                cells.append((span, text))
                text = ""
            text += token if not text else f"|{token}"
        cells.append((span, text))
    lines = [["", ""]]
    for cell in cells:
        size = 2 + max(map(len, cell))
        if lines[-1][0] and len(lines[-1][0]) + size > width:
            lines.append(["", ""])
        lines[-1] = [line + "  " + text.ljust(size - 2) for line, text in zip(lines[-1], cell, strict=True)]
    more = [f"  … and {plural(len(lines) - SPAN_LINES, 'more line')}"] if len(lines) > SPAN_LINES else []
    return [text.rstrip() for pair in lines[:SPAN_LINES] for text in ("", *pair)] + more


def _example(task: "Task") -> dict[str, str]:
    """A pair of prompts with its answers, drawn without a tokenizer."""
    from acdc.task.draw import draw, shuffled

    rng = Random(task.name)
    shuffle = task.corrupt is not None and bool(task.corrupt.shuffle)
    drawn = draw(task, lambda _: iter(()), rng, 2 if shuffle else 1, 1)
    first = (shuffled(task, drawn, rng) if shuffle else drawn)[0]
    answers = {}
    for what, texts in (("correct", first.correct), ("wrong", first.wrong)):
        more = f" and {len(texts) - ANSWERS} more" if len(texts) > ANSWERS else ""
        answers[what] = ", ".join(f'"{text}"' for text in texts[:ANSWERS]) + more
    return {"clean": f'"{first.clean}"', "corrupted": f'"{first.corrupted}"'} | {k: v for k, v in answers.items() if v}


def models(
    name: Annotated[str | None, typer.Argument(help="A model or a directory.", autocompletion=model_names)] = None,
) -> None:
    """List the models at hand, or show whether one can be run.

    They are bundled, in installed packages, or in the Hugging Face cache.

    Example: acdc models tiny
    """
    from acdc.model.find import BUNDLED, SHOWN, bundled_models, packaged_models, sizes_of
    from acdc.model.hub import cached_models

    if name is None:
        rows = [(n, *sizes_of(BUNDLED / n), "bundled") for n in bundled_models()]
        rows += [(n, *("–" for _ in SHOWN), where) for n, where in packaged_models().items()]
        rows += [(n, *sizes_of(path), "Hugging Face cache") for n, path in cached_models().items()]
        _table(("model", *SHOWN, "where"), rows)
        return
    from acdc.model.load import load_model  # imports torch

    try:
        model = load_model(name, "cpu")
    except ModelError as error:
        raise ModelError(f"{name} can't be run: {str(error).removeprefix(f'--model {name}: ')}") from None
    c = model.checkpoint.sizes
    found = model.verification
    like = "bundled"
    if found:
        of = f"of standard deviation {found.spread:.3g}, differ from those of transformers"
        like = f"its logits, {of} by at most {found.difference:.1e}"
    _list(
        {
            "name": name,
            "can be run": f"yes: {like}",
            "sizes": f"{model.checkpoint.family}, {c.n_layers} layers, {c.n_heads} heads, {c.d_model:,} wide, "
            f"{c.vocab_size:,} tokens, {c.n_positions:,} positions; {c.graph().n_edges:,} edges",
            "weights": f"{4 * c.n_weights / 1e6:,.0f} MB in float32; SHA-256 begins with {model.hash}",
            "BOS": "none" if model.tokenizer.bos_id is None else model.tokenizer.pieces([model.tokenizer.bos_id])[0],
        }
    )
    if name in bundled_models():
        show("\n" + (BUNDLED / name / "README.md").read_text(encoding="utf-8").rstrip())


def methods(
    name: Annotated[str | None, typer.Argument(help="A method.", autocompletion=COMPLETED["method"])] = None,
) -> None:
    """List the methods of discovery, or show one.

    Example: acdc methods acdc
    """
    if name is None:
        _table(("method", "what it does"), [(n, m.what.partition(" (")[0]) for n, m in METHODS.items()])
        return
    if name not in METHODS:
        raise UserError(unknown("method", name, METHODS))
    from acdc.setup.config import Config

    method = METHODS[name]
    own = {"steps": method.repeats, "updates": method.repeats, "penalty": PENALTY, "sparsity": SPARSITY}
    known = {key: own.get(key, Config.model_fields[key].default) for key in method.options}
    details = {
        "name": name,
        "what": method.what,
        "scores": "none: it tests edges" if method.kind == "search" else "of nodes" if method.nodes else "of edges",
        "threshold": method.bound,
        "options": ", ".join(key for key, value in known.items() if value is None),
        "defaults": _values({key: value for key, value in known.items() if value is not None}),
        "metrics": ", ".join(metric for metric, facts in METRICS.items() if not (method.slope and facts.flat)),
    }
    if "order" in method.options:
        details["orders"] = "; ".join(f"{order}: {text}" for order, text in ORDERS.items())
    usable = {a: text for a, text in ABLATIONS.items() if a == "corrupted" or not method.paired}
    details["ablations"] = "; ".join(f"{ablation}: {text}" for ablation, text in usable.items())
    _list(details)


def results(
    directory: Annotated[Path, typer.Argument(help="A sweep's, or one that holds directories of runs.")],
    where: Annotated[
        list[str] | None, typer.Option("--where", "-w", help="COLUMN=VALUE (or !=, <, >, <=, >=); repeatable.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by; -COLUMN from the largest.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to show, with commas, or all.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    json_: Json = False,
) -> None:
    """Show the table of a sweep, or of any runs.

    It can be read while they run; filtered, sorted, as text, CSV or JSON.

    Example: acdc results sweeps/sweep-tiny --where task=ioi --sort kept
    """
    from acdc.files.table import chosen, every_column, found_rows, to_csv
    from acdc.report.results import to_text

    if csv and json_:
        raise UserError("--csv and --json: give one of the two")
    rows, others = found_rows(directory)
    say(*(f"note: left out: {other}" for other in others))
    known = every_column(rows)
    rows = chosen(rows, where or [], sort)
    names = known if columns == "all" else listed("--columns", columns) if columns else None
    if json_:
        show(json.dumps([{k: row.get(k) for k in names or known} for row in rows], indent=1))
    else:
        show(to_csv(rows, names or known), end="") if csv else show(to_text(rows, names))


def _values(values: Mapping[str, Any]) -> str:
    """Options with their values, in words."""
    words = {True: "yes", False: "no"}
    return ", ".join(f"{k} {words[v] if isinstance(v, bool) else v}" for k, v in values.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose rows are cut at the terminal's width; a name shows the rest."""
    from acdc.report.text import grid

    width = shutil.get_terminal_size().columns
    for line in grid([head, *rows], left=len(head)).splitlines():
        show(line if len(line) <= width else line[: width - 1].rstrip() + "…")


def _list(lines: Mapping[str, str]) -> None:
    """Print each name with its text in a column, wrapped at the terminal's width."""
    indent = max(map(len, lines)) + 2
    width = max(shutil.get_terminal_size().columns, indent + 20)
    for name, text in lines.items():
        first = f"{name:{indent}}"
        show(textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * indent, break_long_words=False))
