"""What every method is given: a model, the activations of its prompts, and a metric."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.model.transformer import Transformer
from acdc.patching.activations import ActivationCache
from acdc.patching.offload import Parts


@dataclass(frozen=True)
class Problem:
    """A model, the clean and ablated activations of some prompts, and the name of a metric."""

    model: Transformer
    parts: Parts
    metric: str

    @cached_property
    def graph(self) -> Graph:
        """The model's graph."""
        return self.model.config.graph()

    @property
    def spans(self) -> tuple[str, ...]:
        """Names of the prompts' spans, if edges are kept by span."""
        return self.parts.spans

    @cached_property
    def candidates(self) -> np.ndarray:
        """What a circuit may keep: all edges, Bool[sender receiver], or all edge-spans, Bool[sender receiver span]."""
        return self.graph.edges_at(self.spans)

    def circuit(self, kept: np.ndarray) -> Circuit:
        """The circuit of some of the `candidates`."""
        return Circuit(self.graph, kept, spans=self.spans)

    @property
    def n_prompts(self) -> int:
        """The number of prompts in all parts."""
        return int(self.parts.targets.example.max()) + 1

    def max_batch(self, versions: int = 1) -> int:
        """How many prompts can be run at once with so many stream vectors at every live position."""
        return self.parts[0].at_once(self.model, versions)

    def chunks(self, size: int) -> Iterator[ActivationCache]:
        """Yield the activations of at most `size` prompts at a time."""
        for cache in self.parts:
            for start in range(0, len(cache.pad), size):
                yield cache.examples(slice(start, start + size))
