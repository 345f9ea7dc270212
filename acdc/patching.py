"""Run the whole model with any set of edges: plain, and differentiable in the edges.

Receiver input = Σ kept edges: sender's current output + Σ removed edges: sender's ablated output + biases.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from acdc.graph import QKV, Circuit, Graph
from acdc.model.transformer import Activations, Transformer, positions_of
from acdc.runs import Runs

CHUNK = 16  # prompts per patched forward pass; bounds the senders × positions × d_model table


def patched_rows(model: Transformer, graph: Graph, runs: Runs, edges: Tensor) -> Tensor:
    """The normalised final residual stream at the scored rows when only some edges carry the current activation.

    Args:
        edges: Float[sender receiver], 1 for a kept edge, 0 for a removed one; anything between mixes the two
    Returns:
        Float[row d_model], to be given to a metric of `runs`
    """
    n = len(runs.pad)
    finals = []
    for start in range(0, n, CHUNK):
        chunk = slice(start, min(start + CHUNK, n))
        clean = runs.clean.inputs[:, chunk]
        ablated, positions = runs.ablated.examples(chunk), positions_of(runs.pad[chunk], runs.mask.shape[1])
        finals.append(_forward(model, graph, clean, ablated, runs.mask[chunk], positions, edges))
    return runs.scored(model, torch.cat(finals))


def circuit_edges(circuit: Circuit, model: Transformer) -> Tensor:
    """A circuit as Float[sender receiver]. A removed direct edge removes all edges into its receiver."""
    kept = circuit.kept
    if circuit.direct is not None:
        kept = kept & (circuit.direct | ~circuit.graph.direct)
    return torch.as_tensor(kept).to(model.device, model.dtype)


def _forward(
    model: Transformer,
    graph: Graph,
    inputs: Tensor,
    ablated: Activations,
    mask: Tensor,
    positions: Tensor,
    edges: Tensor,
) -> Tensor:
    """Final residual stream Float[batch pos d_model] of one chunk of prompts; inputs Float[input batch pos d_model].

    A node that nothing reads is not computed.
    """
    kept = (edges.detach() != 0).cpu().numpy()
    removed = [model.written(ablated, s) for s in graph.senders]
    current: dict[int, Tensor] = {}  # sender → what a kept edge from it adds over a removed one
    below, n_below = torch.zeros_like(inputs[0]), 0  # sum over the first senders of what they write when removed

    def receive(receiver: int) -> Tensor:
        nonlocal below, n_below
        r = graph.receivers[receiver]
        n = graph.n_parents(r)  # never falls from one receiver to the next
        below, n_below = sum(removed[n_below:n], below), n
        x = below + model.bias(r.layer, before_mlp=r.kind == "mlp")
        for sender in np.flatnonzero(kept[:, receiver]).tolist():
            x = torch.addcmul(x, edges[sender, receiver], current[sender])
        return x

    for index, s in enumerate(graph.senders):
        if not kept[index].any():
            continue
        own = graph.own_receivers[index]
        if s.kind == "input":
            written = inputs[s.head]
        elif s.kind == "mlp":
            written = model.mlp(s.layer, receive(own[0]))
        else:
            q, k, v = (model.project(c, s.layer, s.head, receive(r), positions) for c, r in zip(QKV, own, strict=True))
            written = model.write(s.layer, s.head, model.attend(q, k, v, model.window(s.layer, mask)))
        current[index] = written - removed[index]
    return receive(graph.receiver_index["logits"])
