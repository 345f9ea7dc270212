"""The stability of a circuit as text."""

from __future__ import annotations

from acdc.files.stability import KINDS, EdgeFrequency, MeanRange, Run, Stability
from acdc.report.text import grid, number

LABEL = 12
SHOWN = 12  # edges of each kind


def to_text(s: Stability) -> str:
    """A readable table."""
    return "\n\n".join(filter(None, [_head(s), _kinds(s), _runs(s), _often(s), _core(s), _odd(s), "\n".join(s.notes)]))


def _head(s: Stability) -> str:
    m = s.method
    by = "τ =" if m["name"] == "acdc" else "score from"
    bound = f"{m['options'].get('edges')} edges" if m["threshold"] is None else f"{by} {m['threshold']:g}"
    bound += f" among {m['options']['prefilter']}" if "prefilter" in m["options"] else ""
    how = f"{m['name']}, {m['metric']}, {bound}, {m['ablation']} ablation, {s.examples} prompts, seed {s.seed}"
    done = "; ".join(f"{k.runs} on {KINDS[k.name]}" for k in s.kinds if k.name in KINDS)
    return f"{'base run':{LABEL}}{s.task} in {s.model}: {how}\n{'reruns':{LABEL}}{done}"


def _kinds(s: Stability) -> str:
    rows = [["", "runs", "residual edges", "Jaccard of two", "Jaccard with the base run"]]
    for k in s.kinds:
        rows.append([k.name, f"{k.runs}", _range(k.edges, 0), _range(k.jaccard, 2), _range(k.like_base, 2)])
    return "mean (lowest to highest)\n" + grid(rows)


def _runs(s: Stability) -> str:
    half, metric = s.half.replace("_", " "), s.method["metric"]
    rows = [["run", "edges", f"{metric} ↓", "faithfulness ↑", "accuracy ↑", "Jaccard with the base run"]]
    rows += [_run(r) for r in (s.base, *s.runs)]
    return f"on the {half} prompts of the base run\n" + grid(rows)


def _run(r: Run) -> list[str]:
    like = "" if r.kind == "base" else number(r.like_base, 2)
    return [r.name, f"{r.edges}", number(r.metric, 4), number(r.faithfulness[0], 3), number(r.accuracy, 3), like]


def _often(s: Stability) -> str:
    """How many edges are found how often."""
    rows = [["found in", "edges", f"of the base run's {s.base.edges}"]]

    def row(title: str, edges: list[EdgeFrequency]) -> list[str]:
        return [title, f"{len(edges)}", f"{sum(e.base for e in edges)}"]

    for share in sorted({1.0, 0.9, s.share, 0.5}, reverse=True):
        title = "all reruns" if share == 1 else f"{share:.0%} or more"
        rows.append(row(title + ", the core" * (share == s.share), [e for e in s.edges if e.frequency >= share]))
    once = 1.5 / len(s.runs)
    rows.append(row("one rerun only", [e for e in s.edges if 0 < e.frequency < once]))
    rows.append(row("no rerun", [e for e in s.edges if not e.frequency]))
    dead = f"\nleft out of the core, as on no path from an input to the logits: {s.dead}" if s.dead else ""
    return grid(rows) + dead


def _core(s: Stability) -> str:
    half, metric = s.half.replace("_", " "), s.method["metric"]
    head = [half, "full model", f"base, {s.base.edges} edges", f"core, {s.core.edges} edges", "ablated"]
    values = [number(x, 4) for x in (s.full, s.base.metric, s.core.metric, s.ablated)]
    rows = [head, [f"{metric} ↓", *values]]
    rows.append(["faithfulness ↑", "1", *(_interval(r) for r in (s.base, s.core)), "0"])
    if s.core.accuracy is not None:
        rows.append(["accuracy ↑", "", *(number(r.accuracy, 3) for r in (s.base, s.core)), ""])
    return grid(rows)


def _odd(s: Stability) -> str:
    """Where the base run's circuit and the core differ."""
    chance = [e for e in s.edges if e.base and not e.core][::-1]
    missed = [e for e in s.edges if e.core and not e.base]
    blocks = (
        _edges(s, "of the base run, not in the core", chance),
        _edges(s, "in the core, not of the base run", missed),
    )
    return "\n\n".join(filter(None, blocks))


def _edges(s: Stability, title: str, edges: list[EdgeFrequency]) -> str:
    if not edges:
        return ""
    kinds = [k.name for k in s.kinds if k.name in KINDS]
    rows = [[title, "found", *kinds]]
    rows += [[f"  {e.name}", f"{e.frequency:.0%}", *(f"{e.by_kind[k]:.0%}" for k in kinds)] for e in edges[:SHOWN]]
    more = f"\n  … {len(edges) - SHOWN} more (stability.json)" if len(edges) > SHOWN else ""
    return grid(rows) + more


def _interval(r: Run) -> str:
    value, low, high = (number(x, 3) for x in r.faithfulness)
    return value if r.faithfulness[1] is None else f"{value} [{low}, {high}]"


def _range(x: MeanRange, digits: int) -> str:
    if x.mean is None:
        return "–"
    return f"{number(x.mean, max(digits, 1))} ({number(x.low, digits)} to {number(x.high, digits)})"
