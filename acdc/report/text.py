"""Tables, numbers and metrics as text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from acdc.errors import plural
from acdc.registry import METRICS

ARROWS = "(↓ lower, ↑ higher is better)"


def grid(rows: Sequence[Sequence[str]], left: int = 1, widths: Sequence[int] = ()) -> str:
    """Return aligned columns, two spaces apart: the first `left` ones aligned left, the others right; `widths` are the
    least widths of the first columns."""
    used = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, width in enumerate(widths):
        used[i] = max(used[i], width)
    lines = []
    for row in rows:
        cells = [cell.ljust(used[i]) if i < left else cell.rjust(used[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def legend(texts: Mapping[str, str], label: int) -> str:
    """Return what words of a table mean, behind labels of a width."""
    lines: list[str] = []
    for name, text in texts.items():
        lines += wrap(text, 118, initial_indent=f"{name:{label}}", subsequent_indent=" " * label)
    return "\n".join(lines)


def evaluated_on(half: str, examples: int, seed: int) -> str:
    """Return the prompts of a half in words."""
    prompts = plural(examples, f"{half.replace('_', '-')} prompt")
    return f"{prompts}, seed {seed}; [95 % intervals] are over prompts"


def number(value: float | None, digits: int) -> str:
    """Return a number with fixed decimals, never -0; – for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{round(value, digits) + 0.0:.{digits}f}"


def estimate(values: Sequence[float | None], digits: int) -> str:
    """Return a value with its interval: `value [low, high]`; the value alone if there is no interval."""
    value, low, high = (number(x, digits) for x in values)
    return value if low == "–" else f"{value} [{low}, {high}]"


def heading(metric: str) -> str:
    """A metric, or the accuracy, and whether a higher or a lower value is better."""
    return f"{metric} {'↑' if _negated(metric) or metric == 'accuracy' else '↓'}"


def readable(metric: str, values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Values of a metric as people read them: without the minus sign that makes differences something to minimise."""
    return tuple(-x if x is not None and _negated(metric) else x for x in values)


def readable_estimate(metric: str, values: Sequence[float | None]) -> tuple[float | None, ...]:
    """The same of an estimate (value, low, high), whose ends change places with the sign."""
    value, low, high = readable(metric, values)
    return (value, high, low) if _negated(metric) else (value, low, high)


def when_removed(metric: str) -> str:
    """What the effect of an edge is called, in the metric's units; positive where the edge helps."""
    return f"{worse(metric)} in {label(metric)} when removed"


def worse(metric: str) -> str:
    """The direction in which a metric gets worse."""
    return "decrease" if _negated(metric) else "increase"


def label(metric: str) -> str:
    """A metric's name in sentences."""
    return METRICS[metric].label if metric in METRICS else metric


def _negated(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].negated


def lines_of(notes: Iterable[str]) -> str:
    """Return notes as lines, without the warnings, which commands print as soon as they know them."""
    return "\n".join(note for note in notes if not note.startswith("warning"))


def how(method: Mapping[str, Any], examples: int, seed: int) -> str:
    """Return how a circuit was found, from the content of `method` in circuit.json."""
    limit = bound(method["name"], method["threshold"], method["options"])
    prompts = plural(examples, "prompt")
    return f"{method['name']}, {method['metric']}, {limit}, {method['ablation']} ablation, {prompts}, seed {seed}"


def bound(method: str, threshold: float | None, options: Mapping[str, Any]) -> str:
    """Return what limits the number of edges that a method keeps."""
    among = f" among {options['prefilter']}" if "prefilter" in options else ""
    if "faithfulness" in options:
        return f"smallest found of faithfulness {options['faithfulness']:g}{among}"
    if threshold is None and method == "acdc":
        return f"best found of {options['edges']} edges{among}"
    if threshold is None:
        chosen = "greedy" if options.get("greedy") else "top"
        return f"{chosen} {options['edges']}" + (", by magnitude" if options.get("abs") else "")
    return f"{'τ =' if method == 'acdc' else 'scores ≥'} {threshold:g}{among}"
