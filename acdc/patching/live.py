"""Clean and ablated activations at the positions where an engine reads them."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from acdc.graph.graph import Sender
from acdc.model.activations import Activations
from acdc.patching.activations import ActivationCache
from acdc.patching.nodes import Nodes

CACHE_BYTES = 256 << 20  # bound on the differences kept for the receivers to come


class LiveActivations:
    """The activations of some prompts at live or scored positions, and how ablated and clean ones differ."""

    def __init__(self, nodes: Nodes, cache: ActivationCache) -> None:
        self.nodes = nodes
        self.model = nodes.model
        self.graph = nodes.graph
        self.start = nodes.start
        self.cache = cache  # deleted while the activations are offloaded
        self._clean: dict[tuple[int, bool], Tensor] = {}  # (sender, scored) → clean output
        self._differences: dict[tuple[int, bool], Tensor] = {}  # (sender, scored) → ablated − clean output
        self._ablated: dict[tuple[int, bool], Tensor] = {}  # (number of senders, scored) → input without any edge
        # Bool[sender 1+span 2]: whether clean and ablated output differ anywhere, then at each span; at any live
        # position, and at any scored one
        self._nonzero: np.ndarray = torch.cat(list(self._flags())).cpu().numpy()

    def offload(self) -> None:
        """Free large tensors; `cache` must be set again before the next use."""
        del self.cache
        self._clean.clear()
        self._differences.clear()
        self._ablated.clear()

    def forget(self, n: int) -> None:
        """Drop the differences of all senders but the first n, and all ablated inputs."""
        for key in [k for k in self._differences if k[0] >= n]:
            del self._differences[key]
        self._ablated.clear()

    def clean_input(self, receiver: int, scored: bool) -> Tensor:
        """The clean stream that a receiver reads: Float[batch pos d_model]."""
        run = self.cache.clean.map(lambda x: x[..., self.start :, :])
        x = self.model.received(self.graph.receivers[receiver], run, self.cache.residual[:, :, self.start :])
        return self.nodes.narrow(x, False, scored)

    def clean(self, sender: int, scored: bool) -> Tensor:
        """A sender's clean output, Float[batch pos d_model]; for a head z, Float[batch pos d_head]."""
        key = sender, scored
        if key not in self._clean:
            x = self._at_live(self.cache.clean, self.graph.senders[sender])
            self._clean[key] = self.nodes.narrow(x, False, scored)
        return self._clean[key]

    def differs(self, sender: int, scored: bool, span: int | None = None) -> bool:
        """Whether a sender's clean and ablated output differ at a span, by default anywhere."""
        return bool(self._nonzero[sender, 0 if span is None else 1 + span, int(scored)])

    def difference(self, sender: int, scored: bool) -> Tensor:
        """Ablated − clean output of a sender: Float[batch pos d_model]."""
        key = sender, scored
        if key in self._differences:
            return self._differences[key]
        c = self.model.config
        s = self.graph.senders[sender]
        size = self.nodes.extent[scored] * c.d_model * self.model.dtype.itemsize
        room = CACHE_BYTES // size - len(self._differences)
        if s.kind == "head":  # with all heads of the layer, if they can be kept
            first, n = (0, c.n_heads) if c.n_heads <= room else (s.head, 1)
            runs = (self.cache.ablated, self.cache.clean)
            ablated, clean = (run.z[s.layer][:, first : first + n, self.start :].transpose(0, 1) for run in runs)
            z = self.nodes.narrow(ablated - clean, False, scored)
            written = self.model.write(s.layer, range(first, first + n), z).unbind()
            found = {(sender - s.head + head, scored): d for head, d in enumerate(written, first)}
        else:
            d = self._at_live(self.cache.ablated, s) - self._at_live(self.cache.clean, s)
            found = {key: self.nodes.narrow(d, False, scored)}
        if len(found) <= room:
            self._differences |= found
        return found[key]

    def ablated_input(self, receiver: int, scored: bool) -> Tensor:
        """A receiver's input without any edge, Float[batch pos d_model]; receivers with the same parents share it."""
        n = self.graph.n_parents(self.graph.receivers[receiver])
        if (n, scored) not in self._ablated:
            single = [s for s in range(n) if self.nodes.group(s) is None]
            layers = sorted({layer for s in range(n) if (layer := self.nodes.group(s)) is not None})
            terms = chain(
                (self.difference(s, scored) for s in single), (self.ablated_heads(layer, scored) for layer in layers)
            )
            self._ablated[n, scored] = self.nodes.total(self.clean_input(receiver, scored), terms)
        return self._ablated[n, scored]

    def heads(self, activations: Activations, layer: int, scored: bool) -> Tensor:
        """z of a layer's heads, Float[batch head pos d_head]."""
        return self.nodes.narrow(activations.z[layer][:, :, self.start :], False, scored)

    def ablated_heads(self, layer: int, scored: bool) -> Tensor:
        """How a receiver's input changes when all heads of a layer, which are normalised together, are ablated:
        Float[batch pos d_model]."""
        clean = self.heads(self.cache.clean, layer, scored)
        change = self.model.written_together(layer, self.heads(self.cache.ablated, layer, scored) - clean)
        return self.model.moved(layer, clean, change)

    def _flags(self) -> Iterator[Tensor]:
        """Yield `_nonzero` of the inputs, then of each layer's heads and MLP."""
        clean, ablated = self.cache.clean, self.cache.ablated
        blocks = [(clean.inputs, ablated.inputs)]
        for layer in range(self.graph.n_layers):
            blocks.append((clean.z[layer].transpose(0, 1), ablated.z[layer].transpose(0, 1)))
            if self.graph.mlp:
                mlps = self.graph.mlps(layer)
                blocks.append((clean.mlp[mlps], ablated.mlp[mlps]))
        for a, b in blocks:
            at = (a[..., self.start :, :] != b[..., self.start :, :]).any(-1)[:, None]
            if self.cache.spans is not None:
                at = torch.cat([at, at & self.cache.spans[:, :, self.start :]], 1)
            columns = at.any(2)
            yield torch.stack([columns.any(-1), columns[..., self.nodes.columns].any(-1)], -1)

    def _at_live(self, activations: Activations, s: Sender) -> Tensor:
        """A sender's output at the live positions; for a head z."""
        if s.kind == "head":
            return activations.z[s.layer][:, s.head, self.start :]
        if s.kind == "input":
            return activations.inputs[s.head][:, self.start :]
        return activations.mlp[self.graph.mlps(s.layer)][s.head, :, self.start :]
