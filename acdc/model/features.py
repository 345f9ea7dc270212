"""Features of an MLP, neurons or directions of a transcoder, as nodes of their own.

A feature reads what the MLP reads, and writes its activation times its decoder row. The rest of the MLP writes what the
MLP does, less what the features would write from the input of the rest. So from one input they write together exactly
what the MLP does, whatever the features are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.graph.graph import MAX_NODES
from acdc.model.transcoders import Transcoder
from acdc.model.transformer import Transformer


@dataclass(frozen=True)
class Features:
    """Some features of one MLP, by default hidden units of it."""

    names: tuple[str, ...]
    encoder: Tensor  # Float[feature d_model]
    bias: Tensor  # Float[feature]
    decoder: Tensor  # Float[feature d_model]
    gate: Tensor | None = None  # Float[feature d_model], of a gated MLP
    gate_bias: Tensor | None = None  # Float[feature]

    def take(self, which: Sequence[int]) -> Features:
        """Some of them."""
        if list(which) == list(range(len(self.names))):
            return self
        names = tuple(self.names[i] for i in which)
        index = torch.tensor(which, dtype=torch.int64).to(self.bias.device)
        tensors = {key: x[index] for key, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, names=names, **tensors)

    def together(self, model: Transformer, x: Tensor) -> Tensor:
        """The activations of all features from one input: Float[... d_model] to Float[... feature]."""
        h = self._read(model, x)
        gate = None
        if self.gate is not None and self.gate_bias is not None:
            gate = h @ self.gate.T + self.gate_bias
        return self._active(model, h, h @ self.encoder.T + self.bias, gate)

    def each(self, model: Transformer, x: Tensor) -> Tensor:
        """What every feature writes from an input of its own: Float[feature ... d_model] to the same shape."""
        h = self._read(model, x).flatten(1, -2)
        hidden = torch.baddbmm(self.bias[:, None, None], h, self.encoder[:, :, None])
        gate = None
        if self.gate is not None and self.gate_bias is not None:
            gate = torch.baddbmm(self.gate_bias[:, None, None], h, self.gate[:, :, None])
        return (self._active(model, h, hidden, gate) * self.decoder[:, None]).view(x.shape)

    def _read(self, model: Transformer, x: Tensor) -> Tensor:
        return model.read(x)

    def _active(self, model: Transformer, h: Tensor, hidden: Tensor, gate: Tensor | None) -> Tensor:
        """Activations from what is read, Float[... d_model], and what encoders and gates make of it: Float[...
        feature], or Float[feature row 1]."""
        return model.activate(hidden) if gate is None else model.gate(hidden, gate)


@dataclass(frozen=True)
class TranscoderFeatures(Features):
    """Some features of a transcoder."""

    index: Tensor | None = None  # Int[feature], in the transcoder
    of: Transcoder | None = None

    def _read(self, model: Transformer, x: Tensor) -> Tensor:
        assert self.of is not None
        return x if self.of.reads == "stream" else model.normalise(x)

    def _active(self, model: Transformer, h: Tensor, hidden: Tensor, gate: Tensor | None) -> Tensor:
        assert self.of is not None
        assert self.index is not None
        each = hidden.shape[-1] != len(self.index)  # features that each read something else
        active = hidden.relu()
        if self.of.threshold is not None:
            threshold = self.of.threshold[self.index]
            active = hidden * (hidden > (threshold[:, None, None] if each else threshold))
        if self.of.top:
            every = (h @ self.of.encoder + self.of.bias).relu()
            least = every.topk(self.of.top).values[..., -1:]
            at = self.index.view(-1, 1, 1).expand(-1, every.shape[1], 1) if each else None
            own = every[..., self.index] if at is None else every.gather(-1, at)
            active = active * (own >= least)
        return active


def neurons(model: Transformer, layer: int) -> Features:
    """All neurons of a layer's MLP. Raises ModelError if its output is normalised before it is added to the stream."""
    if model.config.post_norm:
        why = "the model normalises what an MLP writes before it is added, so neurons add nothing of their own"
        raise ModelError(f"--features neurons: {why}; use transcoders")
    w = model.weights
    at = f"layers.{layer}.mlp_"
    own = [w[at + "in.weight"].T, w[at + "in.bias"], w[at + "out.weight"]]
    if model.config.gated:
        own += [w[at + "gate.weight"].T, w[at + "gate.bias"]]
    return Features(tuple(f"n{i}" for i in range(model.config.d_mlp)), *own)


def transcoder_features(transcoder: Transcoder) -> Features:
    """All features of a transcoder, which doesn't read a norm's scale and shift."""
    n = len(transcoder.bias)
    return TranscoderFeatures(
        tuple(f"f{i}" for i in range(n)),
        transcoder.encoder.T,
        transcoder.bias,
        transcoder.decoder,
        index=torch.arange(n, device=transcoder.bias.device),
        of=transcoder,
    )


class SplitTransformer(Transformer):
    """A model some of whose MLPs have features as nodes."""

    def __init__(self, whole: Transformer, features: Mapping[int, Features]) -> None:
        vars(self).update(vars(whole))
        self.whole = whole
        self.features = features
        layers = range(whole.config.n_layers)
        names = tuple(features[layer].names if layer in features else () for layer in layers)
        self.config = replace(whole.config, features=names)

    def mlp_nodes(self, layer: int, nodes: Sequence[int], x: Tensor) -> Tensor:
        """What some nodes of an MLP add to the stream, in their order, each from an input of its own: Float[node ...
        d_model] to the same shape. The last node is the rest of the MLP."""
        if layer not in self.features:
            return super().mlp_nodes(layer, nodes, x)
        features = self.features[layer]
        n = len(features.names)
        own = [i for i in nodes if i < n]
        out = [features.take(own).each(self, x[: len(own)])] if own else []
        if n in nodes:
            out.append((self.mlp(layer, x[-1]) - features.together(self, x[-1]) @ features.decoder)[None])
        return torch.cat(out)


def split(model: Transformer, features: Mapping[int, Features]) -> Transformer:
    """The model with some features of its MLPs, by layer, as nodes, and no others. Raises ModelError if that makes too
    many nodes."""
    whole = model.whole if isinstance(model, SplitTransformer) else model
    some = {layer: of for layer, of in features.items() if of.names}
    nodes = whole.config.n_layers * (whole.config.n_heads + 1) + sum(len(of.names) for of in some.values())
    if nodes > MAX_NODES:
        raise ModelError(f"--features: {nodes:,} nodes are more than a graph can have, {MAX_NODES:,}; ask for fewer")
    return SplitTransformer(whole, some) if some else whole
