"""The result of a run as text."""

from pathlib import Path

from acdc.files.circuit import CircuitFile
from acdc.files.metrics import read_metrics
from acdc.report.text import bound, grid, number

STRONGEST = 8  # edges shown
WIDTHS = (32, 10, 10, 10)


def to_text(file: CircuitFile, folder: Path) -> str:
    """Return a short table."""
    files = f"files     {folder}/  (report.html is the one to look at)"
    blocks = [_head(file), _metrics(file), _faithfulness(folder), _strongest(file), files]
    return "\n\n".join(block for block in blocks if block)


def _head(file: CircuitFile) -> str:
    method = file.method
    edges = file.graph.edges
    direct = file.graph.edges_with_direct
    counts = f"{edges.kept:,} of {edges.total:,} residual edges ({edges.kept / edges.total:.2%})"
    if direct:
        counts += f"; {direct.kept:,} of {direct.total:,} with direct edges"
    head = f"circuit   {file.task.name} in {file.model.name}: {counts}; {file.graph.nodes} nodes\n"
    if file.of_eap_ig:
        return f"{head}method    {method.name}"
    limit = bound(method.name, method.threshold, method.options)
    return (
        f"{head}method    {method.name}, {method.metric}, {limit}, {method.ablation} ablation, "
        f"{file.task.examples} prompts, seed {file.task.seed}"
    )


def metric_rows(file: CircuitFile) -> list[tuple[str, str, list[float | None]]]:
    """Return half, metric, and its values for full model, circuit and everything ablated. The run's metric is first."""
    rows = []
    for half in ("held_out", "discovery"):
        prefix = f"{half}.circuit."
        names = [key.removeprefix(prefix) for key in file.metrics if key.startswith(prefix)]
        for name in sorted(names, key=lambda n: (n != file.method.metric, n)):
            values = [file.metrics.get(f"{half}.{what}.{name}") for what in ("model", "circuit", "ablated")]
            rows.append((half, name, values))
    return rows


def _metrics(file: CircuitFile) -> str:
    rows = [["(↓ lower, ↑ higher is better)", "full model", "circuit", "ablated"]]
    for half, name, values in metric_rows(file):
        arrow = "↑" if name == "accuracy" else "↓"
        rows.append([f"{half.replace('_', ' ')} {name} {arrow}", *(number(value, 4) for value in values)])
    return grid(rows, widths=WIDTHS)


def _faithfulness(folder: Path) -> str:
    """Faithfulness with its interval, from the run's metrics.json if it exists."""
    path = folder / "metrics.json"
    if not path.exists():
        return ""
    lines = []
    for half, (value, low, high) in sorted(read_metrics(path).faithfulness.items(), reverse=True):  # held out first
        if value is None:
            continue
        line = grid([[f"{half.replace('_', ' ')} faithfulness", "", number(value, 4)]], widths=WIDTHS[:3])
        interval = "" if low is None or high is None else f"  [{low:.4f}, {high:.4f}], 95 %"
        lines.append(line + interval)
    return "\n".join(lines)


def _strongest(file: CircuitFile) -> str:
    tested = file.method.name == "acdc"
    title = f"rise of {file.method.metric}" if tested else "score"
    strengths = {e.name: e.change if tested else e.score for e in file.edges}
    direct = file.model.graph.direct_index
    known = [(name, x) for name, x in strengths.items() if name not in direct and x is not None]
    known.sort(key=lambda pair: -pair[1])
    lines = [f"{'strongest edges':32}{title:>12}"]
    lines += [f"  {name:30}{strength:>12.4f}" for name, strength in known[:STRONGEST]]
    return "\n".join(lines)


def overview(found: list[tuple[CircuitFile, Path]]) -> str:
    """Return one line per threshold or target."""
    first = found[0][0]
    metric = first.method.metric
    half = "held_out" if f"held_out.circuit.{metric}" in first.metrics else "discovery"
    edges = f"residual edges of {first.graph.edges.total:,}"
    target = first.method.threshold is None
    rows = [["target" if target else "τ", edges, "with direct", f"{half.replace('_', ' ')} {metric}"]]
    for file, _ in found:
        direct = file.graph.edges_with_direct
        with_direct = f"{direct.kept:,}" if direct else "–"
        value = number(file.metrics[f"{half}.circuit.{metric}"], 4)
        asked = file.method.options["faithfulness"] if target else file.method.threshold
        rows.append([f"{asked:g}", f"{file.graph.edges.kept:,}", with_direct, value])
    table = grid(rows, left=0, widths=(10, 26, 12, 16)).splitlines()
    folders = ["files", *(f"{folder}/" for _, folder in found)]
    lines = [f"circuits  {first.task.name} in {first.model.name}, {first.method.ablation} ablation"]
    lines += [f"{row}  {folder}" for row, folder in zip(table, folders, strict=True)]
    return "\n".join(lines)
