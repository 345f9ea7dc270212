"""The work that ACDC still has: tests of edges, weighed by what the engine computes for each.

A test computes the output layer and what a change reaches: the nodes of the circuit behind the receiver, at all live
positions or, where nothing else of them is read, at the scored ones. So tests take longer as the search goes from the
last layer to the first; how many there are depends on which nodes still have an edge out.
"""

from collections.abc import Sequence

import numpy as np

from acdc.patching.engine import Engine
from acdc.patching.offload import PartedEngine

Array = np.ndarray


class Workload:
    """An estimate, in operations, for a search that goes through `stages`, groups of receivers."""

    def __init__(
        self, engine: Engine | PartedEngine, stages: Sequence[Sequence[int]], allowed: Array | None, direct: bool
    ) -> None:
        """`allowed`, Bool[sender receiver], are the edges that are tested; `direct`: whether direct edges are, too."""
        graph = engine.graph
        config = engine.model.config
        live, scored, rows = engine.extent
        operations = np.array([config.operations(s.kind) for s in graph.senders], dtype=float)
        self.done = 0.0
        self.total = 0.0
        self._engine = engine
        self._stages = stages
        self._edges = graph.edges if allowed is None else allowed
        self._direct = graph.direct & direct
        self._at_live = operations * live
        self._at_scored = operations * scored
        self._output = config.operations("logits") * rows
        self._decided = np.zeros(len(graph.receivers), dtype=bool)
        self._test = 0.0  # of one edge of this stage
        self._tests = 0  # that are left in it
        self._later = 0.0  # of later stages

    def begin(self, stage: int, tests: int) -> None:
        """A stage begins, with so many tests."""
        self._decided[[r for receivers in self._stages[:stage] for r in receivers]] = True
        chances, work = self._nodes()
        weighed = chances * work
        node_of = self._engine.graph.node_of
        behind = self._output
        later = []
        for number, receivers in enumerate(self._stages):
            nodes = sorted({node_of[r] for r in receivers if r in node_of})  # none of the logits
            if number >= stage:
                test = behind + (work[nodes].mean() if nodes else 0.0)
                chance = np.array([chances[node_of[r]] if r in node_of else 1.0 for r in receivers])
                later.append((test, chance @ (self._edges[:, receivers].sum(0) + self._direct[receivers])))
            behind += weighed[nodes].sum()
        self._test = later[0][0]
        self._tests = tests
        self._later = sum(test * n for test, n in later[1:])
        self.total = self.done + self._test * tests + self._later

    def left(self, tests: int) -> None:
        """So many tests of the stage are left."""
        self.done += self._test * (self._tests - tests)
        self._tests = tests
        self.total = self.done + self._test * tests + self._later

    def _nodes(self) -> tuple[Array, Array]:
        """For each sender, how likely an edge of the circuit leaves it when its turn comes, and what it computes."""
        graph = self._engine.graph
        kept = self._engine.kept & self._decided
        read_live = np.array([r.kind in ("k", "v") for r in graph.receivers])
        live = np.zeros(len(graph.senders), dtype=bool)
        for s in reversed(range(len(graph.senders))):
            live[s] = kept[s, read_live].any()
            read_live[list(graph.own_receivers[s])] |= live[s]
        alive = kept.any(1)
        known = np.array([bool(own) and self._decided[own[0]] for own in graph.own_receivers])
        # A node without an edge yet gets one as often as others, if all its edges are still to be tested.
        open_ = (self._edges & ~self._decided).sum(1) / np.maximum(1, self._edges.sum(1))
        chances = alive.astype(float)
        for kind in ("head", "mlp"):
            of_kind = np.array([s.kind == kind for s in graph.senders])
            seen = alive[of_kind & known]
            fresh = of_kind & ~known & ~alive
            chances[fresh] = open_[fresh] * (seen.sum() + 1) / (len(seen) + 2)
        work = np.where(live, self._at_live, self._at_scored)
        unread = ~known & ~alive
        work[unread] = (self._at_live + self._at_scored)[unread] / 2
        return chances, work
