"""Clean and ablated activations at the positions where an engine reads them.

*Live* positions are those at which anything can change or is scored: all from `ActivationCache.first` on. *Scored*
positions are the live ones at which some prompt is scored; a receiver that is read only there is computed only there.
"""

import numpy as np
import torch
from torch import Tensor

from acdc.graph.graph import Graph, Sender
from acdc.model.transformer import Activations, Transformer
from acdc.patching.activations import ActivationCache

CACHE_BYTES = 256 << 20  # bound on the differences kept for the receivers to come


class LiveActivations:
    """The activations of some prompts at live or scored positions, and how ablated and clean ones differ."""

    def __init__(self, model: Transformer, graph: Graph, cache: ActivationCache) -> None:
        self.model = model
        self.graph = graph
        self.cache = cache  # deleted while the activations are offloaded
        self.start = cache.first  # the first live position
        self.n_live = cache.mask.shape[1] - self.start
        self.columns = torch.unique(cache.rows[:, 1]) - self.start  # Int[scored], counted from the first live position
        self.all_scored = len(self.columns) == self.n_live
        self._spans: Tensor | None = None  # Float[span batch pos 1], 1 at the positions of each span
        if cache.spans is not None:
            self._spans = cache.spans[:, :, self.start :, None].to(model.dtype)
        self._differences: dict[tuple[int, bool], Tensor] = {}  # (sender, scored) → ablated − clean output
        self._ablated: dict[tuple[int, bool], Tensor] = {}  # (number of senders, scored) → input without any edge
        flags = []
        for s in graph.senders:
            at = (self._at_live(cache.ablated, s) != self._at_live(cache.clean, s)).any(-1)[None]
            if cache.spans is not None:
                at = torch.cat([at, at & cache.spans[:, :, self.start :]])
            columns = at.any(1)
            flags.append(torch.stack([columns.any(-1), columns[:, self.columns].any(-1)], 1))
        # Bool[sender 1+span 2]: whether clean and ablated output differ anywhere, then at each span; at any live
        # position, and at any scored one
        self._nonzero: np.ndarray = torch.stack(flags).cpu().numpy()

    def offload(self) -> None:
        """Free large tensors; `cache` must be set again before the next use."""
        del self.cache
        self._differences.clear()
        self._ablated.clear()

    def forget(self, n: int) -> None:
        """Drop the differences of all senders but the first n, and all ablated inputs."""
        for key in [k for k in self._differences if k[0] >= n]:
            del self._differences[key]
        self._ablated.clear()

    def narrow(self, x: Tensor, scored: bool, to_scored: bool) -> Tensor:
        """Float[... pos any] from the live positions to the scored ones if asked."""
        return x if scored == to_scored or self.all_scored else x.index_select(-2, self.columns)

    def clean_input(self, receiver: int, scored: bool) -> Tensor:
        """The clean stream that a receiver reads: Float[batch pos d_model]."""
        run = self.cache.clean.map(lambda x: x[..., self.start :, :])
        x = self.model.received(self.graph.receivers[receiver], run, self.cache.residual[:, :, self.start :])
        return self.narrow(x, False, scored)

    def clean(self, sender: int, scored: bool) -> Tensor:
        """A sender's clean output, Float[batch pos d_model]; for a head z, Float[batch pos d_head]."""
        return self.narrow(self._at_live(self.cache.clean, self.graph.senders[sender]), False, scored)

    def mask(self, layer: int, scored: bool) -> Tensor:
        """Bool[batch query key]: which keys a query of this layer attends to."""
        mask = self.model.window(layer, self.cache.mask[:, self.start :], self.start)
        return self.narrow(mask, False, scored)

    def differs(self, sender: int, scored: bool, span: int | None = None) -> bool:
        """Whether a sender's clean and ablated output differ at a span, by default anywhere."""
        return bool(self._nonzero[sender, 0 if span is None else 1 + span, int(scored)])

    def only_at(self, spans: np.ndarray, x: Tensor, scored: bool) -> Tensor:
        """Values Float[... batch pos any] at some of the spans, Bool[span], and 0 at the others."""
        if spans.all():
            return x
        assert self._spans is not None
        mask = self._spans[torch.as_tensor(spans).to(x.device)].sum(0)
        return x * self.narrow(mask, False, scored)

    def difference(self, sender: int, scored: bool) -> Tensor:
        """Ablated − clean output of a sender: Float[batch pos d_model]."""
        key = sender, scored
        if key not in self._differences:
            s = self.graph.senders[sender]
            d = self._at_live(self.cache.ablated, s) - self._at_live(self.cache.clean, s)
            d = self.narrow(d, False, scored)
            if s.kind == "head":
                d = self.model.write(s.layer, s.head, d)
            if d.nbytes * (len(self._differences) + 1) > CACHE_BYTES:
                return d
            self._differences[key] = d
        return self._differences[key]

    def ablated_input(self, receiver: int, scored: bool) -> Tensor:
        """A receiver's input without any edge, Float[batch pos d_model]; receivers with the same parents share it."""
        n = self.graph.n_parents(self.graph.receivers[receiver])
        if (n, scored) not in self._ablated:
            x = self.clean_input(receiver, scored).clone()
            for sender in range(n):
                x += self.difference(sender, scored)
            self._ablated[n, scored] = x
        return self._ablated[n, scored]

    def _at_live(self, activations: Activations, s: Sender) -> Tensor:
        """A sender's output at the live positions; for a head z."""
        if s.kind == "head":
            return activations.z[s.layer][:, s.head, self.start :]
        if s.kind == "input":
            return activations.inputs[s.head][:, self.start :]
        return activations.mlp[s.layer][:, self.start :]
