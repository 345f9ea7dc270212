"""The features that `--features` makes nodes of: which there are, and those that matter most on the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from acdc.errors import FileError
from acdc.model.activations import Activations
from acdc.model.checkpoint import hash_files
from acdc.model.config import ModelConfig
from acdc.model.features import Features, neurons, split, transcoder_features
from acdc.model.transcoders import find_transcoders, folded, read_transcoders
from acdc.model.transformer import Transformer
from acdc.patching.activations import CHUNK, means, prepare
from acdc.patching.gradients import receiver_gradients
from acdc.registry import METHODS, parse_features
from acdc.setup.config import Config
from acdc.task.tokenize import Split

Chosen = Sequence[Sequence[str]]  # names of features, by layer


def with_most_features(sizes: ModelConfig, config: Config) -> ModelConfig:
    """The sizes of a model with as many features as a config asks for, or all neurons; for estimates."""
    if config.features is None or not sizes.d_mlp:
        return sizes
    number = parse_features(config.features)[1] or sizes.d_mlp
    return replace(sizes, features=(tuple(f"n{i}" for i in range(number)),) * sizes.n_layers)


def features_hash(config: Config) -> str | None:
    """The hash of the files of a config's transcoders; None without any."""
    source = parse_features(config.features)[0] if config.features else "neurons"
    return None if source == "neurons" else hash_files(sorted(find_transcoders(source).rglob("*.safetensors")))


def with_features(model: Transformer, config: Config, prompts: Split, chosen: Chosen = ()) -> Transformer:
    """The model with the features that a config asks for, or those `chosen` before, as nodes. Raises UserError if
    there are none such."""
    model = split(model, {})
    if config.features is None:
        return model
    source, number = parse_features(config.features)
    every = _read(source, model)
    if chosen:
        return split(model, {layer: _named(source, layer, every, names) for layer, names in enumerate(chosen) if names})
    if number is not None:
        every = strongest(model, config, prompts, every, number)
    return split(model, every)


def _read(source: str, model: Transformer) -> dict[int, Features]:
    """All features of the MLPs, by layer."""
    c = model.config
    if not c.d_mlp:
        raise FileError(f"--features {source}: the model has no MLPs")
    if source == "neurons":
        return {layer: neurons(model, layer) for layer in range(c.n_layers)}
    found = read_transcoders(find_transcoders(source), c)
    return {layer: transcoder_features(folded(coder, model, layer)) for layer, coder in found.items()}


def _named(source: str, layer: int, every: Mapping[int, Features], names: Sequence[str]) -> Features:
    index = {name: i for i, name in enumerate(every[layer].names)} if layer in every else {}
    if missing := [name for name in names if name not in index]:
        raise FileError(f"--features {source}: layer {layer} has no feature {missing[0]}, which the circuit has")
    return every[layer].take([index[name] for name in names])


def strongest(
    model: Transformer, config: Config, prompts: Split, every: Mapping[int, Features], number: int
) -> dict[int, Features]:
    """So many features of each MLP that matter most; features without any effect are left out.

    What a feature matters is estimated as eap-ig does for an edge: by how much its activation changes when it is
    ablated, times its decoder row, times the gradient of the metric at the MLP's output, averaged over runs from
    ablated to clean inputs; summed over the live positions, mean over the prompts, in size. Under mean ablation, the
    mean is that of up to `CHUNK` prompts.
    """
    total = {layer: torch.zeros(len(some.names), dtype=torch.float64) for layer, some in every.items()}
    mean = means(model, prompts) if config.ablation == "mean" else None
    for start in range(0, len(prompts.clean), CHUNK):
        part = prompts.take(range(start, min(start + CHUNK, len(prompts.clean))))
        for layer, effects in _effects(model, config, part, mean, every):
            total[layer] += effects.sum((0, 1)).cpu().double()
    out = {}
    for layer, some in every.items():
        order = total[layer].abs().sort(descending=True, stable=True).indices[:number]
        out[layer] = some.take(sorted(i for i in order.tolist() if total[layer][i]))
    return out


@torch.no_grad()
def _effects(
    model: Transformer, config: Config, prompts: Split, mean: Activations | None, every: Mapping[int, Features]
) -> Iterator[tuple[int, Tensor]]:
    """Yield layers and the estimated effects of their features, Float[batch live feature]."""
    graph = model.config.graph()
    cache = prepare(model, prompts, config.ablation, mean)
    metric = cache.metric(config.metric, model)
    steps = config.steps or METHODS["eap-ig"].repeats
    gradients = {layer: torch.zeros_like(cache.residual[0, :, cache.first :]) for layer in every}
    for k in range(steps):
        inputs = torch.lerp(cache.ablated.inputs, cache.clean.inputs, k / steps)
        at, residual = model.run_inputs(inputs, cache.pad)
        for gradient in receiver_gradients(model, cache, at, residual, metric):
            r = graph.receivers[gradient.receivers.start]
            if r.kind == "mlp" and r.layer in every:
                gradients[r.layer] += gradient.written / steps
    other = model.run(torch.as_tensor(prompts.corrupted).to(model.device), cache.pad)
    for layer, some in every.items():
        receiver = graph.receivers[graph.receiver_index[f"m{layer}"]]
        active = some.together(model, model.received(receiver, cache.clean, cache.residual)[:, cache.first :])
        if config.ablation == "corrupted":
            ablated = some.together(model, model.received(receiver, *other)[:, cache.first :])
        else:
            ablated = active.mean(0) if config.ablation == "mean" else torch.zeros_like(active)
        yield layer, (ablated - active) * (gradients[layer] @ some.decoder.T)
