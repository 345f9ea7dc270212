"""Why the heads of a circuit attend where they do, as text."""

from __future__ import annotations

from collections import Counter
from statistics import mean
from typing import TYPE_CHECKING

from acdc.errors import plural
from acdc.report.text import estimate, evaluated_on, grid, legend, number, when_removed

if TYPE_CHECKING:  # it loads torch
    from acdc.evaluation.signals import Pair, Prompt, Signal, Signals

LABEL = 20
PROMPTS = 20  # shown of a single edge
TERMS = 4  # shown of a prompt


def to_text(s: Signals) -> str:
    """Return a table of the edges; of a single one also a table of its prompts."""
    into = "queries and keys" + (", which have a norm, taken by its current scale" if s.head_norm else "")
    head = [
        f"{'why heads attend':{LABEL}}{s.task} in {s.model}: {plural(len(s.edges), 'edge')} into {into}",
        f"{'evaluated on':{LABEL}}{evaluated_on(s.half, s.examples, s.seed)}",
        f"{'effect':{LABEL}}{when_removed(s.metric)}, {s.ablation} ablation",
    ]
    titles = ["edge", "acts at", "effect", "attention", "adds", "terms", "kept", "left", "random"]
    tables = [grid([titles, *(_row(edge, s.prompts) for edge in s.edges)], left=2)]
    if len(s.edges) == 1:
        titles = ["prompt", "query → key", "", "attention", "score", "adds", "largest terms"]
        of_prompts = zip(range(1, PROMPTS + 1), s.edges[0].pairs, s.prompts, strict=False)
        tables.append(grid([titles, *(_prompt_row(*of_prompt) for of_prompt in of_prompts)], left=3))
    return "\n\n".join(["\n".join(head), *tables, legend(s.legend, LABEL)])


def _row(edge: Signal, prompts: tuple[Prompt, ...]) -> list[str]:
    ((place, times),) = Counter(map(_place, edge.pairs, prompts)).most_common(1)
    sizes = [len(pair.fewest) for pair in edge.pairs]
    return [
        edge.edge,
        f"{place} {times}/{len(edge.pairs)}",
        estimate(edge.effect, 4),
        _attention(*edge.pairs),
        number(mean(pair.added for pair in edge.pairs), 2),
        f"{number(mean(sizes), 1)} ({min(sizes)}–{max(sizes)}) of {len(edge.pairs[0].terms)}",
        *(number(share.value, 2) for share in (edge.kept, edge.left, edge.random)),
    ]


def _prompt_row(i: int, pair: Pair, prompt: Prompt) -> list[str]:
    tokens = f"{prompt.tokens[pair.query]!r} → {prompt.tokens[pair.key]!r}"
    terms = ", ".join(f"#{k} {pair.terms[k]:+.2f}" for k in pair.fewest[:TERMS])
    return [str(i), tokens, _place(pair, prompt), _attention(pair), number(pair.score, 2), number(pair.added, 2), terms]


def _place(pair: Pair, prompt: Prompt) -> str:
    return f"{prompt.spans[pair.query]} → {prompt.spans[pair.key]}"


def _attention(*pairs: Pair) -> str:
    """Mean attention with the edge, and in brackets without it."""
    return f"{number(mean(p.attention for p in pairs), 2)} ({number(mean(p.without for p in pairs), 2)})"
