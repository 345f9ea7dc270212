"""A comparison as text, and as a page."""

from __future__ import annotations

import math

from acdc.files.comparison import ComparedMethod, ComparedTask, Comparison, Judged, to_rows
from acdc.report.many import render_many
from acdc.report.panels import of_comparison
from acdc.report.text import grid, number

COSTS = ["method", "ranked by", "seconds", "peak MB", "AUC", "staircase AUC", "node AUC", "CPR", "CMD"]


def to_text(comparison: Comparison) -> str:
    """Readable tables, for every task: cost and ranking, faithfulness by size and by threshold, overlap."""
    return "\n\n\n".join(_task(comparison, task) for task in comparison.tasks)


def to_html(comparison: Comparison) -> str:
    """The page: faithfulness against edges and ROC, and a row per circuit."""
    columns, rows = to_rows(comparison)
    names = [task.name for task in comparison.tasks]
    methods = dict.fromkeys(m.name for task in comparison.tasks for m in task.methods)
    sizes = ", ".join(map(str, comparison.sizes))
    return render_many(
        " and ".join(names),
        f"{', '.join(methods)} on the same prompts: the N edges {_chosen(comparison)} (N = {sizes}), and ACDC by "
        "threshold.",
        "; ".join(
            f"{t.name} in {t.model}: {t.metric}, {t.ablation} ablation, {t.examples} prompts; ROC against {t.reference}"
            for t in comparison.tasks
        ),
        columns,
        rows,
        [None] * len(rows),
        of_comparison(comparison),
        [note for task in comparison.tasks for note in task.notes],
    )


def _chosen(comparison: Comparison) -> str:
    """How the N edges of a circuit are chosen."""
    return "grown greedily" if comparison.greedy else "with the largest scores"


def _task(comparison: Comparison, task: ComparedTask) -> str:
    sized = [m for m in task.methods if m.circuits[0].size is not None]
    swept = [m for m in task.methods if m.circuits[0].size is None]
    right = "" if math.isnan(task.full_accuracy) else f", right {task.full_accuracy:.0%}"
    wrong = "" if math.isnan(task.ablated_accuracy) else f", right {task.ablated_accuracy:.0%}"
    blocks = [
        f"{task.name} in {task.model}: {task.metric} (lower is better), {task.ablation} ablation, {task.examples} "
        f"prompts each half, seed {task.seed}\n"
        f"full model {number(task.full, 4)}{right}; everything ablated {number(task.ablated, 4)}{wrong}; on the "
        f"{task.half.replace('_', ' ')} prompts\n"
        f"reference: {task.reference}, {task.reference_edges} of {task.total:,} edges",
        grid(
            [COSTS, *map(_costs, task.methods)],
            left=2,
        ),
    ]
    if sized:
        head = ["method", *(f"top {c.size}" for c in sized[0].circuits)]
        title = f"edges after pruning, faithfulness [95 % interval] of the N edges {_chosen(comparison)}"
        blocks.append(title + "\n" + grid([head, *([m.name, *map(_cell, m.circuits)] for m in sized)]))
    if swept:
        head = ["τ", *(m.name for m in swept)]
        rows = [[f"{row[0].threshold:g}", *map(_cell, row)] for row in zip(*(m.circuits for m in swept), strict=True)]
        lost = "; in brackets, edges that the filter lost" if any(m.circuits[0].lost is not None for m in swept) else ""
        title = f"edges after pruning, faithfulness [95 % interval] of ACDC by threshold{lost}"
        blocks.append(title + "\n" + grid([head, *rows]))
    size = task.overlap.size
    blocks += [
        f"Jaccard index of edges, at {size} edges\n" + _matrix(task, task.overlap.edges),
        f"Jaccard index of heads and MLPs, at {size} edges\n" + _matrix(task, task.overlap.components),
        "rank correlation of scores over all edges (Spearman)\n" + _matrix(task, task.overlap.scores),
    ]
    return "\n\n".join([*blocks, *("\n".join(task.notes),) * bool(task.notes)])


def _costs(m: ComparedMethod) -> list[str]:
    areas = (number(x, 3) for x in (m.auc, m.pessimistic_auc, m.node_auc, m.cpr, m.cmd))
    return [m.name, m.ranked_by, f"{m.seconds:.2f}", f"{m.peak_memory_mb:.0f}", *areas]


def _cell(c: Judged) -> str:
    lost = "" if c.lost is None else f" ({len(c.lost)})"
    value, low, high = (number(x, 2) for x in (c.faithfulness, c.low, c.high))
    return f"{c.edges}  {value:>5} {f'[{low}, {high}]':>13}{lost}"


def _matrix(task: ComparedTask, values: list[list[float]]) -> str:
    """With numbers for the methods along the top, and what is below the diagonal only: the rest is the same."""
    rows = [
        [f"{i}", m.name, *(number(x, 2) for x in values[i - 1][:i])] + [""] * (len(values) - i)
        for i, m in enumerate(task.methods, 1)
    ]
    return grid([["", "", *map(str, range(1, len(values) + 1))], *rows], left=2)
