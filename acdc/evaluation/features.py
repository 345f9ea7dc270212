"""What features of a circuit are: where they are active, what they add to the logits, and which features feed them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.graph.circuit import Circuit
from acdc.model.features import SplitTransformer
from acdc.setup.inputs import Inputs

TOP = 5  # tokens of each kind, and features
CONTEXT = 5  # tokens shown before one
CANDIDATES = 64  # places per part of the prompts, of which the ones with other tokens are shown

Weighted = tuple[tuple[str, float], ...]  # names or texts, with values from the largest magnitude down


@dataclass(frozen=True)
class ShownFeature:
    """A feature of an MLP, on the clean prompts in the full model."""

    active: tuple[tuple[str, str, float], ...]  # the tokens before one, that token, and the activation there
    raises: Weighted  # tokens whose logits its decoder row raises most, by how much per unit of activation,
    lowers: Weighted  # and lowers; the final norm is left out
    fed: Weighted  # features before it, and decoder row · encoder row: what a unit of them adds, but for the norm


def shown_features(inputs: Inputs, circuit: Circuit) -> dict[str, ShownFeature]:
    """The features that are nodes of a circuit, by name."""
    model = inputs.model.transformer
    if not isinstance(model, SplitTransformer):
        return {}
    nodes = set(circuit.nodes())
    before: list[tuple[str, Tensor]] = []  # decoder rows of the features of earlier layers
    out = {}
    for layer, features in sorted(model.features.items()):
        active = dict(_active(inputs, model, layer, nodes))
        decoders = features.decoder
        if model.config.norm == "layer":
            decoders = decoders - decoders.mean(-1, keepdim=True)
        for i, name in enumerate(features.names):
            node = f"m{layer}.{name}"
            if node in nodes:
                logits = features.decoder[i] @ model.weights["unembed.weight"].T
                fed = [(other, float(decoder @ features.encoder[i])) for other, decoder in before]
                fed.sort(key=lambda one: -abs(one[1]))
                raises = _tokens(inputs, logits, 1)
                lowers = _tokens(inputs, -logits, -1)
                out[node] = ShownFeature(active[node], raises, lowers, tuple(fed[:TOP]))
        before += [(f"m{layer}.{name}", row) for name, row in zip(features.names, decoders, strict=True)]
    return out


def _tokens(inputs: Inputs, values: Tensor, sign: int) -> Weighted:
    values, ids = values.cpu().double().topk(min(TOP, len(values)))
    return tuple(zip(inputs.model.tokenizer.pieces(ids.tolist()), (sign * values).tolist(), strict=True))


def _active(
    inputs: Inputs, model: SplitTransformer, layer: int, nodes: set[str]
) -> Iterator[tuple[str, tuple[tuple[str, str, float], ...]]]:
    """Yield the features of a layer that are nodes, and where they are most active."""
    features = model.features[layer]
    wanted = [i for i, name in enumerate(features.names) if f"m{layer}.{name}" in nodes]
    graph = model.config.graph()
    receiver = graph.receivers[graph.receiver_index[graph.mlp_names(layer)[0]]]
    split = getattr(inputs.data, inputs.evaluation_split)
    found: dict[int, list[tuple[float, int, int]]] = {i: [] for i in wanted}
    start = 0
    for part in inputs.parts(inputs.evaluation_split):
        active = features.together(model, model.received(receiver, part.clean, part.residual))
        real = torch.arange(active.shape[1], device=active.device) >= part.pad[:, None]
        for i in wanted:
            here = (active[..., i] * real).flatten()
            places = here.abs().topk(min(CANDIDATES, len(here))).indices.tolist()
            found[i] += [(float(here[p]), start + p // active.shape[1], p % active.shape[1]) for p in places]
        start += len(active)
    for i in wanted:
        shown: dict[tuple[str, str], float] = {}
        for value, prompt, at in sorted(found[i], key=lambda one: -abs(one[0])):
            tokens = split.clean[prompt, max(int(split.pad[prompt]), at - CONTEXT) : at + 1]
            *context, token = inputs.model.tokenizer.pieces([int(t) for t in tokens])
            if value and len(shown) < TOP:
                shown.setdefault(("".join(context), token), value)
        yield f"m{layer}.{features.names[i]}", tuple((*texts, value) for texts, value in shown.items())
