"""What the senders of a model write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Activations:
    """The outputs of all senders. Heads are stored as z (before the output projection), which is smaller."""

    inputs: Tensor  # Float[input batch pos d_model]
    z: Tensor  # Float[layer batch head pos d_head]
    mlp: Tensor  # Float[mlp batch pos d_model], of the nodes of all MLPs (`Graph.mlps`)

    def map(self, f: Callable[[Tensor], Tensor]) -> Activations:
        """Apply a function to each tensor."""
        return Activations(f(self.inputs), f(self.z), f(self.mlp))

    def __add__(self, other: Activations) -> Activations:
        return Activations(self.inputs + other.inputs, self.z + other.z, self.mlp + other.mlp)
