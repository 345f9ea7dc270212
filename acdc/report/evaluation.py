"""An evaluation as text."""

from __future__ import annotations

import math
from textwrap import wrap

from acdc.evaluation.bootstrap import Estimate
from acdc.files.evaluation import DRAWS, LEGEND, Evaluation, Measured, RemovedEdge
from acdc.report.text import grid, number

WIDTH, LABEL = 118, 16
SHOWN = 8  # edges of each kind
WHAT = {"full": "full model", "circuit": "circuit", "rest": "all but circuit", "ablated": "everything ablated"}


def to_text(e: Evaluation) -> str:
    """A readable table."""
    m, half, size = e.measured, e.half.replace("_", "-"), e.edges / e.total
    head = [
        f"{'circuit':{LABEL}}{e.task} in {e.model}: {e.edges:,} of {e.total:,} residual edges ({size:.2%})",
        f"{'found by':{LABEL}}{e.method}, {e.metric} (lower is better), {m.ablation} ablation",
        f"{'evaluated on':{LABEL}}{e.examples} {half} prompts, seed {e.seed}; [95 % intervals] are over prompts",
    ]
    blocks = ["\n".join(head), _means(e), "\n".join([*_faithful(m), *_random(e)]), _minimality(e), _spread(e)]
    blocks += [_ablations([m, *e.others]), _legend()]
    return "\n\n".join(filter(None, blocks))


def _means(e: Evaluation) -> str:
    m = e.measured
    rows = [["", *WHAT.values()], [f"{e.metric} ↓", *(_estimate(getattr(m, name), 4) for name in WHAT)]]
    if math.isfinite(m.accuracy["full"].value):
        rows.append(["accuracy ↑", *(_estimate(m.accuracy[name], 2) for name in WHAT)])
    return grid(rows, first=LABEL - 2)


def _faithful(m: Measured) -> list[str]:
    return [
        f"{'faithfulness ↑':{LABEL}}{_estimate(m.faithfulness, 3)}  1 is the full model, 0 everything ablated",
        f"{'completeness ↓':{LABEL}}{_estimate(m.completeness, 3)}  the same of all edges but the circuit's",
    ]


def _random(e: Evaluation) -> list[str]:
    r = e.random
    if r is None:
        return []
    lowest, highest = (number(x, 4) for x in (r.metric[0], r.metric[-1]))
    return [
        f"{'random':{LABEL}}{DRAWS} connected circuits of {r.edges} edges: {e.metric} "
        f"{number(sum(r.metric) / len(r.metric), 4)} ({lowest} to {highest}), faithfulness "
        f"{number(r.faithfulness.value, 3)};",
        f"{'':{LABEL}}the circuit's is lower by {_estimate(r.advantage, 4)} and ranks {r.rank} of {DRAWS + 1}",
    ]


def _minimality(e: Evaluation) -> str:
    if e.minimality is None:
        return ""
    edges = e.minimality.edges
    useless, needed = [x for x in edges if x.superfluous], [x for x in edges if not x.superfluous]
    few = "" if len(edges) == e.minimality.kept else f" with the smallest scores, of {e.minimality.kept},"
    lines = [
        f"{'minimality':{LABEL}}{len(useless) or 'none'} of {len(edges)} edges{few} superfluous, by the rise of "
        f"{e.metric} without the edge"
    ]
    lines += _edges(f"superfluous{f', the first {SHOWN}' if len(useless) > SHOWN else ''}", useless[:SHOWN])
    lines += _edges("least needed", needed[:SHOWN])
    return "\n".join(
        [*lines, *_edges("most needed of these" if few else "most needed", needed[SHOWN:][: -SHOWN - 1 : -1])]
    )


def _edges(title: str, edges: list[RemovedEdge]) -> list[str]:
    return [f"  {title}", *(f"    {x.name:28}{_estimate(x.rise, 4)}" for x in edges)] if edges else []


def _spread(e: Evaluation) -> str:
    s = e.spread
    rows = [["per prompt", "lowest", "quartile", "median", "quartile", "highest"]]
    rows.append([f"{e.metric} ↓", *(number(x, 4) for x in s.metric)])
    rows.append(["faithfulness ↑", *(number(x, 2) for x in s.faithfulness)])
    lines = [grid(rows, first=LABEL - 2)]
    if s.undefined:
        lines.append(f"  (without {s.undefined} prompts on which the full model is not better than everything ablated)")
    lines.append(f"  worst prompts: {e.metric}, faithfulness")
    for p in s.worst:
        text = p.text if len(p.text) <= 84 else f"…{p.text[-83:]}"
        lines.append(f"    {number(p.metric, 4):>10}{number(p.faithfulness, 2):>9}  {text}")
    return "\n".join(lines)


def _ablations(measured: list[Measured]) -> str:
    rows = [["ablation", "full model", "circuit", "ablated", "faithfulness ↑", "completeness ↓"]]
    for m in measured:
        metrics = (number(x.value, 4) for x in (m.full, m.circuit, m.ablated))
        rows.append([m.ablation, *metrics, _estimate(m.faithfulness, 3), _estimate(m.completeness, 3)])
    return grid(rows, first=LABEL - 2)


def _legend() -> str:
    after = " " * LABEL
    return "\n".join(
        line
        for name, text in LEGEND.items()
        for line in wrap(text, WIDTH, initial_indent=f"{name:{LABEL}}", subsequent_indent=after)
    )


def _estimate(x: Estimate, digits: int) -> str:
    interval = f" [{number(x.low, digits)}, {number(x.high, digits)}]" if math.isfinite(x.low) else ""
    return number(x.value, digits) + interval
