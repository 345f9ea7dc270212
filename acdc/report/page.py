"""HTML pages from the Jinja templates in `web/`: one file each, complete and readable offline.

The text is HTML. The scripts in `web/` make the drawing and the plots in the browser, from JSON in the page, with D3
(`web/d3.min.js`, version 7.9.0, ISC licence, as its authors publish it).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from acdc.errors import plural
from acdc.files.circuit import CircuitFile
from acdc.files.metrics import MetricsFile
from acdc.files.parts import Edge
from acdc.files.published import Published
from acdc.io.files import plain
from acdc.registry import METRICS
from acdc.report.canvas import curve_path
from acdc.report.layout import Layout, Point, lay_out
from acdc.report.panels import Panel, labels
from acdc.report.picture import MOST, title_of
from acdc.report.positions import Prompted, lay_out_by_position
from acdc.report.run import metric_rows
from acdc.report.text import bound, estimate, heading, label, readable, readable_estimate, worse

if TYPE_CHECKING:  # it loads torch
    from acdc.evaluation.explain import Explanation, ShownPrompt
    from acdc.evaluation.features import Place, Weighted

WEB = Path(__file__).parent / "web"
ANSWERS = 5  # shown of a prompt
LOG_ROWS = 50_000  # decisions in the page: of a longer log, the kept edges and those nearest to the threshold
UNITS = {name: metric.unit for name, metric in METRICS.items()}


def render_report(
    file: CircuitFile,
    log: Sequence[Mapping[str, Any]] = (),
    metrics: MetricsFile | None = None,
    explanation: Explanation | None = None,
    published: Published | None = None,
) -> str:
    """Return `report.html`, the result of a run. `log` are the decisions of ACDC; without `explanation` the page has no
    curve, prompts or attention; `published` is the circuit that was published for this task and graph."""
    metric = file.method.metric
    direct = file.model.graph.direct_index
    residual = [edge for edge in file.edges if edge.name not in direct]
    changes = any(e.change is not None for e in file.edges)
    margins = {d["edge"]: d["margin"] for d in log}
    model = file.model
    data = {
        "task": file.task.name,
        "model": {"name": model.name, "hash": model.hash},
        "measure": "frequency" if file.method.name == "stability" else "score",
        "most": MOST,
        "graph": {"layers": model.n_layers, "heads": model.n_heads, "inputs": model.inputs, "mlp": model.mlp},
        "method": {
            "metric": metric,
            "unit": UNITS.get(metric, ""),
            "effect": f"{worse(metric)} in {metric}",
            "threshold": file.method.threshold,
        },
        "layout": _layout(lay_out(file.circuit().union())),
        "edges": [[e.name, e.score, e.change, margins.get(e.name)] for e in file.union().edges if e.name not in direct],
        **({"positions": _positions(file, residual, margins, explanation)} if file.spans else {}),
        "published": f"{published.name} in {published.model}, as published" if published else None,
        "source": published.source if published else None,
        "classes": published.classes if published else {},
        **_explained(explanation, metric),
    }
    ranked = sorted(file.edges, key=lambda e: (e.score is None, -abs(e.score or 0.0)))
    settings = {"task": file.task, "model": model, "method": file.method}
    config = {name: part.model_dump() for name, part in settings.items()} | {"environment": dict(file.environment)}
    return _render(
        "run.html",
        {"data": data, "log": _log_rows(log, metric)},
        title=f"{file.task.name} in {model.name}",
        tab=title_of(file),
        answer=_answer(file, metrics),
        summary=_method(file),
        notes=file.notes,
        metrics=_metric_rows(file, metrics),
        explanation=explanation,
        curve=[
            [p.edges, estimate(p.faithfulness, 3), estimate(readable_estimate(metric, p.metric), 4)]
            for p in (explanation.curves[explanation.half] if explanation else ())
        ],
        target=_target(file),
        prompts=[_prompt(example) for example in explanation.examples] if explanation else [],
        scored=any(e.score is not None for e in residual),
        changes=changes,
        edges=[[e.name] + [e.span] * bool(file.spans) + [e.score] + [e.change] * changes for e in ranked],
        log=log,
        tested=_tested(log, file),
        command=file.command,
        config=json.dumps(config, indent=1, ensure_ascii=False),
        version=file.environment.get("acdc", ""),
    )


def render_many(
    title: str,
    description: str,
    summary: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    links: Sequence[str | None],
    panels: Sequence[Panel],
    notes: Sequence[str] = (),
) -> str:
    """Return the page of a sweep or a comparison: plots whose points lead to the runs, and a table. `links` has for
    each row the path of the run's page relative to this one; points of the panels name their row."""
    plots = [asdict(panel) for panel in panels]
    data = {"columns": columns, "rows": rows, "links": links, "panels": plots, "labels": labels(panels)}
    return _render(
        "many.html",
        {"data": data},
        title=title,
        tab=title,
        answer=description,
        summary=summary,
        notes=notes,
        linked=any(links),
        version=version("acdc-circuits"),
    )


def _render(template: str, data: Mapping[str, object], **values: object) -> str:
    """Return a page as HTML. Every value is escaped; nothing is loaded from a network. `data` is what the page's script
    reads, as JSON, by element id; NaN and infinity become null."""
    return _environment().get_template(template).render(data=plain(data), **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(WEB), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    dumps = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    environment.policies["json.dumps_kwargs"] = dumps
    # Our own CSS or JavaScript, which isn't a template: D3 may contain `{{`.
    environment.globals["source"] = lambda name: (WEB / name).read_text(encoding="utf-8")
    environment.filters["shown"] = _shown
    return environment


def _shown(value: object) -> str:
    """A table cell's text: four digits of a float, – for None and NaN."""
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return "–" if math.isnan(value) else f"{value:.4g}"


# ---------------------------------------------------------------- what the script of a run draws


def _layout(layout: Layout) -> dict[str, object]:
    """Where nodes and edges are drawn; y grows downwards."""
    left, bottom, right, top = layout.corners
    return {
        "nodes": {name: [_round(x) for x in (b.x, -b.y, b.width, b.height)] for name, b in layout.boxes.items()},
        "paths": {name: _line(path) for name, path in layout.paths.items()},
        "labels": [[text, _round(-y)] for text, y in layout.labels],
        "corners": [_round(x) for x in (left, -top, right, -bottom)],
    }


def _line(path: list[Point]) -> list[object]:
    """The line of an edge without its arrowhead, and x and y of the arrow's tip."""
    points = [(round(x), -round(y)) for x, y in path]
    return [curve_path(points[:-3]), *points[-1]]


def _positions(
    file: CircuitFile, edges: Sequence[Edge], margins: Mapping[str, float], explanation: Explanation | None
) -> dict[str, object]:
    """The circuit by span: its edges and where they are drawn."""
    prompted = Prompted.of(file, explanation)
    layout = lay_out_by_position(file.circuit(), prompted)
    more: dict[str, object] = {
        "columns": [[_round(c.x), _round(c.width), c.lines, c.folded] for c in layout.columns],
        "axis": _round(-layout.axis),
        "moves": [[m.head, m.start, m.end, m.attention, *_line(m.path)] for m in layout.moves],
    }
    if layout.answer:
        more["answer"] = [prompted.answer, _round(layout.answer[0]), _round(-layout.answer[1])]
    rows = [[e.name, e.score, e.change, margins.get(e.label), e.span] for e in edges]
    return {"layout": _layout(layout) | more, "edges": rows}


def _explained(explanation: Explanation | None, of: str) -> dict[str, object]:
    if explanation is None:
        return {"half": "", "direct": {}, "examples": [], "attention": {}, "signals": {}, "curve": [], "searched": []}
    curves: dict[str, list[dict[str, object]]] = {explanation.half: [], "discovery": []}
    for half, points in explanation.curves.items():
        for p in points:
            metric = [None if x is None else _round(x) for x in readable_estimate(of, p.metric)]
            point = {"edges": p.edges, "metric": metric, "faithfulness": [_round(x) for x in p.faithfulness]}
            curves[half].append(point)
    attention = {}
    for head, patterns in explanation.attention.items():
        attention[head] = [(100 * pattern).round().astype(int).tolist() for pattern in patterns]  # percent
    return {
        "half": _words(explanation.half),
        "direct": {sender: _round(logits) for sender, logits in explanation.direct.items()},
        "examples": [{"clean": x.clean, "scored": x.scored} for x in explanation.examples],
        "attention": attention,
        "signals": _signals(explanation),
        **({"features": _features(explanation)} if explanation.features else {}),
        "curve": curves[explanation.half],
        "searched": curves["discovery"] if explanation.half != "discovery" else [],
    }


def _features(explanation: Explanation) -> dict[str, list[tuple[str, str]]]:
    """What is said of each feature in the circuit: headings and texts."""

    def listed(values: Weighted) -> str:
        return ", ".join(f"{name} {value:+.3g}" for name, value in values)

    def quoted(values: Weighted) -> Weighted:
        return tuple((json.dumps(text, ensure_ascii=False), value) for text, value in values)

    def placed(places: Sequence[Place]) -> str:
        return listed(quoted(tuple((f"{before}[{token}]", value) for before, token, value in places))) or "no token"

    out = {}
    paired = any(feature.corrupted for feature in explanation.features.values())
    for node, feature in explanation.features.items():
        out[node] = [
            ("active on", placed(feature.clean)),
            *([("if corrupted", placed(feature.corrupted))] if paired else []),
            ("raises", listed(quoted(feature.raises))),
            ("lowers", listed(quoted(feature.lowers))),
            ("fed by", listed(feature.fed) or "no feature before it"),
        ]
    return out


def _signals(explanation: Explanation) -> dict[str, list[object]]:
    """Head → for each edge into its query or key its name, and what it adds in each example: query, key, attention with
    and without the edge in percent, what is added, and how many terms of all make 90 % of it."""
    out: dict[str, list[object]] = {}
    for edge, pairs in explanation.signals.items():
        rows = []
        for p in pairs:
            percent = [round(100 * x) for x in (p.attention, p.without)]
            rows.append([p.query, p.key, *percent, _round(p.added), len(p.fewest), len(p.terms)])
        out.setdefault(edge.split("->")[1].split("<")[0], []).append([edge, rows])
    return out


def _target(file: CircuitFile) -> bool:
    """Whether the circuit was found by elimination, to a faithfulness or a number of edges."""
    return file.method.name == "acdc" and file.method.threshold is None


def _round(x: float) -> float:
    return float(f"{x:.5g}")


def _log_rows(log: Sequence[Mapping[str, Any]], metric: str) -> list[list[object]]:
    """Decisions in their order: edge, change for the worse, margin, metric, whether it was kept."""
    if len(log) > LOG_ROWS:
        nearest = sorted(range(len(log)), key=lambda i: (not log[i]["kept"], abs(log[i]["margin"])))[:LOG_ROWS]
        log = [log[i] for i in sorted(nearest)]
    rows = []
    for d in log:
        (after,) = readable(metric, [_round(d["metric"])])
        rows.append([d["edge"], _round(d["change"]), _round(d["margin"]), after, int(d["kept"])])
    return rows


# ---------------------------------------------------------------- what the page of a run says


def _answer(file: CircuitFile, metrics: MetricsFile | None) -> str:
    """The result in a sentence or two."""
    edges = file.graph.edges
    half = metrics.half if metrics else "held_out"
    value, low, high = metrics.faithfulness[half] if metrics else (None, None, None)
    text = f"{edges.kept:,} of the {edges.total:,} edges of {file.model.name} ({edges.kept / edges.total:.2%})"
    if at := file.graph.edge_spans:
        text += f", at {at.kept:,} of {at.total:,} edge-spans,"
    if value is None:
        found = "in the file" if file.of_eap_ig else f"that {file.method.name} finds"
        text += f" are the circuit {found} for {file.task.name}."
    else:
        interval = "" if low is None or high is None else f" (95 % interval {low:.1%} to {high:.1%})"
        prompts = plural(file.task.examples, "held-out prompt" if half == "held_out" else "prompt")
        prompts += "" if half == "held_out" else " it was found with"
        text += f" recover {value:.1%}{interval} of what it does on {file.task.name}"
        text += f", measured by {label(file.method.metric)} on {prompts}."
    accuracies = [file.metrics.get(f"{half}.{what}.accuracy") for what in ("circuit", "model", "ablated")]
    if None in accuracies:
        return text
    circuit, model, ablated = accuracies
    others = f"the full model {model:.1%}, and with everything ablated {ablated:.1%}."
    return f"{text} The circuit answers {circuit:.1%} of them correctly, {others}"


def _method(file: CircuitFile) -> str:
    """How the circuit was found, and what its edges are."""
    method = file.method
    if file.of_eap_ig:
        return f"Read from EAP-IG's format. {file.graph.nodes} nodes; residual edges are counted."
    limit = "" if method.threshold is None else f" and threshold {_shown(method.threshold)}"
    if _target(file):
        limit = f", {bound(method.name, method.threshold, method.options)}"
    direct = file.graph.edges_with_direct
    counted = f" (with direct edges {direct.kept:,} of {direct.total:,})" if direct else ""
    prompts = f"{plural(file.task.examples, 'prompt')}, seed {file.task.seed}"
    nodes = f"{file.graph.nodes} nodes; residual edges are counted{counted}."
    return f"Found by {method.name} with {method.metric}{limit}, {method.ablation} ablation, {prompts}. {nodes}"


def _metric_rows(file: CircuitFile, measured: MetricsFile | None) -> list[list[object]]:
    """Label, full model, circuit and everything ablated, and faithfulness, by half and metric."""
    rows: list[list[object]] = []
    for row in metric_rows(file, measured):
        unit = f" ({UNITS[row.metric]})" if row.metric in UNITS else ""
        cells = [] if measured is None else ["" if row.faithfulness is None else estimate(row.faithfulness, 3)]
        rows.append([f"{_words(row.half)} {heading(row.metric)}{unit}", *row.values, *cells])
    return rows


def _prompt(example: ShownPrompt) -> dict[str, object]:
    """The prompt as the template shows it."""
    pairs = zip(example.clean, example.corrupted, strict=False)
    answers = []
    for which, texts in (("correct", example.correct), ("wrong", example.wrong)):
        if texts:
            shown = [json.dumps(text, ensure_ascii=False) for text in texts[:ANSWERS]]
            cut = f", … ({len(texts):,} in all)" if len(texts) > ANSWERS else ""
            answers.append(f"{which} {', '.join(shown)}{cut}")
    changed = [i for i, (clean, corrupted) in enumerate(pairs) if clean != corrupted]
    return asdict(example) | {"changed": changed, "answers": "; ".join(answers)}


def _tested(log: Sequence[Mapping[str, Any]], file: CircuitFile) -> str:
    if _target(file):
        return f"{len(log):,} tests and changes of edges"
    kept = sum(bool(d["kept"]) for d in log)
    text = f"{len(log):,} edges were tested one by one, {kept:,} kept"
    if len(log) > LOG_ROWS:
        text += f"; shown are the kept ones and those nearest to τ, {LOG_ROWS:,} in all"
    return text


def _words(half: str) -> str:
    return half.replace("_", "-")
