"""Where the weights of heads, MLPs and inputs come from: parameters of the checkpoint, and a head's slice of each.

A family's `read` is followed with numbers in place of weights, so that nothing it knows is said twice.
"""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from acdc.graph.graph import QKV
from acdc.model import huggingface
from acdc.model.checkpoint import FAMILIES, Checkpoint
from acdc.model.config import ModelConfig
from acdc.model.weights import Weights

PLACES = 1 << 32  # a number is that of a parameter's axis, times this, plus the place on the axis
NOWHERE = -1  # of a bias that the checkpoint doesn't have


class Origin(NamedTuple):
    """A parameter, and the places `start` to `end`, without the latter, on one of its axes."""

    name: str
    axis: int
    start: int
    end: int


class Origins(Weights):
    """Reads the places of a checkpoint's weights instead of the weights: each is Int[in out], but the same for all in.
    Norms and scales, which are no component's, are left out."""

    def __init__(self, tensors: dict[str, Tensor], sizes: ModelConfig, where: str) -> None:
        super().__init__(tensors, sizes, where, torch.float32)
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._axes: list[tuple[str, int]] = []

    def _places(self, name: str, axis: int) -> Tensor:
        self._axes.append((name, axis))
        return torch.arange(self._shapes[name][axis]) + (len(self._axes) - 1) * PLACES

    def take(self, name: str) -> Tensor:
        """Places on the first axis, Int[n 1]; raise ModelError if the tensor is missing."""
        super().take(name)
        return self._places(name, 0)[:, None]

    def linear(self, name: str, transposed: bool = True) -> tuple[Tensor, Tensor]:
        """Places of the outputs, Int[1 out] and Int[out]."""
        weight = self._places(f"{name}.weight", 0 if transposed else 1)
        bias = f"{name}.bias"
        return weight[None], self._places(bias, 0) if bias in self._shapes else torch.full_like(weight, NOWHERE)

    def fold(self, norm: str, weight: Tensor, bias: Tensor, mlp: int | None = None) -> tuple[Tensor, Tensor]:
        """Leave the norm out."""
        return weight, bias

    def put_output(self, name: str, weight: Tensor, bias: Tensor) -> None:
        """Set the output projection of a layer's heads, whose places are on the axis of the inputs."""
        parameter, axis = self._axes[int(weight[0, 0]) // PLACES]
        super().put_output(name, self._places(parameter, 1 - axis)[:, None], bias)

    def scale(self, name: str, factor: float | Tensor) -> None:
        """Leave the factor out."""

    def rotary(self, module: str, scale: float | None = None, name: str = "frequencies") -> Tensor:
        """Leave rotations out."""
        return torch.ones(1, dtype=torch.int64)

    def finish(self) -> None:
        """Norms have not been read."""

    def of(self, name: str, head: int | None = None) -> list[Origin]:
        """Where a weight of the transformer, or a head's part of it, comes from; empty for one that is missing."""
        places = self.out[name] if head is None else self.out[name][head]
        first = int(places.min())
        if first == NOWHERE:
            return []
        parameter, axis = self._axes[first // PLACES]
        return [Origin(parameter, axis, first % PLACES, int(places.max()) % PLACES + 1)]


def origins(checkpoint: Checkpoint) -> dict[str, list[Origin]]:
    """The parameters that receivers `a0.h1<q>` (k, v) and senders `a0.h1`, `m0` and `input` are made of, and the
    logits, by the names of Hugging Face's modules, or those of `ModelConfig.shapes` in a model in our own format.

    A head has weights and biases of its query, key and value, and weights of its output. The bias of a layer's outputs
    and all norms belong to no component. Raises ModelError if the config describes no module.
    """
    c = checkpoint.sizes
    if isinstance(checkpoint.config, SimpleNamespace):  # bundled, and small
        tensors = checkpoint.read(torch.float32)
    else:
        module = huggingface.described(checkpoint.path, checkpoint.config)
        tensors = dict(module.named_buffers()) | dict(module.named_parameters())
    found = Origins(tensors, c, str(checkpoint.path))
    FAMILIES[checkpoint.family].read(checkpoint.config, found)
    inputs = {"tok": found.of("token.weight"), "pos": [] if c.rotary else found.of("position.weight")}
    out = inputs if c.split_position else {"input": inputs["tok"] + inputs["pos"]}
    for i in range(c.n_layers):
        at = f"layers.{i}."
        for h in range(c.n_heads):
            for x in QKV:
                out[f"a{i}.h{h}<{x}>"] = found.of(f"{at}{x}.weight", h) + found.of(f"{at}{x}.bias", h)
            out[f"a{i}.h{h}"] = found.of(f"{at}o.weight", h)
        parts = [name for name in found.out if name.startswith(f"{at}mlp_") and not name.endswith(".norm")]
        if parts:
            out[f"m{i}"] = [origin for name in parts for origin in found.of(name)]
    return out | {"logits": found.of("unembed.weight")}
