"""The state of an engine: the current values of the nodes that can still change."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from acdc.graph.graph import Graph
from acdc.patching.nodes import Values


@dataclass
class State:
    """The current values of the nodes that are decided or being decided, as long as they can change."""

    # Receiver → clean input + differences of the edges removed from it, Float[batch pos d_model].
    base: dict[int, Tensor] = field(default_factory=dict)
    input: dict[int, Tensor] = field(default_factory=dict)  # receiver → current input
    nodes: dict[int, Values] = field(default_factory=dict)  # sender → its current output; of a head also q, k and v
    deviation: dict[int, Tensor] = field(default_factory=dict)  # sender → current − clean output, if it has changed
    moved: dict[int, Tensor] = field(default_factory=dict)  # likewise of this stage, not yet passed on to what reads it

    def forget(self, graph: Graph, kept: np.ndarray, stage: Sequence[int], decided: Container[int]) -> None:
        """Drop values that can no longer change and that nothing which can change reads.

        A receiver can change if it belongs to this or a later stage, or if a kept edge leads into it from a node with
        such a receiver. Other receivers need no input, nodes without such a receiver need nothing, and a decided node
        needs its deviation only while a receiver that can change reads it.

        Args:
            kept: Bool[sender receiver], the current circuit
            stage: the receivers of this stage, and the logits: every decided node leads to these
            decided: the nodes that belong to this or an earlier stage
        """
        changes = np.zeros(len(graph.receivers), dtype=bool)
        moving = np.zeros(len(graph.senders), dtype=bool)
        changes[stage] = True
        for sender, own in enumerate(map(list, graph.own_receivers)):  # forward: what feeds a node comes before it
            if sender in decided:
                changes[own] |= (kept[:, own] & moving[:, None]).any(0)
            else:
                changes[own] = True
            moving[sender] = changes[own].any()
        for values in (self.base, self.input):
            for receiver in [r for r in values if not changes[r]]:
                del values[receiver]
        for sender in [s for s in self.nodes if not moving[s]]:
            del self.nodes[sender]
        for sender in [s for s in self.deviation if not kept[s, changes].any()]:
            del self.deviation[sender]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for `from_tensors`."""
        out: dict[str, Tensor] = {}
        for name in ("base", "input", "deviation", "moved"):
            out |= {f"{name} {key}": x for key, x in getattr(self, name).items()}
        for key, values in self.nodes.items():
            out |= {f"nodes {key} {which}": x for which, x in values.items()}
        return out

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> State:
        """The state with these tensors."""
        state = cls()
        for name, x in tensors.items():
            kind, key, *which = name.split()
            if which:
                state.nodes.setdefault(int(key), {})[which[0]] = x
            else:
                getattr(state, kind)[int(key)] = x
        return state
