"""`report.html`: the result of a run on one page that needs nothing else and asks nothing of a network.

What can be read is HTML, written here; what can be played with is drawn by `web/run.js` from JSON in the page, with D3
(`web/d3.min.js`, version 7.9.0, ISC licence, as its authors publish it).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from acdc.files.circuit import CircuitFile, Kept
from acdc.files.metrics import MetricsFile
from acdc.files.published import Published
from acdc.graph.circuit import Circuit
from acdc.io.files import plain
from acdc.report.canvas import curve_path
from acdc.report.layout import lay_out

if TYPE_CHECKING:  # it loads torch
    from acdc.evaluation.explain import Explanation

WEB = Path(__file__).parent / "web"
LOG_ROWS = 50_000  # decisions in the page: of more, those that were kept and those nearest to the threshold
UNITS = {"kl": "nats", "nll": "nats", "logit-diff": "logits", "l2": "squared logits", "prob-diff": "of probability"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

KINDS = (("q", "queries"), ("k", "keys"), ("v", "values"), ("plain", "MLPs and logits"))


def render_report(
    file: CircuitFile,
    log: Sequence[Mapping[str, Any]] = (),
    metrics: MetricsFile | None = None,
    explanation: Explanation | None = None,
    published: Published | None = None,
) -> str:
    """The page as HTML text.

    Args:
        log: the decisions of ACDC
        metrics: the content of metrics.json
        explanation: what is seen of the circuit in the model; without it the page has no curve, prompts or attention
        published: the circuit that was published for this task and graph
    """
    title = f"{file.task.name} in {file.model.name}"
    body = template("run.html").substitute(
        title=escape(title),
        answer=escape(_answer(file, metrics)),
        method=escape(_method(file)),
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in file.notes),
        edges=max(1, len(_residual(file))),
        kinds=" ".join(
            f'<label><input type="checkbox" id="kind-{kind}" checked>'
            f'<span class="key" style="border-color:var(--{kind})"></span>{text}</label>'
            for kind, text in KINDS
        ),
        metrics=_metrics(file),
        curve=_curve(explanation),
        examples=_examples(explanation),
        table=_table(["edge", "score", "change"], [[e.name, e.score, e.change] for e in _ranked(file)]),
        decisions=_decisions(file, log),
        command=escape(file.command),
        config=escape(json.dumps(_settings(file), indent=1, ensure_ascii=False)),
        version=escape(file.environment.get("acdc", "")),
    )
    data = {"data": _data(file, log, explanation, published), "log": _log_rows(log)}
    return page(title, body, data, "run.js")


def template(name: str) -> Template:
    """A file of `web/`, with places for `$name`."""
    return Template((WEB / name).read_text(encoding="utf-8"))


def page(title: str, body: str, data: Mapping[str, object], script: str) -> str:
    """A whole page.

    Args:
        body: HTML
        data: by element id, what the script reads
        script: name of the file in `web/`
    """
    return template("page.html").substitute(
        policy=POLICY,
        title=escape(title),
        style=(WEB / "page.css").read_text(encoding="utf-8"),
        body=body,
        data="\n".join(f'<script type="application/json" id="{k}">{_json(v)}</script>' for k, v in data.items()),
        d3=(WEB / "d3.min.js").read_text(encoding="utf-8"),
        script="\n".join((WEB / name).read_text(encoding="utf-8") for name in ("common.js", script)),
    )


def _json(value: object) -> str:
    """JSON that ends no script element and begins no comment, whatever its texts are."""
    text = json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


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


# ---------------------------------------------------------------- what can be read


def _answer(file: CircuitFile, metrics: MetricsFile | None) -> str:
    """The result in a sentence or two."""
    edges, metric = file.graph.edges, file.method.metric
    text = f"{edges.kept:,} of the {edges.total:,} edges of {file.model.name} ({edges.kept / edges.total:.2%})"
    half = metrics.half if metrics else "held_out"
    value, low, high = metrics.faithfulness[half] if metrics else (None, None, None)
    prompts = f"{file.task.examples} prompts " + (
        "it was not searched on" if half == "held_out" else "it was found with"
    )
    if value is None:
        text += f" are the circuit that {file.method.name} finds for {file.task.name}."
    else:
        interval = "" if low is None or high is None else f" (95 % interval {low:.1%} to {high:.1%})"
        text += f" recover {value:.1%}{interval} of what it does on {file.task.name}, by {metric} on {prompts}."
    right = [file.metrics.get(f"{half}.{what}.accuracy") for what in ("circuit", "model", "ablated")]
    if None not in right:
        said = "The circuit answers {:.1%} of them right, the full model {:.1%}, everything ablated {:.1%}."
        text += " " + said.format(*right)
    return text


def _method(file: CircuitFile) -> str:
    method, direct = file.method, file.graph.edges_with_direct
    text = f"Found by {method.name} with {method.metric}"
    text += f" and threshold {_shown(method.threshold)}" if method.threshold is not None else ""
    text += f", {method.ablation} ablation, {file.task.examples} prompts, seed {file.task.seed}. "
    text += f"{file.graph.nodes} nodes; residual edges are counted"
    return text + (f" (with direct edges {_of(direct)})." if direct else ".")


def _of(count: Kept) -> str:
    return f"{count.kept:,} of {count.total:,}"


def _metrics(file: CircuitFile) -> str:
    """Full model, circuit and everything ablated, by half and metric."""
    rows = []
    for half in ("held_out", "discovery"):
        names = [k.removeprefix(f"{half}.circuit.") for k in file.metrics if k.startswith(f"{half}.circuit.")]
        for name in sorted(names, key=lambda n: (n != file.method.metric, n)):
            better = "higher is better" if name == "accuracy" else "lower is better"
            label = f"{half.replace('_', ' ')} {name} ({UNITS[name]}, {better})" if name in UNITS else ""
            values = [file.metrics.get(f"{half}.{what}.{name}") for what in ("model", "circuit", "ablated")]
            rows.append([label or f"{half.replace('_', ' ')} {name} ({better})", *values])
    return _table(["", "full model", "circuit", "everything ablated"], rows) if rows else ""


def _curve(explanation: Explanation | None) -> str:
    if explanation is None:
        return (
            '<p class="soft">The faithfulness of the strongest edges alone, prompts, attention and direct effects need '
            "the model: they are in the report.html that acdc run writes.</p>"
        )
    if not explanation.curve:
        return ""
    return (
        "<h3>The strongest edges alone</h3>"
        f'<p class="soft small">Faithfulness (1: the full model; 0: everything ablated) with its 95 % interval, on the '
        f"{escape(explanation.half.replace('_', ' '))} prompts. The ring is the measured circuit nearest to what the "
        'drawing shows.</p><div id="curve"></div>'
        "<details><summary>As a table</summary>"
        + _table(
            ["edges", "faithfulness", "low", "high", "metric", "low", "high"],
            [[p.edges, *p.faithfulness, *p.metric] for p in explanation.curve],
        )
        + "</details>"
    )


def _examples(explanation: Explanation | None) -> str:
    if explanation is None:
        return ""
    parts = []
    for number, example in enumerate(explanation.examples, 1):
        same = len(example.clean) == len(example.corrupted)
        changed = {i for i, pair in enumerate(zip(example.clean, example.corrupted, strict=same)) if pair[0] != pair[1]}
        answers = f"correct {_said(example.correct)}" if example.correct else ""
        answers += f"; wrong {_said(example.wrong)}" if example.wrong else ""
        tables = "".join(
            f"<div><h3>{what}</h3>{_table(['next token', 'probability'], tokens)}</div>"
            for what, tokens in (
                ("full model", example.predictions["model"]),
                ("circuit", example.predictions["circuit"]),
                ("everything ablated", example.predictions["ablated"]),
            )
        )
        parts.append(
            f'<div class="example"><h3>Prompt {number}</h3>'
            f'<p class="tokens">clean <bdi>{_tokens(example.clean, changed, example.scored)}</bdi></p>'
            f'<p class="tokens">corrupted <bdi>{_tokens(example.corrupted, changed, example.scored)}</bdi></p>'
            f'<p class="soft">{escape(answers)}</p><div class="predictions">{tables}</div></div>'
        )
    return (
        f"<section><h2>Prompts</h2><p class='soft small'>Of the {escape(explanation.half.replace('_', ' '))} half. "
        "Where clean and corrupted differ tokens are marked; underlined: where the answer is predicted. A removed edge "
        f"carries what its sender writes under the run's ablation.</p>{''.join(parts)}</section>"
    )


def _said(texts: Sequence[str]) -> str:
    return ", ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _tokens(tokens: Sequence[str], changed: set[int], scored: int) -> str:
    out = []
    for i, token in enumerate(tokens):
        kinds = " ".join(["token", *["changed"] * (i in changed), *["scored"] * (i == scored)])
        out.append(f'<span class="{kinds}">{escape(token)}</span>')
    return "".join(out)


def _decisions(file: CircuitFile, log: Sequence[Mapping[str, Any]]) -> str:
    """The searchable table of decisions; the script fills it."""
    if not log:
        return ""
    kept = sum(bool(d["kept"]) for d in log)
    most = (
        f"; here are those that were kept, and those nearest to τ, {LOG_ROWS:,} in all" if len(log) > LOG_ROWS else ""
    )
    unit = UNITS.get(file.method.metric, "")
    heads = ("edge", f"change of {file.method.metric}", "margin", f"{file.method.metric} after it", "decision")
    head = "".join(f'<th aria-sort="none"><button type="button">{escape(h)}</button></th>' for h in heads)
    return (
        "<section><h2>Decisions</h2><details><summary>"
        f"{len(log):,} edges were tested one by one, {kept:,} kept{most}</summary>"
        f'<p class="soft small">In the order they were taken; in {escape(unit)}. Margin: threshold − change, how far '
        "the decision was from the other one. Click a heading to sort.</p>"
        '<div class="tools"><label>Find <input type="search" id="logsearch" autocomplete="off"></label>'
        '<label><input type="checkbox" id="logkept"> kept only</label>'
        '<span id="logcount" aria-live="polite"></span></div>'
        f'<div class="scroll"><table id="decisions"><thead><tr>{head}</tr></thead><tbody></tbody></table></div>'
        '<p><button type="button" id="more">show more</button></p></details></section>'
    )


def _settings(file: CircuitFile) -> dict[str, object]:
    return {
        "task": file.task.model_dump(),
        "model": file.model.model_dump(),
        "method": file.method.model_dump(),
        "environment": dict(file.environment),
    }


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="scroll">{table}</div>'


def _cell(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = ' class="number"' if number else ""
    return f"<td{kind}>{escape(_shown(value))}</td>"


def _shown(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
