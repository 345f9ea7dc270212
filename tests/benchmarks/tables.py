"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PHASES = ("output layer", "guess", "MLPs", "heads", "bookkeeping")


def markdown(found: dict[str, Any], brief: bool = False) -> str:
    rows = {name: r for name, r in found["settings"].items() if "error" not in r}
    parts = [] if brief else [_machine(found)]
    if rows:
        parts.append(_ratios(rows))
    if brief:
        return "\n\n".join(parts)
    if rows:
        parts += [_evaluations(rows), _profile(rows)]
    parts += [f"- {name}: {r['error']}" for name, r in found["settings"].items() if "error" in r]
    if isinstance(found.get("exact"), list):
        parts.append(_exact(found["exact"]))
    if "overlap" in found:
        parts.append(_overlap(found["overlap"]))
    if "scaling" in found and "error" not in found["scaling"]:
        parts.append(_scaling(found["scaling"]))
    return "\n\n".join(parts) + "\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    line = "|" + "|".join(["---"] + ["--:"] * (len(head) - 1)) + "|"
    return "\n".join(["| " + " | ".join(head) + " |", line, *("| " + " | ".join(r) + " |" for r in rows)])


def seconds(x: float) -> str:
    return f"{x:,.0f} s" if x >= 100 else f"{x:.1f} s" if x >= 1 else f"{x * 1e3:.0f} ms"


def ratio(x: float) -> str:
    return f"{x:,.0f} ×" if x >= 20 else f"{x:.1f} ×"


def _machine(found: dict[str, Any]) -> str:
    m = found["machine"]
    loads = [f"{x[0]:.1f}" for x in (m.get("load_before"), m.get("load_after")) if x]
    return (
        f"on {m['device']}; {m['cpu']}, {m['cores']} cores, {m['threads']} threads, torch {m['torch']}, "
        f"Python {m['python']}, {found['started']}; load of the machine before and after: {', '.join(loads)}"
    )


def _ratios(rows: dict[str, dict[str, Any]]) -> str:
    head = ["setting", "edges", "ours", "auto-circuit 1.0.1", "naive", "plain passes", "products", "output layer"]
    head += ["launches", "peak memory"]
    out = []
    for name, r in rows.items():
        p, n, lim, hf = r.get("peer", {}), r.get("naive"), r.get("limit"), r["hugging_face"]
        out.append(
            [
                name,
                f"{r['edges']} of {r['graph_edges']:,}",
                seconds(r["median"]) + _spread(r["seconds"]),
                _peer(p) if "ratio" in p else "–",
                f"{ratio(n['ratio'])} ({seconds(n['total'])} from {n['samples']} edges)" if n else "–",
                f"{ratio(hf['bound'])}{_over(r, ratio)}; {ratio(hf['bound_all_positions'])}",
                f"{lim['ours_over_products']:.2f}{_times(r)}" if lim else "–",
                f"{lim['output_share_of_products']:.0%}" if lim else "–",
                _launches(r),
                f"{r['peak_mb']:,.0f} MB ({r['peak_mb_before']:,.0f} before)",
            ]
        )
    note = (
        "ours: median of the runs (shortest to longest). auto-circuit: its time over ours, the fastest sample of each "
        "layer and of those below it (every sample over every run); naive: its time over ours; both extrapolated from "
        "that many edges. plain passes: as many plain Hugging Face passes (for Llama's shapes: of our own) as "
        "evaluations were needed, over ours; with logits of the last position only (spread over the runs); of all. "
        "products: ours over the time of only the matrix products that were needed. output layer: its share of that "
        "time. launches: operations that compute or copy, about a kernel each; on CUDA also the profiler's kernels. "
        "peak memory: of the device on CUDA, else of the process."
    )
    return table(head, out) + "\n\n" + note


def _launches(r: dict[str, Any]) -> str:
    counted = f"{r['launches']:,}" if "launches" in r else "–"
    return counted + (f" ({r['kernels']:,} kernels)" if "kernels" in r else "")


def _peer(p: dict[str, Any]) -> str:
    low, high = p["ratios"][0], p["ratios"][-1]
    return f"{ratio(p['ratio'])} ({ratio(low)} to {ratio(high)}; {seconds(p['total'])} from {p['sampled']} edges)"


def _over(r: dict[str, Any], unit: Callable[[float], str]) -> str:
    """The spread over the runs of a ratio of something to ours."""
    bound, times = r["hugging_face"]["bound"] * r["median"], r["seconds"]
    return f" ({unit(bound / max(times))} to {unit(bound / min(times))})" if len(times) > 1 else ""


def _times(r: dict[str, Any]) -> str:
    """The spread over the runs of ours over the products."""
    products, times = r["limit"]["products_seconds"], r["seconds"]
    return f" ({min(times) / products:.2f} to {max(times) / products:.2f})" if len(times) > 1 else ""


def _spread(times: list[float]) -> str:
    return f" ({seconds(min(times))} to {seconds(max(times))})" if len(times) > 1 else " (one run)"


def _evaluations(rows: dict[str, dict[str, Any]]) -> str:
    head = ["setting", "prompts", "τ", "tested", "needed", "evaluated", "wasted", "carried", "plain pass"]
    head += ["GFLOP needed", "executed", "output layer alone"]
    out = []
    for name, r in rows.items():
        lim = r.get("limit")
        out.append(
            [
                name,
                str(r["setting"]["prompts"]),
                f"{r['setting']['threshold']:g}",
                f"{r['tested']:,}",
                f"{r['needed']:,}",
                f"{r['evaluated']:,}",
                f"{r['wasted_share']:.0%}",
                f"{r['carried']:,}",
                seconds(r["hugging_face"]["forward_last_position"]),
                f"{lim['gflop_needed']:,.0f}" if lim else "–",
                f"{lim['gflop_executed']:,.0f}" if lim else "–",
                f"{seconds(lim['output_layer_seconds'])} (ours: {lim['ours_over_output_layer']:.2f} ×)" if lim else "–",
            ]
        )
    note = (
        "tested: edges decided one by one. needed: those of them whose removal changes anything. evaluated: metrics "
        "computed. carried: candidates carried through the nodes. wasted: evaluated, but not needed."
    )
    return table(head, out) + "\n\n" + note


def _profile(rows: dict[str, dict[str, Any]]) -> str:
    head = ["setting", *(f"{p}: {x}" for p in PHASES for x in ("products", "other")), "Python"]
    out = []
    for name, r in rows.items():
        if "limit" not in r:
            continue
        profile = r["limit"]["profile"]
        wall, phases = profile["wall"], profile["phases"]
        cells = [f"{phases.get(p, {}).get(x, 0.0) / wall:.0%}" for p in PHASES for x in ("products", "other")]
        out.append([name, *cells, f"{phases['bookkeeping']['python'] / wall:.0%}"])
    note = (
        "Shares of one more run under a recorder of every operation; Python is what is left, the recorder's own time "
        "included. products: matrix products; other: all other operations on tensors."
    )
    return table(head, out) + "\n\n" + note


def _exact(found: list[dict[str, Any]]) -> str:
    head = [
        "against the naive oracle, whole, float64",
        "edges",
        "direct",
        "differ",
        "ours",
        "oracle",
        "ratio",
        "margin",
    ]
    out = [
        [
            f["name"],
            str(f["edges"]),
            str(f["direct"]),
            ", ".join(f["differ"]) or "none",
            seconds(f["seconds_ours"]),
            seconds(f["seconds_oracle"]),
            ratio(f["ratio"]),
            f"{f['margin']:.1e}",
        ]
        for f in found
    ]
    return table(head, out)


def _overlap(f: dict[str, Any]) -> str:
    if "error" in f:
        return f"auto-circuit: {f['error']}"
    same = f"{len(f['in_its_order'])} edges differ" if f["in_its_order"] else "the same edges, all of them"
    return (
        f"auto-circuit 1.0.1 whole on a small model ({f['edges']} edges, residual edges only): it keeps {f['peer']}, "
        f"we {f['ours']}, both {f['both']}. It tests in another order; in its order our patching gives: {same}."
    )


def _scaling(found: dict[str, Any]) -> str:
    head = ["sweep", "points", "seconds", "edges kept", "needed", "exponent of time", "of time per needed evaluation"]
    out = []
    for name, s in found.items():
        p = s["points"]
        out.append(
            [
                f"{name} (over {s['over']})",
                ", ".join(f"{x['x']:g}" for x in p),
                ", ".join(f"{x['seconds']:.2f}" for x in p),
                ", ".join(str(x["edges"]) for x in p),
                ", ".join(str(x["needed"]) for x in p),
                _power(s["exponent_seconds"]),
                _power(s["exponent_per_evaluation"]),
            ]
        )
    return table(head, out)


def _power(x: float | None) -> str:
    return "–" if x is None else f"{x:.2f}"
