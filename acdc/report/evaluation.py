"""An evaluation as text."""

import math

from acdc.errors import plural
from acdc.files.evaluation import DRAWS, LEGEND, Evaluation
from acdc.report.text import (
    estimate,
    evaluated_on,
    grid,
    heading,
    legend,
    number,
    readable,
    readable_estimate,
    when_removed,
)

LABEL = 16
WIDTHS = (LABEL - 2,)
SHOWN = 8  # edges of each kind
TEXT = 84  # characters of a prompt
WHAT = {"full": "full model", "circuit": "circuit", "rest": "all but circuit", "ablated": "everything ablated"}


def to_text(e: Evaluation) -> str:
    """Return readable tables."""
    tables = [_head(e), _means(e), _faithfulness(e), _minimality(e), _spread(e), grid(ablations(e), widths=WIDTHS)]
    return "\n\n".join(block for block in (*tables, legend(LEGEND, LABEL)) if block)


def _head(e: Evaluation) -> str:
    share = f"{e.edges:,} of {e.total:,} residual edges ({e.edges / e.total:.2%})"
    return (
        f"{'circuit':{LABEL}}{e.task} in {e.model}: {share}\n"
        f"{'found by':{LABEL}}{e.method}, {heading(e.metric)}, {e.measured.ablation} ablation\n"
        f"{'evaluated on':{LABEL}}{evaluated_on(e.half, e.examples, e.seed)}"
    )


def _means(e: Evaluation) -> str:
    m = e.measured
    values = [readable_estimate(e.metric, getattr(m, name)) for name in WHAT]
    rows = [["", *WHAT.values()], [heading(e.metric), *(estimate(value, 4) for value in values)]]
    if math.isfinite(m.accuracy["full"].value):
        rows.append([heading("accuracy"), *(estimate(m.accuracy[name], 2) for name in WHAT)])
    return grid(rows, widths=WIDTHS)


def _faithfulness(e: Evaluation) -> str:
    m = e.measured
    lines = [
        f"{'faithfulness ↑':{LABEL}}{estimate(m.faithfulness, 3)}  1 is the full model, 0 everything ablated",
        f"{'completeness ↓':{LABEL}}{estimate(m.completeness, 3)}  faithfulness of the complement",
    ]
    others = [f"{name} {estimate(value, 3)}" for name, value in e.by_metric.items() if name != e.metric]
    if others:
        lines.insert(1, f"{'  by others':{LABEL}}{'; '.join(others)}")
    r = e.random
    if r is not None:
        drawn = (sum(r.metric) / len(r.metric), r.metric[0], r.metric[-1])
        mean, best, worst = (number(x, 4) for x in readable(e.metric, drawn))
        lines += [
            f"{'random':{LABEL}}{DRAWS} connected circuits of {plural(r.edges, 'edge')}: {e.metric} {mean} "
            f"({best} to {worst}), faithfulness {number(r.faithfulness.value, 3)};",
            f"{'':{LABEL}}the circuit's is better by {estimate(r.advantage, 4)} and ranks {r.rank} of {DRAWS + 1}",
        ]
    return "\n".join(lines)


def _minimality(e: Evaluation) -> str:
    """The superfluous edges, and the least and the most needed ones."""
    if e.minimality is None:
        return ""
    edges = e.minimality.edges
    superfluous = [edge for edge in edges if edge.superfluous]
    needed = [edge for edge in edges if not edge.superfluous]
    tested = "edges"
    most = "most needed"
    if len(edges) < e.minimality.kept:
        tested = f"edges with the smallest scores, of {e.minimality.kept},"
        most = "most needed of these"
    first = f"superfluous, the first {SHOWN}" if len(superfluous) > SHOWN else "superfluous"
    groups = {first: superfluous[:SHOWN], "least needed": needed[:SHOWN], most: needed[SHOWN:][::-1][:SHOWN]}
    found = f"{len(superfluous) or 'none'} of {len(edges)} {tested} superfluous"
    lines = [f"{'minimality':{LABEL}}{found}; {when_removed(e.metric)}"]
    for title, shown in groups.items():
        if shown:
            lines.append(f"  {title}")
            lines += [f"    {edge.name:28}{estimate(edge.rise, 4)}" for edge in shown]
    return "\n".join(lines)


def _spread(e: Evaluation) -> str:
    """The metric and faithfulness over prompts, and the worst prompts."""
    s = e.spread
    rows = [["per prompt", "best", "quartile", "median", "quartile", "worst"]]
    rows.append([heading(e.metric), *(number(x, 4) for x in readable(e.metric, s.metric))])
    rows.append(["faithfulness ↑", *(number(x, 2) for x in s.faithfulness[::-1])])
    lines = [grid(rows, widths=WIDTHS)]
    if s.undefined:
        without = plural(s.undefined, "prompt")
        lines.append(f"  (without {without} on which the full model is not better than everything ablated)")
    lines.append(f"  worst prompts: {e.metric}, faithfulness")
    for p in s.worst:
        text = p.text if len(p.text) <= TEXT else "…" + p.text[1 - TEXT :]
        (value,) = readable(e.metric, [p.metric])
        lines.append(f"    {number(value, 4):>10}{number(p.faithfulness, 2):>9}  {text}")
    return "\n".join(lines)


def ablations(e: Evaluation, **more: str) -> list[list[str]]:
    """Return a table, a row for each ablation; `more` are titles of further columns, by what is measured in them."""
    titles = {"full": "full model", "circuit": "circuit", **more, "ablated": "ablated"}
    rows = [["ablation", *titles.values(), "faithfulness ↑", "completeness ↓"]]
    for m in (e.measured, *e.others):
        metrics = [number(x, 4) for x in readable(e.metric, [getattr(m, what).value for what in titles])]
        rows.append([m.ablation, *metrics, estimate(m.faithfulness, 3), estimate(m.completeness, 3)])
    return rows
