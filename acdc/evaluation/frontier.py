"""Faithfulness by number of edges: of the strongest edges of a circuit alone, and how many edges a method needs."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from acdc.evaluation.bootstrap import Estimate, estimate
from acdc.evaluation.faithfulness import faithfulness, prompt_values
from acdc.graph.circuit import Circuit
from acdc.setup.inputs import Inputs

Array = np.ndarray
Measured = tuple[int, float]  # a circuit's residual edges without dead ones, and its faithfulness

COARSE = 1.5  # ratio of the sizes at which a level of faithfulness is looked for,
FINE = 1.06  # and of those between which it is interpolated


@dataclass(frozen=True)
class CurvePoint:
    """The circuit of the strongest edges alone."""

    score: float  # the smallest magnitude of their scores
    edges: int  # number of residual edges, or of edge-spans, without dead ones
    metric: Estimate
    faithfulness: Estimate


def curve(
    inputs: Inputs,
    half: str,
    circuit: Circuit,
    sizes: Iterable[float],
    values: Mapping[str, Array],
    known: Circuit | None = None,
    measured: Callable[[int], None] = lambda _: None,
) -> tuple[CurvePoint, ...]:
    """Measure the strongest edges of a circuit on one half, about so many each time; nothing if an edge has no score.
    `values` are the run's metric of the full `model`, of everything `ablated` and of the `circuit` that is `known`
    already, Float[prompt]; `measured` is called with how many sizes have been."""
    if not circuit.n_edges or circuit.scores is None or not np.isfinite(circuit.scores[circuit.kept]).all():
        return ()
    config = inputs.config
    importance = np.where(circuit.kept, np.abs(circuit.scores), -np.inf)
    ranked = np.sort(importance[circuit.kept])[::-1]

    def strongest(n: int) -> Circuit:
        return replace(circuit, kept=importance >= ranked[n - 1]).pruned()

    found: dict[int, CurvePoint] = {}
    for number, size in enumerate(sizes):
        measured(number)
        # Some of the strongest edges are dead without the weaker ones: take as many as leave `size` edges alive.
        n = 1 + bisect_left(range(1, len(ranked)), size, key=lambda n: strongest(n).size)
        some = strongest(n)
        if some.size in found:
            continue
        if known is not None and (some.kept == known.kept).all():
            own = values["circuit"]
        else:
            own = prompt_values(inputs, half, some, config.metric)
        found[some.size] = CurvePoint(
            score=float(ranked[n - 1]),
            edges=some.size,
            metric=estimate(own, seed=config.seed),
            faithfulness=faithfulness(own, values["model"], values["ablated"], config.seed),
        )
    return tuple(found[n] for n in sorted(found))


def edges_needed(circuits: Iterable[Measured], levels: Sequence[float]) -> tuple[float, ...]:
    """The number of edges that a method needs for each level of faithfulness, from circuits that it found; NaN if none
    of them is so faithful. It is interpolated between the smallest circuit that is so faithful and the best smaller
    one."""
    best = [(0, 0.0)]
    for edges, value in sorted(circuits):
        if value > best[-1][1]:
            best.append((edges, value))
    needed = []
    for level in levels:
        at = next((i for i, (_, value) in enumerate(best) if value >= level), None)
        if at is None:
            needed.append(np.nan)
            continue
        (fewer, below), (edges, above) = best[at - 1 : at + 1]
        needed.append(fewer + (edges - fewer) * (level - below) / (above - below))
    return tuple(needed)


def measured_around(levels: Sequence[float], measure: Callable[[int], Measured], n_edges: int) -> list[Measured]:
    """Measure circuits of a method's best edges, of sizes near those at which they reach each level of faithfulness;
    levels rise, and `measure` does it for the best n of `n_edges`."""
    sizes = sorted({round(COARSE**i) for i in range(100) if COARSE**i < n_edges} | {n_edges})
    found: dict[int, Measured] = {}
    for size in sizes:
        found[size] = measure(size)
        if found[size][1] >= levels[-1]:
            break
    for level in levels:
        reached = [size for size in sorted(found) if found[size][1] >= level]
        if not reached:
            break
        enough = reached[0]
        few = max((size for size in found if size < enough), default=0)
        while enough > max(few + 1, FINE * few):
            middle = max(few + 1, round((few * enough) ** 0.5))
            found[middle] = measure(middle)
            if found[middle][1] >= level:
                enough = middle
            else:
                few = middle
    return list(found.values())
