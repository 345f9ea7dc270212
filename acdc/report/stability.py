"""How stable a circuit is, as text."""

from acdc.files.stability import KINDS, EdgeFrequency, MeanRange, Stability
from acdc.report.text import estimate, grid, heading, how, lines_of, number, readable

LABEL = 12
SHOWN = 12  # edges of each kind


def to_text(s: Stability) -> str:
    """Return readable tables."""
    differing = [
        _edges(s, "of the base run, not in the core", [e for e in s.edges if e.base and not e.core][::-1]),
        _edges(s, "in the core, not of the base run", [e for e in s.edges if e.core and not e.base]),
    ]
    blocks = [_head(s), _kinds(s), _runs(s), _frequencies(s), _core(s), *differing, lines_of(s.notes)]
    return "\n\n".join(block for block in blocks if block)


def _head(s: Stability) -> str:
    base = how(s.method, s.examples, s.seed)
    done = "; ".join(f"{k.runs} on {KINDS[k.name]}" for k in s.kinds if k.name in KINDS)
    return f"{'base run':{LABEL}}{s.task} in {s.model}: {base}\n{'reruns':{LABEL}}{done}"


def _kinds(s: Stability) -> str:
    rows = [["", "runs", "residual edges", "Jaccard of two", "Jaccard with the base run"]]
    for k in s.kinds:
        rows.append([k.name, f"{k.runs}", _range(k.edges, 0), _range(k.jaccard, 2), _range(k.like_base, 2)])
    return "mean (lowest to highest)\n" + grid(rows)


def _runs(s: Stability) -> str:
    metric = s.method["metric"]
    rows = [["run", "edges", heading(metric), "faithfulness ↑", "accuracy ↑", "Jaccard with the base run"]]
    for r in (s.base, *s.runs):
        jaccard = "" if r.kind == "base" else number(r.like_base, 2)
        (value,) = readable(metric, [r.metric])
        values = [number(value, 4), number(r.faithfulness[0], 3), number(r.accuracy, 3)]
        rows.append([r.name, f"{r.edges}", *values, jaccard])
    return f"on the {s.half.replace('_', ' ')} prompts of the base run\n" + grid(rows)


def _frequencies(s: Stability) -> str:
    """How many edges were found how often."""
    found: dict[str, list[EdgeFrequency]] = {}
    for share in sorted({1.0, 0.9, s.share, 0.5}, reverse=True):
        title = "all reruns" if share == 1 else f"{share:.0%} or more"
        if share == s.share:
            title += ", the core"
        found[title] = [e for e in s.edges if e.frequency >= share]
    more_than_once = 1.5 / len(s.runs)
    found["one rerun only"] = [e for e in s.edges if 0 < e.frequency < more_than_once]
    found["no rerun"] = [e for e in s.edges if e.frequency == 0]
    rows = [["found in", "edges", f"of the base run's {s.base.edges}"]]
    rows += [[title, f"{len(edges)}", f"{sum(e.base for e in edges)}"] for title, edges in found.items()]
    if s.dead == 0:
        return grid(rows)
    return f"{grid(rows)}\nleft out of the core, as on no path from an input to the logits: {s.dead}"


def _core(s: Stability) -> str:
    both = (s.base, s.core)
    half = s.half.replace("_", " ")
    rows = [[half, "full model", f"base, {s.base.edges} edges", f"core, {s.core.edges} edges", "ablated"]]
    metric = s.method["metric"]
    values = readable(metric, (s.full, s.base.metric, s.core.metric, s.ablated))
    rows.append([heading(metric), *(number(x, 4) for x in values)])
    rows.append(["faithfulness ↑", "1", *(estimate(r.faithfulness, 3) for r in both), "0"])
    if s.core.accuracy is not None:
        rows.append(["accuracy ↑", "", *(number(r.accuracy, 3) for r in both), ""])
    return grid(rows)


def _edges(s: Stability, title: str, edges: list[EdgeFrequency]) -> str:
    if not edges:
        return ""
    kinds = [k.name for k in s.kinds if k.name in KINDS]
    rows = [[title, "found", *kinds]]
    for e in edges[:SHOWN]:
        rows.append([f"  {e.name}", f"{e.frequency:.0%}", *(f"{e.by_kind[kind]:.0%}" for kind in kinds)])
    if len(edges) <= SHOWN:
        return grid(rows)
    return f"{grid(rows)}\n  … {len(edges) - SHOWN} more (stability.json)"


def _range(x: MeanRange, digits: int) -> str:
    if x.mean is None:
        return "–"
    return f"{number(x.mean, max(digits, 1))} ({number(x.low, digits)} to {number(x.high, digits)})"
