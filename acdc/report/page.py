"""`report.html`: the result of a run on one page that needs nothing else, no network and no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template

from acdc.formats.circuit_file import CircuitFile, Kept

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --ink: #222; --soft: #666; --line: #ddd; --page: #fff; --box: #f5f5f5 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --soft: #a0a0a0; --line: #444; --page: #1b1b1b; --box: #272727 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem } summary { cursor: pointer }
.soft { color: var(--soft) }
figure { margin: 1.5rem 0; padding: .5rem; background: #fff; border: 1px solid var(--line);
         border-radius: 6px; overflow: auto; text-align: center }
figure svg { max-width: 100%; height: auto }
.scroll { overflow: auto; max-height: 36rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid var(--line);
         overflow-wrap: anywhere }
thead th { position: sticky; top: 0; background: var(--page) }
td.number { text-align: right; white-space: nowrap }
pre { background: var(--box); padding: .7rem 1rem; border-radius: 6px; white-space: pre-wrap }
</style>
</head>
<body>
<h1>$title</h1>
<p>$headline</p>
$notes
<figure>$svg</figure>
<h2>Metrics</h2>
$metrics
<h2>Edges</h2>
<p class="soft">Strongest first. Score: importance, larger is more important. Change: how much the metric rose
when the edge was removed in the search.</p>
$edges
<h2>To make it again</h2>
<pre>$command</pre>
$config
<details>
<summary>Decisions, in the order they were taken ($decisions)</summary>
$log
</details>
</body>
</html>
""")


def render_report(file: CircuitFile, svg: str, log: Sequence[Mapping[str, object]]) -> str:
    """The report as HTML text.

    Args:
        svg: the picture, from `acdc.report.picture.to_svg`; the one thing that goes in as it is.
        log: the decisions; the keys of the first are the columns.
    """
    title = f"{file.task.name} in {file.model.name}"
    columns = list(log[0]) if log else []
    edges = sorted(file.edges, key=lambda e: (e.score is None, -abs(e.score or 0.0)))
    return PAGE.substitute(
        title=escape(title),
        headline=escape(_headline(file)),
        notes="".join(f'<p class="soft">{escape(note)}</p>' for note in file.notes),
        svg=svg[svg.index("<svg") :],  # without the XML declaration, which HTML doesn't know
        metrics=_table(["metric", "value"], file.metrics.items()),
        edges=_table(["edge", "score", "change"], [[e.name, e.score, e.change] for e in edges]),
        command=escape(file.command),
        config=_table(["setting", "value"], _settings(file)),
        decisions=f"{len(log):,}",
        log=_table(columns, ([decision.get(key) for key in columns] for decision in log)),
    )


def _headline(file: CircuitFile) -> str:
    counts, method = file.graph, file.method
    direct = counts.edges_with_direct
    text = f"{method.name} kept {_of(counts.edges)} residual edges"
    text += f" ({_of(direct)} with direct edges)" if direct else ""
    text += f" between {counts.nodes} nodes of {file.model.name}"
    text += f", on {file.task.examples} examples of {file.task.name}"
    text += f", at threshold {_shown(method.threshold)}" if method.threshold is not None else ""
    text += f" ({method.metric}, {method.ablation} ablation)."
    if method.metric in file.metrics:
        text += f" The circuit's {method.metric} is {_shown(file.metrics[method.metric])}."
    return text


def _of(count: Kept) -> str:
    return f"{count.kept:,} of {count.total:,}"


def _settings(file: CircuitFile) -> list[tuple[str, object]]:
    """The configuration, as (dotted key, value)."""
    parts: dict[str, dict[str, object]] = {
        "task": file.task.model_dump(),
        "model": file.model.model_dump(),
        "method": file.method.model_dump(exclude={"options"}),
        "method.options": dict(file.method.options),
        "environment": dict(file.environment),
    }
    return [(f"{name}.{key}", value) for name, part in parts.items() for key, value in part.items()]


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="scroll">{table}</div>'


def _cell(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = ' class="number"' if number else ""
    return f"<td{kind}>{escape(_shown(value))}</td>"


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
