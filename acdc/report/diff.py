"""The difference between two circuits as text."""

from acdc.files.circuit import CircuitFile
from acdc.files.diff import Diff
from acdc.report.run import metric_rows
from acdc.report.text import ARROWS, grid, heading, number


def diff_text(a: CircuitFile, b: CircuitFile, diff: Diff) -> str:
    """Return a summary, and a line for each changed edge."""
    sizes = f"{len(diff.added)} added, {len(diff.removed)} removed, {len(diff.rescored)} re-scored"
    direct = " (with direct edges)" if a.graph.edges_with_direct and b.graph.edges_with_direct else ""
    summary = f"{diff.shared} edges in both{direct}, Jaccard index {diff.jaccard:.2f}; {sizes}"
    return "\n\n".join(filter(None, [summary, _metrics(a, b), "\n".join(diff_lines(diff))]))


def _metrics(a: CircuitFile, b: CircuitFile) -> str:
    """The sizes of both circuits, and the metrics that both files have."""
    of_b = {(row.half, row.metric): row.values[1] for row in metric_rows(b)}
    rows = [[ARROWS if of_b else "", "a", "b"]]
    rows.append(["residual edges", f"{a.graph.edges.kept:,}", f"{b.graph.edges.kept:,}"])
    for row in metric_rows(a):
        if (row.half, row.metric) in of_b:
            label = f"{row.half.replace('_', ' ')} {heading(row.metric)}"
            rows.append([label, number(row.values[1], 4), number(of_b[row.half, row.metric], 4)])
    return grid(rows)


def diff_lines(diff: Diff) -> list[str]:
    """Return a line for each changed edge: + added, - removed, ~ re-scored."""
    lines = [f"+ {name}" for name in diff.added]
    lines += [f"- {name}" for name in diff.removed]
    lines += [f"~ {name}  {before:.4g} → {after:.4g}" for name, before, after in diff.rescored]
    return lines
