"""Why the heads of a circuit attend where they do, as text."""

from __future__ import annotations

from collections import Counter
from statistics import mean
from textwrap import wrap
from typing import TYPE_CHECKING

from acdc.errors import plural
from acdc.report.text import estimate, grid, heading, number, when_removed

if TYPE_CHECKING:  # it loads torch
    from acdc.evaluation.signals import Pair, Prompt, Signal, Signals

WIDTH = 118
LABEL = 20
PROMPTS = 20  # shown of a single edge
TERMS = 4  # shown of a pair


def to_text(s: Signals) -> str:
    """Return a table of the edges, or of one edge and its prompts."""
    legend: list[str] = []
    for name, text in s.legend.items():
        legend += wrap(text, WIDTH, initial_indent=f"{name:{LABEL}}", subsequent_indent=" " * LABEL)
    prompts = plural(s.examples, f"{s.half.replace('_', '-')} prompt")
    head = f"why heads attend    {s.task} in {s.model}: {plural(len(s.edges), 'edge')} into queries and keys"
    how = f"evaluated on        {prompts}, seed {s.seed}, {heading(s.metric)}, {s.ablation} ablation"
    titles = ["edge", "acts at", f"effect: {when_removed(s.metric)}", "attention", "adds", "terms", "kept", "left", "random"]
    blocks = [f"{head}\n{how}", grid([titles, *(_row(edge, s) for edge in s.edges)], left=2), "\n".join(legend)]
    if len(s.edges) == 1:
        blocks.insert(2, _prompts(s.edges[0], s))
    return "\n\n".join(blocks)


def _row(edge: Signal, s: Signals) -> list[str]:
    where = Counter(_place(*of) for of in zip(edge.pairs, s.prompts, strict=True))
    (place, times), *_ = where.most_common(1)
    sizes = [len(pair.fewest) for pair in edge.pairs]
    with_edge, without, added = (mean(getattr(p, key) for p in edge.pairs) for key in ("attention", "without", "added"))
    return [
        edge.edge,
        f"{place} {times}/{len(edge.pairs)}",
        estimate(edge.effect, 4),
        f"{number(with_edge, 2)} ({number(without, 2)})",
        number(added, 2),
        f"{number(mean(sizes), 1)} ({min(sizes)}–{max(sizes)}) of {len(edge.pairs[0].terms)}",
        *(number(share.value, 2) for share in (edge.kept, edge.left, edge.random)),
    ]


def _place(pair: Pair, prompt: Prompt) -> str:
    return f"{prompt.spans[pair.query]} → {prompt.spans[pair.key]}"


def _prompts(edge: Signal, s: Signals) -> str:
    """The prompts of one edge, with the largest of the fewest terms and what they add."""
    rows = [["prompt", "query → key", "", "attention", "score", "adds", "largest terms"]]
    for i, (pair, prompt) in enumerate(list(zip(edge.pairs, s.prompts, strict=True))[:PROMPTS], 1):
        tokens = f"{prompt.tokens[pair.query]!r} → {prompt.tokens[pair.key]!r}"
        terms = ", ".join(f"#{k} {pair.terms[k]:+.2f}" for k in pair.fewest[:TERMS])
        attention = f"{number(pair.attention, 2)} ({number(pair.without, 2)})"
        rows.append([str(i), tokens, _place(pair, prompt), attention, number(pair.score, 2), number(pair.added, 2), terms])
    return grid(rows, left=3)
