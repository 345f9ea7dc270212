"""Why the heads of a circuit attend where they do, as text."""

from __future__ import annotations

from collections import Counter
from statistics import mean
from textwrap import wrap
from typing import TYPE_CHECKING

from acdc.errors import plural
from acdc.report.text import estimate, grid, number, when_removed

if TYPE_CHECKING:  # it loads torch
    from acdc.evaluation.signals import Pair, Prompt, Signal, Signals

WIDTH = 118
LABEL = 20
PROMPTS = 20  # shown of a single edge
TERMS = 4  # shown of a prompt


def to_text(s: Signals) -> str:
    """Return a table of the edges; of a single one also a table of its prompts."""
    half = s.half.replace("_", "-")
    into = "queries and keys" + (", which have a norm, taken by its current scale" if s.head_norm else "")
    prompts = plural(s.examples, f"{half} prompt")
    head = [
        f"{'why heads attend':{LABEL}}{s.task} in {s.model}: {plural(len(s.edges), 'edge')} into {into}",
        f"{'evaluated on':{LABEL}}{prompts}, seed {s.seed}; [95 % intervals] are over prompts",
        f"{'effect':{LABEL}}{when_removed(s.metric)}, {s.ablation} ablation",
    ]
    titles = ["edge", "acts at", "effect", "attention", "adds", "terms", "kept", "left", "random"]
    blocks = ["\n".join(head), grid([titles, *(_row(edge, s) for edge in s.edges)], left=2)]
    if len(s.edges) == 1:
        blocks.append(_prompts(s.edges[0], s))
    legend: list[str] = []
    for name, text in s.legend.items():
        legend += wrap(text, WIDTH, initial_indent=f"{name:{LABEL}}", subsequent_indent=" " * LABEL)
    return "\n\n".join([*blocks, "\n".join(legend)])


def _row(edge: Signal, s: Signals) -> list[str]:
    (place, times), *_ = Counter(map(_place, edge.pairs, s.prompts)).most_common(1)
    sizes = [len(pair.fewest) for pair in edge.pairs]
    attention, without, added = (mean(getattr(p, key) for p in edge.pairs) for key in ("attention", "without", "added"))
    return [
        edge.edge,
        f"{place} {times}/{len(edge.pairs)}",
        estimate(edge.effect, 4),
        _attention(attention, without),
        number(added, 2),
        f"{number(mean(sizes), 1)} ({min(sizes)}–{max(sizes)}) of {len(edge.pairs[0].terms)}",
        *(number(share.value, 2) for share in (edge.kept, edge.left, edge.random)),
    ]


def _prompts(edge: Signal, s: Signals) -> str:
    """The prompts of one edge, with the largest of the fewest terms."""
    rows = [["prompt", "query → key", "", "attention", "score", "adds", "largest terms"]]
    for i, (pair, prompt) in enumerate(zip(edge.pairs[:PROMPTS], s.prompts, strict=False), 1):
        tokens = f"{prompt.tokens[pair.query]!r} → {prompt.tokens[pair.key]!r}"
        terms = ", ".join(f"#{k} {pair.terms[k]:+.2f}" for k in pair.fewest[:TERMS])
        numbers = (number(pair.score, 2), number(pair.added, 2))
        rows.append([str(i), tokens, _place(pair, prompt), _attention(pair.attention, pair.without), *numbers, terms])
    return grid(rows, left=3)


def _place(pair: Pair, prompt: Prompt) -> str:
    return f"{prompt.spans[pair.query]} → {prompt.spans[pair.key]}"


def _attention(value: float, without: float) -> str:
    return f"{number(value, 2)} ({number(without, 2)})"
