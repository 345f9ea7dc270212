"""The result of a run as text."""

from __future__ import annotations

from pathlib import Path

from acdc.files.circuit import CircuitFile
from acdc.files.metrics import read_metrics
from acdc.report.text import number


def to_text(file: CircuitFile, folder: Path) -> str:
    """The result as a short table."""
    edges, both, method = file.graph.edges, file.graph.edges_with_direct, file.method
    counts = f"{edges.kept:,} of {edges.total:,} residual edges ({edges.kept / edges.total:.2%})"
    if both:
        counts += f"; {both.kept:,} of {both.total:,} with direct edges"
    lines = [
        f"circuit   {file.task.name} in {file.model.name}: {counts}; {file.graph.nodes} nodes",
        f"method    {method.name}, {method.metric}, {_bound(file)}, {method.ablation} ablation, "
        f"{file.task.examples} prompts, seed {file.task.seed}",
        "",
        f"{'(↓ lower, ↑ higher is better)':32}{'full model':>12}{'circuit':>12}{'ablated':>12}",
    ]
    for half in ("held_out", "discovery"):
        names = [k.removeprefix(f"{half}.circuit.") for k in file.metrics if k.startswith(f"{half}.circuit.")]
        for name in sorted(names, key=lambda n: (n != method.metric, n)):
            values = (file.metrics.get(f"{half}.{what}.{name}") for what in ("model", "circuit", "ablated"))
            row = "".join(f"{number(value, 4):>12}" for value in values)
            label = f"{half.replace('_', ' ')} {name} {'↑' if name == 'accuracy' else '↓'}"
            lines.append(f"{label:32}{row}")
    lines += _faithful(folder)
    by = "change" if method.name == "acdc" else "score"
    title = f"rise of {method.metric}" if by == "change" else "score"
    lines += ["", f"{'strongest edges':32}{title:>12}"]
    strength = {e.name: getattr(e, by) for e in file.edges if e.name not in file.model.graph.direct_index}
    for name, value in sorted(((n, x) for n, x in strength.items() if x is not None), key=lambda e: -e[1])[:8]:
        lines.append(f"  {name:30}{value:>12.4f}")
    lines += ["", f"files     {folder}/  (report.html is the one to look at)"]
    return "\n".join(lines)


def _faithful(folder: Path) -> list[str]:
    """The lines on faithfulness, from metrics.json if it is there."""
    path = folder / "metrics.json"
    stated = read_metrics(path).faithfulness if path.exists() else {}
    lines = []
    for half, (value, low, high) in sorted(stated.items(), reverse=True):  # held out first
        if value is not None:
            interval = "" if low is None or high is None else f"  [{low:.4f}, {high:.4f}], 95 %"
            lines.append(f"{half.replace('_', ' ') + ' faithfulness':32}{'':12}{number(value, 4):>12}{interval}")
    return ["", *lines] if lines else []


def _bound(file: CircuitFile) -> str:
    """How many edges were kept, and by what."""
    method, options = file.method, file.method.options
    filtered = f" among {options['prefilter']}" if "prefilter" in options else ""
    if method.threshold is not None:
        return f"{'τ' if method.name == 'acdc' else 'score from'} = {method.threshold:g}{filtered}"
    ranked = ", by magnitude" if options.get("abs") else ""
    return f"{'greedy' if options.get('greedy') else 'top'} {options['edges']}{ranked}"


def overview(found: list[tuple[CircuitFile, Path]]) -> str:
    """One line per threshold."""
    first = found[0][0]
    metric = first.method.metric
    half = "held_out" if f"held_out.circuit.{metric}" in first.metrics else "discovery"
    total = f"of {first.graph.edges.total:,}"
    lines = [
        f"circuits  {first.task.name} in {first.model.name}, {first.method.ablation} ablation",
        f"{'τ':>10}{'residual edges ' + total:>28}{'with direct':>14}{half.replace('_', ' ') + ' ' + metric:>18}"
        "  files",
    ]
    for file, folder in found:
        both = file.graph.edges_with_direct
        lines.append(
            f"{file.method.threshold:>10g}{file.graph.edges.kept:>28,}{both.kept if both else '–':>14}"
            f"{round(file.metrics[f'{half}.circuit.{metric}'], 4) + 0.0:>18.4f}  {folder}/"
        )
    return "\n".join(lines)
