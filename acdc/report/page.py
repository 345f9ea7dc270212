"""`report.html`: the result of a run on one page.

The text is HTML, from `web/run.html`; the drawing is made in the browser by `web/run.js` from JSON in the page, with D3
(`web/d3.min.js`, version 7.9.0, ISC licence, as its authors publish it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from acdc.files.circuit import CircuitFile
from acdc.files.metrics import MetricsFile
from acdc.files.published import Published
from acdc.graph.circuit import Circuit
from acdc.registry import METRICS
from acdc.report.canvas import curve_path
from acdc.report.layout import lay_out
from acdc.report.render import render, shown
from acdc.report.run import metric_rows

if TYPE_CHECKING:  # it loads torch
    from acdc.evaluation.explain import Explanation, ShownPrompt

LOG_ROWS = 50_000  # decisions in the page: of a longer log, the kept edges and those nearest to the threshold
UNITS = {name: metric.unit for name, metric in METRICS.items()}


def render_report(
    file: CircuitFile,
    log: Sequence[Mapping[str, Any]] = (),
    metrics: MetricsFile | None = None,
    explanation: Explanation | None = None,
    published: Published | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        log: the decisions of ACDC
        metrics: the content of metrics.json
        explanation: what the circuit does in the model; without it the page has no curve, prompts or attention
        published: the circuit that was published for this task and graph
    """
    metric = file.method.metric
    return render(
        "run.html",
        {"data": _data(file, log, explanation, published), "log": _log_rows(log)},
        title=f"{file.task.name} in {file.model.name}",
        answer=_answer(file, metrics),
        summary=_method(file),
        notes=file.notes,
        metrics=_metric_rows(file),
        metric=metric,
        unit=UNITS.get(metric, ""),
        explanation=explanation,
        half=_words(explanation.half) if explanation else "",
        curve=[[p.edges, *p.faithfulness, *p.metric] for p in explanation.curve] if explanation else [],
        prompts=[_prompt(example) for example in explanation.examples] if explanation else [],
        residual=len(_residual(file)),
        edges=[[e.name, e.score, e.change] for e in _ranked(file)],
        log=log,
        tested=_tested(log),
        command=file.command,
        config=json.dumps(_settings(file), indent=1, ensure_ascii=False),
        version=file.environment.get("acdc", ""),
    )


# ---------------------------------------------------------------- what the script draws


def _data(
    file: CircuitFile,
    log: Sequence[Mapping[str, Any]],
    explanation: Explanation | None,
    published: Published | None,
) -> dict[str, object]:
    model, margins = file.model, {d["edge"]: d["margin"] for d in log}
    e = explanation
    return {
        "graph": {"layers": model.n_layers, "heads": model.n_heads, "inputs": model.inputs, "mlp": model.mlp},
        "method": {
            "metric": file.method.metric,
            "unit": UNITS.get(file.method.metric, ""),
            "threshold": file.method.threshold,
        },
        "layout": _layout(file.circuit()),
        "edges": [[x.name, x.score, x.change, margins.get(x.name)] for x in _residual(file)],
        "published": f"{published.name} in {published.model}, as published" if published else None,
        "source": published.source if published else None,
        "classes": published.classes if published else {},
        "half": e.half.replace("_", " ") if e else "",
        "direct": {k: _round(v) for k, v in e.direct.items()} if e else {},
        "examples": [{"clean": x.clean, "scored": x.scored} for x in e.examples] if e else [],
        "attention": {k: [(100 * p).round().astype(int).tolist() for p in v] for k, v in e.attention.items()}
        if e
        else {},
        "curve": [
            {
                "edges": p.edges,
                "metric": [_round(x) for x in p.metric],
                "faithfulness": [_round(x) for x in p.faithfulness],
            }
            for p in (e.curve if e else ())
        ],
    }


def _layout(circuit: Circuit) -> dict[str, object]:
    """Where nodes and edges are drawn; y grows downwards."""
    layout = lay_out(circuit)
    left, bottom, right, top = layout.corners
    return {
        "nodes": {name: [_round(x) for x in (b.x, -b.y, b.width, b.height)] for name, b in layout.boxes.items()},
        "paths": {name: curve_path([(round(x), -round(y)) for x, y in path]) for name, path in layout.paths.items()},
        "labels": [[text, _round(-y)] for text, y in layout.labels],
        "corners": [_round(x) for x in (left, -top, right, -bottom)],
    }


def _round(x: float) -> float:
    return float(f"{x:.5g}")


def _log_rows(log: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    """Decisions in their order: edge, change, margin, metric, whether it was kept."""
    if len(log) > LOG_ROWS:
        nearest = sorted(range(len(log)), key=lambda i: (not log[i]["kept"], abs(log[i]["margin"])))[:LOG_ROWS]
        log = [log[i] for i in sorted(nearest)]
    return [[d["edge"], _round(d["change"]), _round(d["margin"]), _round(d["metric"]), int(d["kept"])] for d in log]


def _residual(file: CircuitFile) -> list[Any]:
    direct = file.model.graph.direct_index
    return [e for e in file.edges if e.name not in direct]


def _ranked(file: CircuitFile) -> list[Any]:
    return sorted(file.edges, key=lambda e: (e.score is None, -abs(e.score or 0.0)))


# ---------------------------------------------------------------- what is written


def _answer(file: CircuitFile, metrics: MetricsFile | None) -> str:
    """The result in a sentence or two."""
    edges = file.graph.edges
    half = metrics.half if metrics else "held_out"
    value, low, high = metrics.faithfulness[half] if metrics else (None, None, None)
    text = f"{edges.kept:,} of the {edges.total:,} edges of {file.model.name} ({edges.kept / edges.total:.2%})"
    if value is None:
        text += f" are the circuit that {file.method.name} finds for {file.task.name}."
    else:
        interval = "" if low is None or high is None else f" (95 % interval {low:.1%} to {high:.1%})"
        which = "it was not searched on" if half == "held_out" else "it was found with"
        text += f" recover {value:.1%}{interval} of what it does on {file.task.name}"
        text += f", by {file.method.metric} on {file.task.examples} prompts {which}."
    accuracies = [file.metrics.get(f"{half}.{what}.accuracy") for what in ("circuit", "model", "ablated")]
    if None in accuracies:
        return text
    circuit, model, ablated = accuracies
    return (
        f"{text} The circuit answers {circuit:.1%} of them correctly, the full model {model:.1%}, "
        f"and with everything ablated {ablated:.1%}."
    )


def _method(file: CircuitFile) -> str:
    """How the circuit was found, and what its edges are."""
    method = file.method
    threshold = "" if method.threshold is None else f" and threshold {shown(method.threshold)}"
    direct = file.graph.edges_with_direct
    counted = f" (with direct edges {direct.kept:,} of {direct.total:,})" if direct else ""
    return (
        f"Found by {method.name} with {method.metric}{threshold}, {method.ablation} ablation, {file.task.examples} "
        f"prompts, seed {file.task.seed}. {file.graph.nodes} nodes; residual edges are counted{counted}."
    )


def _metric_rows(file: CircuitFile) -> list[list[object]]:
    """Label, full model, circuit and everything ablated, by half and metric."""
    rows: list[list[object]] = []
    for half, name, values in metric_rows(file):
        better = "higher is better" if name == "accuracy" else "lower is better"
        unit = f"{UNITS[name]}, " if name in UNITS else ""
        rows.append([f"{_words(half)} {name} ({unit}{better})", *values])
    return rows


def _prompt(example: ShownPrompt) -> dict[str, object]:
    pairs = zip(example.clean, example.corrupted, strict=False)
    answers = []
    for label, texts in (("correct", example.correct), ("wrong", example.wrong)):
        if texts:
            answers.append(f"{label} " + ", ".join(json.dumps(text, ensure_ascii=False) for text in texts))
    return {
        "clean": example.clean,
        "corrupted": example.corrupted,
        "changed": [i for i, (clean, corrupted) in enumerate(pairs) if clean != corrupted],
        "scored": example.scored,
        "answers": "; ".join(answers),
        "predictions": example.predictions,
    }


def _tested(log: Sequence[Mapping[str, Any]]) -> str:
    kept = sum(bool(d["kept"]) for d in log)
    text = f"{len(log):,} edges were tested one by one, {kept:,} kept"
    if len(log) > LOG_ROWS:
        text += f"; shown are the kept ones and those nearest to τ, {LOG_ROWS:,} in all"
    return text


def _settings(file: CircuitFile) -> dict[str, object]:
    return {
        "task": file.task.model_dump(),
        "model": file.model.model_dump(),
        "method": file.method.model_dump(),
        "environment": dict(file.environment),
    }


def _words(half: str) -> str:
    return half.replace("_", " ")
