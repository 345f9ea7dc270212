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
        kinds = ["feature" if s.is_feature else s.kind for s in graph.senders]
        operations = np.array([config.operations(kind) for kind in kinds] + [0], dtype=float)  # of the logits: 0
        self.done = 0.0
        self.total = 1.0
        self._engine = engine
        self._stages = [list(receivers) for receivers in stages]
        self._node = np.array([graph.node_of.get(r, -1) for r in range(len(graph.receivers))])
        self._edges = graph.edges if allowed is None else allowed
        self._direct = graph.direct & direct
        self._at_live = operations * live
        self._at_scored = operations * scored
        self._output = config.operations("logits") * rows
        self._decided = np.zeros(len(graph.receivers), dtype=bool)
        self._test = 0.0  # operations of an evaluation of this stage,
        self._later = 0.0  # and of later stages, with one for each test
        self._evaluations = engine.evaluations  # so far
        self._per_test = (1.5, 1.0)  # evaluations and tests: edges that stay make some evaluations vain
        self._open = 1.0  # share of receivers that their direct edge stays in, whose edges are tested one by one

    def begin(self, stage: int) -> None:
        """A stage begins."""
        self._decided[[r for receivers in self._stages[:stage] for r in receivers]] = True
        chances, work = self._nodes()
        seen = self._decided & self._direct & (chances[self._node] > 0)
        self._open = (1 + float(self._engine.kept[:, seen].any(0).sum())) / (1 + float(seen.sum()))
        tests = chances[self._node] * (self._direct + np.where(self._direct, self._open, 1.0) * self._edges.sum(0))
        behind = self._output
        later = []
        for number, receivers in enumerate(self._stages):
            nodes = np.unique(self._node[receivers])
            if number >= stage:
                later.append((behind + work[nodes].mean(), tests[receivers].sum()))
            behind += chances[nodes] @ work[nodes]
        self._test = later[0][0]
        self._later = sum(test * n for test, n in later[1:])

    def tested(self, decisions: int, left: int, maybe: int) -> None:
        """So many decisions were taken; so many tests are left in the stage, without those that may be spared."""
        evaluations = self._engine.evaluations - self._evaluations
        self._evaluations += evaluations
        if evaluations:
            self._per_test = self._per_test[0] + evaluations, self._per_test[1] + decisions
        each = self._per_test[0] / self._per_test[1]
        self.done += self._test * (evaluations or each * decisions)  # without any, they stood in a log
        self.total = self.done + each * (self._test * (left + self._open * maybe) + self._later)

    def _nodes(self) -> tuple[Array, Array]:
        """For each sender and the logits, how likely it has an edge out when its turn comes, and what it computes."""
        graph = self._engine.graph
        kept = self._engine.kept & self._decided
        known = np.array([bool(own) and self._decided[own[0]] for own in graph.own_receivers])
        read_live = np.array([r.kind in ("k", "v") for r in graph.receivers])
        live = np.zeros(len(graph.senders), dtype=bool)
        for s in reversed(range(len(graph.senders))):
            live[s] = kept[s, read_live].any()
            read_live[list(graph.own_receivers[s])] |= live[s]
        alive = kept.any(1)
        usual = (alive[known].sum() + 1) / (known.sum() + 2)  # a node without an edge yet gets one as often as others
        chances = np.where(alive | known, alive, usual)
        open_ = (self._edges & ~self._decided).sum(1) / np.maximum(1, self._edges.sum(1))
        wide = np.where(known | live, live, open_)  # what reads the scored positions now may be read elsewhere later
        return np.append(chances, 1.0), self._at_scored + np.append(wide, 0.0) * (self._at_live - self._at_scored)
