"""How faithful the strongest edges of a circuit are alone, from few to all."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from acdc.evaluation.bootstrap import Estimate, estimate
from acdc.evaluation.faithfulness import faithfulness, prompt_values
from acdc.graph.circuit import Circuit
from acdc.setup.inputs import Inputs

Array = np.ndarray


@dataclass(frozen=True)
class CurvePoint:
    """The circuit of the strongest edges alone."""

    score: float  # the smallest magnitude of their scores
    edges: int  # number of residual edges, without dead ones
    metric: Estimate
    faithfulness: Estimate


def curve(
    inputs: Inputs, half: str, circuit: Circuit, points: int, values: Mapping[str, Array]
) -> tuple[CurvePoint, ...]:
    """Measure the strongest edges of a circuit on one half, from few to all, at up to so many sizes; nothing if an edge
    has no score. `values` are the run's metric of the full `model` and of everything `ablated`, Float[prompt]."""
    if not circuit.n_edges or circuit.scores is None or not np.isfinite(circuit.scores[circuit.kept]).all():
        return ()
    config = inputs.config
    sizes = np.where(circuit.kept, np.abs(circuit.scores), -np.inf)
    ranked = np.sort(sizes[circuit.kept])[::-1]

    def strongest(n: int) -> Circuit:
        return Circuit(circuit.graph, sizes >= ranked[n - 1], circuit.direct, circuit.scores).pruned()

    found: dict[int, CurvePoint] = {}
    for size in np.geomspace(1, len(ranked), points):
        # Some of the strongest edges are dead without the weaker ones: take as many as leave `size` edges alive.
        n = 1 + bisect_left(range(1, len(ranked)), size, key=lambda n: strongest(n).n_edges)
        some = strongest(n)
        if some.n_edges in found:
            continue
        own = prompt_values(inputs, half, some, config.metric)
        found[some.n_edges] = CurvePoint(
            score=float(ranked[n - 1]),
            edges=some.n_edges,
            metric=estimate(own, seed=config.seed),
            faithfulness=faithfulness(own, values["model"], values["ablated"], config.seed),
        )
    return tuple(found[n] for n in sorted(found))
