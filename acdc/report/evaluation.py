"""An evaluation as text."""

import math
from textwrap import wrap

from acdc.files.evaluation import DRAWS, LEGEND, Evaluation
from acdc.report.text import estimate, grid, number

WIDTH = 118
LABEL = 16
WIDTHS = (LABEL - 2,)
SHOWN = 8  # edges of each kind
TEXT = 84  # characters of a prompt
WHAT = {"full": "full model", "circuit": "circuit", "rest": "all but circuit", "ablated": "everything ablated"}


def to_text(e: Evaluation) -> str:
    """Return readable tables."""
    legend: list[str] = []
    for name, text in LEGEND.items():
        legend += wrap(text, WIDTH, initial_indent=f"{name:{LABEL}}", subsequent_indent=" " * LABEL)
    blocks = [_head(e), _means(e), _faithfulness(e), _minimality(e), _spread(e), _ablations(e), "\n".join(legend)]
    return "\n\n".join(block for block in blocks if block)


def _head(e: Evaluation) -> str:
    share = f"{e.edges:,} of {e.total:,} residual edges ({e.edges / e.total:.2%})"
    prompts = f"{e.examples} {e.half.replace('_', '-')} prompts, seed {e.seed}; [95 % intervals] are over prompts"
    return (
        f"{'circuit':{LABEL}}{e.task} in {e.model}: {share}\n"
        f"{'found by':{LABEL}}{e.method}, {e.metric} (lower is better), {e.measured.ablation} ablation\n"
        f"{'evaluated on':{LABEL}}{prompts}"
    )


def _means(e: Evaluation) -> str:
    m = e.measured
    rows = [["", *WHAT.values()], [f"{e.metric} ↓", *(estimate(getattr(m, name), 4) for name in WHAT)]]
    if math.isfinite(m.accuracy["full"].value):
        rows.append(["accuracy ↑", *(estimate(m.accuracy[name], 2) for name in WHAT)])
    return grid(rows, widths=WIDTHS)


def _faithfulness(e: Evaluation) -> str:
    m = e.measured
    lines = [
        f"{'faithfulness ↑':{LABEL}}{estimate(m.faithfulness, 3)}  1 is the full model, 0 everything ablated",
        f"{'completeness ↓':{LABEL}}{estimate(m.completeness, 3)}  the same of all edges but the circuit's",
    ]
    r = e.random
    if r is not None:
        mean = sum(r.metric) / len(r.metric)
        lines += [
            f"{'random':{LABEL}}{DRAWS} connected circuits of {r.edges} edges: {e.metric} {number(mean, 4)} "
            f"({number(r.metric[0], 4)} to {number(r.metric[-1], 4)}), faithfulness {number(r.faithfulness.value, 3)};",
            f"{'':{LABEL}}the circuit's is lower by {estimate(r.advantage, 4)} and ranks {r.rank} of {DRAWS + 1}",
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
    lines = [f"{'minimality':{LABEL}}{found}, by the rise of {e.metric} without the edge"]
    for title, shown in groups.items():
        if shown:
            lines.append(f"  {title}")
            lines += [f"    {edge.name:28}{estimate(edge.rise, 4)}" for edge in shown]
    return "\n".join(lines)


def _spread(e: Evaluation) -> str:
    """The metric and faithfulness over prompts, and the worst prompts."""
    s = e.spread
    rows = [["per prompt", "lowest", "quartile", "median", "quartile", "highest"]]
    rows.append([f"{e.metric} ↓", *(number(x, 4) for x in s.metric)])
    rows.append(["faithfulness ↑", *(number(x, 2) for x in s.faithfulness)])
    lines = [grid(rows, widths=WIDTHS)]
    if s.undefined:
        lines.append(f"  (without {s.undefined} prompts on which the full model is not better than everything ablated)")
    lines.append(f"  worst prompts: {e.metric}, faithfulness")
    for p in s.worst:
        text = p.text if len(p.text) <= TEXT else "…" + p.text[1 - TEXT :]
        lines.append(f"    {number(p.metric, 4):>10}{number(p.faithfulness, 2):>9}  {text}")
    return "\n".join(lines)


def _ablations(e: Evaluation) -> str:
    rows = [["ablation", "full model", "circuit", "ablated", "faithfulness ↑", "completeness ↓"]]
    for m in (e.measured, *e.others):
        metrics = [number(x.value, 4) for x in (m.full, m.circuit, m.ablated)]
        rows.append([m.ablation, *metrics, estimate(m.faithfulness, 3), estimate(m.completeness, 3)])
    return grid(rows, widths=WIDTHS)
