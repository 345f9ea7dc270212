"""The result of a run as text, and the difference between two."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from acdc.files.circuit import CircuitFile
from acdc.files.diff import Diff
from acdc.files.metrics import HALVES, Half, Interval, MetricsFile, read_metrics
from acdc.report.text import ARROWS, estimate, grid, heading, how, number, readable, when_removed

STRONGEST = 8  # edges shown
WIDTHS = (32, 10, 10, 10)


def to_text(file: CircuitFile, folder: Path) -> str:
    """Return a short table."""
    files = f"files     {folder}/  (report.html is the one to look at)"
    blocks = [_head(file), _metrics(file, folder / "metrics.json"), _strongest(file), _by_span(file), files]
    return "\n\n".join(block for block in blocks if block)


def _head(file: CircuitFile) -> str:
    method = file.method
    edges = file.graph.edges
    direct = file.graph.edges_with_direct
    dead = file.graph.dead
    asked = method.options.get("edges")
    counts = f"{edges.kept:,} of {edges.total:,} residual edges ({edges.kept / edges.total:.2%})"
    size = edges.kept
    if at := file.graph.edge_spans:
        size = at.kept
        counts += f" at {size:,} of {at.total:,} edge-spans ({size / at.total:.2%})"
    if isinstance(asked, int):
        counts += f", {asked:,} asked for"
        counts += f", {asked - size:,} of them on no path" if dead else ""
    if direct:
        counts += f"; {direct.kept:,} of {direct.total:,} with direct edges"
    if dead and not isinstance(asked, int):
        counts += f", {dead:,} more on no path"
    head = f"circuit   {file.task.name} in {file.model.name}: {counts}; {file.graph.nodes} nodes\n"
    found = method.name if file.of_eap_ig else how(dict(method), file.task.examples, file.task.seed)
    return f"{head}method    {found}"


class MetricRow(NamedTuple):
    """A metric on one half of the prompts, as people read it."""

    half: Half
    metric: str
    values: tuple[float | None, ...]  # of the full model, the circuit and everything ablated
    faithfulness: Interval | None  # of the circuit by this metric, if it was measured


def metric_rows(file: CircuitFile, measured: MetricsFile | None = None) -> list[MetricRow]:
    """Return the metrics of a circuit by half, the run's own first; `measured` has the faithfulness by them."""
    own = file.method.metric
    faithfulness = measured.by_metrics(own) if measured else {}
    rows = []
    for half in HALVES:
        prefix = f"{half}.circuit."
        names = [key.removeprefix(prefix) for key in file.metrics if key.startswith(prefix)]
        for name in sorted(names, key=lambda n: (n != own, n)):
            values = [file.metrics.get(f"{half}.{what}.{name}") for what in ("model", "circuit", "ablated")]
            rows.append(MetricRow(half, name, readable(name, values), faithfulness.get(half, {}).get(name)))
    return rows


def _metrics(file: CircuitFile, measured: Path) -> str:
    """Every metric, and the circuit's faithfulness by it, from the run's metrics.json if it exists."""
    rows = [[ARROWS, "full model", "circuit", "ablated", "faithfulness, 95 % interval"]]
    for row in metric_rows(file, read_metrics(measured) if measured.exists() else None):
        cells = [number(value, 4) for value in row.values]
        cells.append("" if row.faithfulness is None else estimate(row.faithfulness, 4))
        rows.append([f"{row.half.replace('_', ' ')} {heading(row.metric)}", *cells])
    return grid(rows, widths=WIDTHS)


def _strongest(file: CircuitFile) -> str:
    tested = file.method.name == "acdc"
    title = when_removed(file.method.metric) if tested else "score"
    strengths = {e.label: e.change if tested else e.score for e in file.edges}
    direct = file.model.graph.direct_index
    known = [(name, x) for name, x in strengths.items() if name not in direct and x is not None]
    known.sort(key=lambda pair: -pair[1])
    if not known:
        return ""
    lines = [f"strongest {file.unit}, {title}"]
    lines += [f"  {name:30}{strength:>12.4f}" for name, strength in known[:STRONGEST]]
    return "\n".join(lines)


def _by_span(file: CircuitFile) -> str:
    """How many edges are kept at each span."""
    if not file.spans:
        return ""
    counts = Counter(edge.span for edge in file.edges)
    return "edges by span\n" + grid([[f"  {span}", f"{counts[span]:,}"] for span in file.spans])


def overview(found: list[tuple[CircuitFile, Path]]) -> str:
    """Return one line per threshold or target."""
    first = found[0][0]
    half = metric_rows(first)[0].half
    target = first.method.threshold is None
    length = max(len(str(folder)) for _, folder in found) + 1
    head = ["target" if target else "τ", f"edges of {first.graph.edges.total:,}", "with direct"]
    head += [f"{half.replace('_', ' ')} {heading(first.method.metric)}", "faithfulness, 95 % interval"]
    rows = [[*head, "files".ljust(length)]]
    for file, folder in found:
        direct = file.graph.edges_with_direct
        faithfulness = estimate(read_metrics(folder / "metrics.json").faithfulness[half], 4)
        asked = file.method.options["faithfulness"] if target else file.method.threshold
        with_direct = f"{direct.kept:,}" if direct else "–"
        values = [f"{file.graph.edges.kept:,}", with_direct, number(metric_rows(file)[0].values[1], 4)]
        rows.append([f"{asked:g}", *values, faithfulness, f"{folder}/".ljust(length)])
    return f"circuits  {first.task.name} in {first.model.name}, {first.method.ablation} ablation\n{grid(rows)}"


def taken(folders: list[Path]) -> str:
    """Return the most memory that a run of these took, beside what was expected."""
    costs = [read_metrics(folder / "metrics.json").cost for folder in folders]
    most = max(costs, key=lambda cost: cost.peak_memory_mb)
    expected = f" (expected: {most.expected_memory_mb / 1e3:.1f})" if most.expected_memory_mb else ""
    return f"memory: {most.peak_memory_mb / 1e3:.1f} GB taken{expected}"


def diff_text(a: CircuitFile, b: CircuitFile, diff: Diff) -> str:
    """Return a summary, and a line for each changed edge."""
    sizes = f"{len(diff.added)} added, {len(diff.removed)} removed, {len(diff.rescored)} re-scored"
    direct = " (with direct edges)" if a.graph.edges_with_direct and b.graph.edges_with_direct else ""
    summary = f"{diff.shared} edges in both{direct}, Jaccard index {diff.jaccard:.2f}; {sizes}"
    return "\n\n".join(filter(None, [summary, _both(a, b), "\n".join(diff_lines(diff))]))


def _both(a: CircuitFile, b: CircuitFile) -> str:
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
