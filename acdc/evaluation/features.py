"""What features of a circuit are: where they are active, what they add to the logits, and which features feed them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.graph.circuit import Circuit
from acdc.model.features import SplitTransformer
from acdc.patching.activations import run_in_chunks
from acdc.setup.inputs import Inputs

TOP = 5  # tokens of each kind, and features
CONTEXT = 5  # tokens shown before one
CANDIDATES = 64  # places per part of the prompts, of which the ones with other tokens are shown

Place = tuple[str, str, float]
Weighted = tuple[tuple[str, float], ...]  # names or texts, with values from the largest magnitude down


@dataclass(frozen=True)
class ShownFeature:
    """A feature of an MLP, in the full model."""

    # On the clean prompts: the tokens before one, that token, and the activation there; and on the corrupted ones, if
    # removed edges carry what these give.
    clean: tuple[Place, ...]
    corrupted: tuple[Place, ...]
    raises: Weighted  # tokens whose logits its decoder row raises most, by how much per unit of activation,
    lowers: Weighted  # and lowers; the final norm is left out
    fed: Weighted  # features before it, and decoder row · encoder row: what a unit of them adds, but for the norm


def shown_features(inputs: Inputs, circuit: Circuit) -> dict[str, ShownFeature]:
    """The features that are nodes of a circuit, by name."""
    model = inputs.model.transformer
    if not isinstance(model, SplitTransformer):
        return {}
    wanted = {}  # layer → the features that are nodes, by index
    nodes = set(circuit.nodes())
    for layer, features in model.features.items():
        wanted[layer] = {i: f"m{layer}.{x}" for i, x in enumerate(features.names) if f"m{layer}.{x}" in nodes}
    clean = _places(inputs, model, wanted, "clean")
    corrupted = _places(inputs, model, wanted, "corrupted") if inputs.config.ablation == "corrupted" else {}
    before: list[tuple[str, Tensor]] = []  # decoder rows of the features of earlier layers
    out = {}
    for layer, features in sorted(model.features.items()):
        decoders = features.decoder
        if model.config.norm == "layer":
            decoders = decoders - decoders.mean(-1, keepdim=True)
        for i, node in wanted[layer].items():
            logits = features.decoder[i] @ model.weights["unembed.weight"].T
            raises = _tokens(inputs, logits, 1)
            lowers = _tokens(inputs, -logits, -1)
            fed = [(other, float(decoder @ features.encoder[i])) for other, decoder in before]
            fed.sort(key=lambda one: -abs(one[1]))
            out[node] = ShownFeature(clean[node], corrupted.get(node, ()), raises, lowers, tuple(fed[:TOP]))
        before += [(f"m{layer}.{name}", row) for name, row in zip(features.names, decoders, strict=True)]
    return out


def _tokens(inputs: Inputs, values: Tensor, sign: int) -> Weighted:
    values, ids = values.cpu().double().topk(min(TOP, len(values)))
    return tuple(zip(inputs.model.tokenizer.pieces(ids.tolist()), (sign * values).tolist(), strict=True))


def _places(
    inputs: Inputs, model: SplitTransformer, wanted: dict[int, dict[int, str]], which: str
) -> dict[str, tuple[Place, ...]]:
    """Where some features, by layer and index, are most active on the `clean` or `corrupted` prompts."""
    graph = model.config.graph()
    split = getattr(inputs.data, inputs.evaluation_split)
    prompts = getattr(split, which)
    found: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    start = 0
    for part in inputs.parts(inputs.evaluation_split):
        tokens = torch.as_tensor(prompts[start : start + len(part.pad)]).to(model.device)
        run = (part.clean, part.residual) if which == "clean" else run_in_chunks(model, tokens, part.pad)
        real = torch.arange(tokens.shape[1], device=model.device) >= part.pad[:, None]
        for layer, of in wanted.items():
            receiver = graph.receivers[graph.receiver_index[graph.mlp_names(layer)[0]]]
            active = model.features[layer].together(model, model.received(receiver, *run))
            for i, node in of.items():
                here = (active[..., i] * real).flatten()
                most = here.abs().topk(min(CANDIDATES, len(here))).indices.tolist()
                found[node] += [(float(here[p]), start + p // len(real[0]), p % len(real[0])) for p in most]
        start += len(part.pad)
    out = {}
    for node, places in found.items():
        shown: dict[tuple[str, str], float] = {}
        for value, prompt, at in sorted(places, key=lambda one: -abs(one[0])):
            tokens = prompts[prompt, max(int(split.pad[prompt]), at - CONTEXT) : at + 1]
            *context, token = inputs.model.tokenizer.pieces([int(t) for t in tokens])
            if value and len(shown) < TOP:
                shown.setdefault(("".join(context), token), value)
        out[node] = tuple((*texts, value) for texts, value in shown.items())
    return out
