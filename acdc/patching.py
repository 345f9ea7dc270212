"""Run the whole model with any set of edges: plain, and differentiable in the edges.

Receiver input = Σ kept edges: sender's current output + Σ removed edges: sender's ablated output + biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from acdc.graph import Circuit, Graph, Receiver
from acdc.model.transformer import Activations, Transformer
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
        finals.append(_forward(model, graph, clean, runs.ablated.examples(chunk), runs.mask[chunk], edges))
    return runs.scored(model, torch.cat(finals))


class Score(NamedTuple):
    """A circuit on a set of prompts: the metric per prompt, Float[batch], and Bool[row] whether it answers rightly."""

    metric: Tensor
    accuracy: Tensor


def circuit_edges(circuit: Circuit, model: Transformer) -> Tensor:
    """A circuit as Float[sender receiver]. A removed direct edge removes all edges into its receiver."""
    kept = circuit.kept
    if circuit.direct is not None:
        kept = kept & (circuit.direct | ~circuit.graph.direct)
    return torch.as_tensor(kept).to(model.device, model.dtype)


def _forward(
    model: Transformer, graph: Graph, inputs: Tensor, ablated: Activations, mask: Tensor, edges: Tensor
) -> Tensor:
    """Final residual stream Float[batch pos d_model] of one chunk of prompts; inputs Float[input batch pos d_model]."""
    removed = [model.written(ablated, s) for s in graph.senders]
    current = [x - a for x, a in zip(inputs, removed, strict=False)]  # what a kept edge adds over a removed one
    for layer in range(graph.n_layers):
        x = _receive(model, graph, layer, "qkv", removed, current, edges)
        rows = {r.name: x_r for r, x_r in x}
        heads = []
        for h in range(graph.n_heads):
            q, k, v = (model.project(c, layer, h, rows[f"a{layer}.h{h}<{c}>"]) for c in "qkv")
            heads.append(model.write(layer, h, model.attend(q, k, v, mask)) - removed[len(current) + h])
        current += heads
        if graph.mlp:
            ((_, x_m),) = _receive(model, graph, layer, "mlp", removed, current, edges)
            current.append(model.mlp(layer, x_m) - removed[len(current)])
    ((_, final),) = _receive(model, graph, graph.n_layers, "logits", removed, current, edges)
    return final


def _receive(
    model: Transformer,
    graph: Graph,
    layer: int,
    kinds: str,
    removed: list[Tensor],
    current: list[Tensor],
    edges: Tensor,
) -> Iterator[tuple[Receiver, Tensor]]:
    """The input of every receiver of one kind in one layer."""
    columns = [j for j, r in enumerate(graph.receivers) if r.layer == layer and r.kind in kinds]
    n = graph.n_parents(graph.receivers[columns[0]])
    base = torch.stack(removed[:n]).sum(0) + model.bias(layer, before_mlp=kinds == "mlp")
    mixed = torch.tensordot(edges[:n, columns].T, torch.stack(current[:n]), dims=1)
    return ((graph.receivers[j], base + m) for j, m in zip(columns, mixed, strict=True))
