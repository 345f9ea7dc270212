"""What every method is given: a model, the runs of its prompts, and what is minimised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from acdc.graph.graph import Graph
from acdc.model.transformer import Transformer
from acdc.patching.activations import ActivationCache
from acdc.patching.offload import Parts


@dataclass(frozen=True)
class Problem:
    """A model, the clean and ablated runs of some prompts, and the name of a metric (`acdc.patching.metrics`)."""

    model: Transformer
    parts: Parts
    metric: str

    @cached_property
    def graph(self) -> Graph:
        """The model's graph."""
        return self.model.config.graph()

    @property
    def n_prompts(self) -> int:
        """Of all parts."""
        return self.parts.targets.n_examples

    def max_batch(self, versions: int = 1) -> int:
        """How many prompts may be run at once in so many versions; bounds the memory of what all senders write."""
        return self.parts[0].at_once(self.model, versions)

    def chunks(self, size: int) -> Iterator[ActivationCache]:
        """The runs, at most `size` prompts at a time."""
        for runs in self.parts:
            for start in range(0, len(runs.pad), size):
                yield runs.examples(slice(start, start + size))
