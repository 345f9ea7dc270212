"""A comparison as text, and as a page."""

import math

from acdc.errors import plural
from acdc.files.comparison import LEVELS, ComparedTask, Comparison, Judged, ModelComparison, to_rows
from acdc.report.page import render_many
from acdc.report.panels import of_comparison
from acdc.report.text import estimate, grid, heading, lines_of, number, readable

COSTS = ["method", "ranked by", "seconds", "peak MB", "AUC", "staircase AUC", "node AUC", "CPR", "CMD"]


def to_text(comparison: Comparison) -> str:
    """Return readable tables for every task: cost and ranking, faithfulness by size and by threshold, overlap."""
    return "\n\n\n".join(_task(comparison, task) for task in comparison.tasks)


def to_html(comparison: Comparison) -> str:
    """Return the page: faithfulness against edges and ROC, and a row per circuit."""
    columns, rows = to_rows(comparison)
    tasks = comparison.tasks
    methods = ", ".join(dict.fromkeys(m.name for task in tasks for m in task.methods))
    sizes = ", ".join(map(str, comparison.sizes))
    setups = [
        f"{t.name} in {t.model}: {t.metric}, {t.ablation} ablation, {plural(t.examples, 'prompt')}; "
        f"ROC against {t.reference}"
        for t in tasks
    ]
    title = " and ".join(task.name for task in tasks)
    chosen = f"the N edges {_chosen(comparison)} (N = {sizes}), and ACDC by threshold."
    compared = f"{methods} on the same prompts: {chosen}"
    links = [None] * len(rows)
    notes = [note for task in tasks for note in task.notes]
    return render_many(title, compared, "; ".join(setups), columns, rows, links, of_comparison(comparison), notes)


def _chosen(comparison: Comparison) -> str:
    """How the N edges of a circuit are chosen."""
    return "grown greedily" if comparison.greedy else "with the largest scores"


def _task(comparison: Comparison, task: ComparedTask) -> str:
    size = task.overlap.size
    costs = [COSTS]
    for m in task.methods:
        areas = [number(x, 3) for x in (m.auc, m.pessimistic_auc, m.node_auc, m.cpr, m.cmd)]
        costs.append([m.name, m.ranked_by, f"{m.seconds:.2f}", f"{m.peak_memory_mb:.0f}", *areas])
    blocks = [
        _head(task),
        f"cost, areas under the ROC curve against {task.reference}, and MIB's areas\n{grid(costs, left=2)}",
        _needed(task),
        _by_size(comparison, task),
        _by_bound(task, "threshold", "τ"),
        _by_bound(task, "target", "target"),
        f"Jaccard index of edges, at {size} edges\n" + _matrix(task, task.overlap.edges),
        f"Jaccard index of heads and MLPs, at {size} edges\n" + _matrix(task, task.overlap.components),
        "rank correlation of scores over all edges (Spearman)\n" + _matrix(task, task.overlap.scores),
        lines_of(task.notes),
    ]
    return "\n\n".join(block for block in blocks if block)


def _head(task: ComparedTask) -> str:
    full, ablated = (number(x, 4) for x in readable(task.metric, (task.full, task.ablated)))
    return (
        f"{task.name} in {task.model}: {heading(task.metric)}, {task.ablation} ablation, {task.examples} "
        f"prompts each half, seed {task.seed}\n"
        f"full model {full}{_accuracy(task.full_accuracy)}; everything ablated "
        f"{ablated}{_accuracy(task.ablated_accuracy)}; on the {task.half.replace('_', '-')} prompts\n"
        f"reference: {task.reference}, {task.reference_edges} of {task.total:,} edges"
    )


def _accuracy(accuracy: float) -> str:
    return "" if math.isnan(accuracy) else f", accuracy {accuracy:.0%}"


def _by_size(comparison: Comparison, task: ComparedTask) -> str:
    methods = [m for m in task.methods if m.circuits[0].size is not None]
    if not methods:
        return ""
    rows = [["method", *(f"top {c.size}" for c in methods[0].circuits)]]
    rows += [[m.name, *map(_cell, m.circuits)] for m in methods]
    return f"edges after pruning, faithfulness [95 % interval] of the N edges {_chosen(comparison)}\n" + grid(rows)


def _needed(task: ComparedTask) -> str:
    rows = [["method", *(f"{level:g}" for level in LEVELS)]]
    rows += [[m.name, *(number(x, 1) for x in m.needed)] for m in task.methods]
    return f"edges needed for a faithfulness on the {task.half.replace('_', '-')} prompts of\n" + grid(rows)


def _by_bound(task: ComparedTask, bound: str, name: str) -> str:
    methods = [m for m in task.methods if getattr(m.circuits[0], bound) is not None]
    if not methods:
        return ""
    title = f"edges after pruning, faithfulness [95 % interval] of ACDC by {bound}"
    if any(m.circuits[0].lost is not None for m in methods):
        title += "; in brackets, edges that the filter lost"
    rows = [[name, *(m.name for m in methods)]]
    for circuits in zip(*(m.circuits for m in methods), strict=True):
        rows.append([f"{getattr(circuits[0], bound):g}", *map(_cell, circuits)])
    return title + "\n" + grid(rows)


def _cell(c: Judged) -> str:
    interval = f"[{number(c.low, 2)}, {number(c.high, 2)}]"
    lost = "" if c.lost is None else f" ({len(c.lost)})"
    return f"{c.edges}  {number(c.faithfulness, 2):>5} {interval:>13}{lost}"


def _matrix(task: ComparedTask, values: list[list[float]]) -> str:
    """The lower triangle of a symmetric matrix; methods are numbered along the top."""
    size = len(values)
    rows = [["", "", *(f"{i}" for i in range(1, size + 1))]]
    for i, method in enumerate(task.methods, 1):
        known = [number(x, 2) for x in values[i - 1][:i]]
        rows.append([f"{i}", method.name, *known, *[""] * (size - i)])
    return grid(rows, left=2)


def models_to_text(c: ModelComparison) -> str:
    """Return readable tables of a comparison of models."""
    names = [m.folder for m in c.models]
    rows = [["model", "edges", "of", "accuracy", "kept"]]
    rows += [[m.folder, f"{m.edges:,}", f"{m.total:,}", number(m.accuracy, 2), m.bound] for m in c.models]
    faithfulness = [["circuit of", *(f"in {name}" for name in names)]]
    for i, name in enumerate(names):
        values = [m.faithfulness[i] for m in c.models]
        faithfulness.append([name, *("other graph" if x is None else estimate(x, 3) for x in values)])
    pairs = [["circuits of", "nodes", "edges", "scores"]]
    pairs += [[" and ".join(p.models), *(number(x, 2) for x in (p.nodes, p.edges, p.scores))] for p in c.pairs]
    prompts = f"{plural(c.examples, 'prompt')}, seed {c.seed}"
    head = f"{c.task} by {c.method}: {heading(c.metric)}, {c.ablation} ablation, {prompts}"
    on = f"faithfulness [95 % interval] on the {c.half.replace('_', '-')} prompts"
    shared = f"Jaccard index of node names and of edges, rank correlation of scores (Spearman)\n{grid(pairs)}"
    blocks = [head, grid(rows), f"{on}\n{grid(faithfulness)}", shared, lines_of(c.notes)]
    return "\n\n".join(block for block in blocks if block)
