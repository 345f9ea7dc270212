"""How the nodes of a model compute on some prompts, at the live or at the scored positions.

*Live* positions are those at which anything can change or is scored: all from `ActivationCache.first` on. *Scored*
positions are the live ones at which some prompt is scored; a node that is read only there is computed only there.

Heads of one layer that change in the same way are computed together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acdc.graph.graph import QKV, Graph
from acdc.model.transformer import Transformer, positions_of
from acdc.patching.activations import ActivationCache

AT_ONCE = 16  # most terms that one operation adds up

# Of one node, by the kind of its receivers: the input of an MLP, or what a head reads; or a head's q, Float[batch pos
# d_head], k and v, Float[batch key d_head]; and under "out" what it writes, of a head z. May have versions in front.
Values = dict[str, Tensor]


class Computed(NamedTuple):
    """A node for some versions of its inputs."""

    values: Values  # new ones, with versions in front
    difference: Tensor  # what it writes, less what it writes by the reference: Float[version batch pos d_model]


class Nodes:
    """The nodes of a model on some prompts. It holds no activations."""

    def __init__(self, model: Transformer, graph: Graph, cache: ActivationCache) -> None:
        self.model = model
        self.graph = graph
        self.start = cache.first  # the first live position
        self.n_live = cache.mask.shape[1] - self.start
        self.columns = torch.unique(cache.rows[:, 1]) - self.start  # Int[scored], counted from the first live position
        self.all_scored = len(self.columns) == self.n_live
        self.positions = positions_of(cache.pad, cache.mask.shape[1])
        # Numbers of live positions, of positions that are scored in any prompt, and of scored ones, over all prompts.
        batch = len(cache.pad)
        self.extent = batch * self.n_live, batch * len(self.columns), len(cache.rows)
        self._rows = cache.rows[:, 0], torch.searchsorted(self.columns, cache.rows[:, 1] - self.start)
        self._mask = cache.mask[:, self.start :]
        self._masks: dict[tuple[int, bool], Tensor] = {}  # (window, scored) → Bool[batch query key]
        self.n_spans = 1 if cache.spans is None else len(cache.spans)
        self._spans: Tensor | None = None  # Float[span batch pos 1], 1 at the positions of each span
        if cache.spans is not None:
            self._spans = cache.spans[:, :, self.start :, None].to(model.dtype)

    def narrow(self, x: Tensor, scored: bool, to_scored: bool) -> Tensor:
        """Float[... pos any] from the live positions to the scored ones if asked."""
        return x if scored == to_scored or self.all_scored else x.index_select(-2, self.columns)

    def only_at(self, spans: np.ndarray, x: Tensor, scored: bool) -> Tensor:
        """Values Float[... batch pos any] at some of the spans, Bool[span], and 0 at the others."""
        if spans.all():
            return x
        if not spans.any():
            return torch.zeros_like(x)
        assert self._spans is not None
        mask = self._spans[torch.as_tensor(spans).to(x.device)].sum(0)
        return x * self.narrow(mask, False, scored)

    def final_rows(self, x: Tensor) -> Tensor:
        """The normalised final rows of the stream at the scored positions: Float[version batch pos d_model] to
        Float[version row d_model]."""
        return self.model.normalise(x[:, self._rows[0], self._rows[1]])

    def blocks(self, senders: Iterable[int]) -> Iterator[list[int]]:
        """Yield some senders, which rise, in blocks that don't read each other: the heads of one layer, or the nodes of
        an MLP."""
        for _, block in groupby(senders, lambda s: (self.graph.senders[s].layer, self.graph.senders[s].kind)):
            yield list(block)

    def group(self, sender: int | None) -> int | None:
        """The layer whose heads are normalised together, if the sender is one of them."""
        if sender is None or not self.model.config.post_norm:
            return None
        s = self.graph.senders[sender]
        return s.layer if s.kind == "head" else None

    def added(self, changes: Iterable[tuple[int, Tensor]], together: Callable[[int], Tensor]) -> Iterator[Tensor]:
        """Yield what changes of what senders write to a receiver, Float[... batch pos d_model], add to its input, in
        parts; `together` gives what the heads of a layer write to it before, where they are normalised together."""
        groups = defaultdict(list)
        for sender, x in changes:
            if (layer := self.group(sender)) is None:
                yield x
            else:
                groups[layer].append(x)
        for layer, terms in groups.items():
            before = together(layer)
            yield self.shift(layer, before, self.total(before, terms))

    def shift(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        """How much more the heads of a layer add after what they write together has changed: Float[... d_model]."""
        return self.model.normalised_together(layer, after) - self.model.normalised_together(layer, before)

    def total(self, x: Tensor, terms: Iterable[Tensor]) -> Tensor:
        """The sum of x and all terms, which may have versions in front; x itself without any."""
        out = x
        terms = iter(terms)
        while some := list(islice(terms, AT_ONCE if self.model.few_launches else 1)):
            if len(some) > 1:
                out = torch.stack([out.expand_as(some[0]), *some]).sum(0)
            elif out is x:
                out = x + some[0]
            else:
                out += some[0]
        return out

    def compute(
        self, new: Mapping[int, Values], now: Mapping[int, Values], scored: Mapping[int, bool], to: Mapping[int, Tensor]
    ) -> dict[int, Computed]:
        """Compute nodes of one block from new inputs, Float[version batch pos d_model] by kind of receiver.

        `now` has the other values of heads, and keys and values before the live positions; `scored` says which nodes
        are computed at the scored positions only; `to` are the outputs, of heads z, to which they are compared.
        """
        alike = defaultdict(list)  # nodes that change in the same way
        for s, inputs in new.items():
            alike[scored[s], tuple(inputs), len(next(iter(inputs.values())))].append(s)
        out: dict[int, Computed] = {}
        for (at_scored, kinds, _), senders in alike.items():
            layer = self.graph.senders[senders[0]].layer
            if kinds == ("mlp",):
                senders.sort()
                of = [self.graph.senders[s].head for s in senders]
                written = self.model.mlp_nodes(layer, of, _stack([new[s]["mlp"] for s in senders]))
                out |= {s: Computed({"out": x}, x - to[s]) for s, x in zip(senders, written, strict=True)}
                continue
            heads = [self.graph.senders[s].head for s in senders]
            values = {c: self._project(c, layer, heads, [new[s][c] for s in senders], at_scored) for c in kinds}
            for c in QKV:
                if c not in kinds:
                    values[c] = _stack([now[s][c] for s in senders])[:, None]
                elif c != "q" and self.start:
                    before = _stack([now[s][c][:, : self.start] for s in senders])[:, None]
                    values[c] = torch.cat([before.expand(-1, values[c].shape[1], -1, -1, -1), values[c]], -2)
            z = self.model.attend(values["q"], values["k"], values["v"], self._attends(layer, at_scored))
            written = self.model.write(layer, heads, z - _stack([to[s] for s in senders])[:, None])
            for i, s in enumerate(senders):
                out[s] = Computed({c: values[c][i] for c in kinds} | {"out": z[i]}, written[i])
        return out

    def heads(self, senders: Sequence[int], kinds: Iterable[str], stream: Tensor) -> dict[int, Values]:
        """Queries, keys or values of heads of one layer, all from one stream Float[batch pos d_model], which may end
        before the prompts do."""
        layer = self.graph.senders[senders[0]].layer
        heads = [self.graph.senders[s].head for s in senders]
        x = stream.expand(len(heads), -1, -1, -1)
        values = {c: self.model.project(c, layer, heads, x, self.positions[:, : stream.shape[1]]) for c in kinds}
        return {s: {c: y[i] for c, y in values.items()} for i, s in enumerate(senders)}

    def _project(self, kind: str, layer: int, heads: list[int], x: list[Tensor], scored: bool) -> Tensor:
        """q, k or v of heads at the positions of their inputs: Float[head version batch pos d_head]."""
        positions = self.positions[:, self.start :]
        if kind == "q" and scored and not self.all_scored:
            positions = positions[:, self.columns]
        return self.model.project(kind, layer, heads, _stack(x), positions)

    def _attends(self, layer: int, scored: bool) -> Tensor:
        """Bool[batch query key]: which keys a query of this layer attends to."""
        window = self.model.config.windows[layer] if self.model.config.windows else 0
        if (window, scored) not in self._masks:
            mask = self.model.window(layer, self._mask, self.start)
            self._masks[window, scored] = self.narrow(mask, False, scored)
        return self._masks[window, scored]


def _stack(x: list[Tensor]) -> Tensor:
    return torch.stack(x) if len(x) > 1 else x[0][None]
