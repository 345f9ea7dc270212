"""Models whose mechanism follows from their weights: random ones, made here, and the bundled compiled ones.

In a made model every sender writes into its own coordinates of the residual stream, and every receiver reads the
coordinates of a few earlier senders; there is no norm. An edge is real if its receiver reads its sender's coordinates,
and true if it also lies on a path of real edges from an input to the logits. All other edges carry exactly zero.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.model.config import ModelConfig
from acdc.model.features import neurons, split
from acdc.model.find import BUNDLED
from acdc.model.transformer import Transformer
from acdc.patching.offload import Parts
from acdc.patching.patch import patched_rows
from acdc.task.tokenize import Split
from tests.recipes import compile_tracr
from tests.support.random_models import random_prompts

MATTERS = 1e-6  # removing any single true edge changes a scored logit by more
FEWEST = 8  # true edges
SUBSPACE = 3  # coordinates per sender


@cache
def known_model(
    seed: int, n_layers: int | None = None, n_heads: int | None = None, leak: float = 0.0
) -> tuple[Transformer, Split, np.ndarray]:
    """A model in float64, prompts for it, and Bool[sender receiver], its true edges.

    Args:
        n_layers, n_heads: if not given, 2 to 4, depending on the seed
        leak: how strongly receivers also read all other senders, relative to 1 for those they should; above 0, edges
            that are not true carry little instead of nothing
    """
    sizes = n_layers or 2 + seed % 3, n_heads or 2 + seed // 3 % 3
    for attempt in range(100):
        model, real = _draw(np.random.default_rng([seed, attempt]), *sizes, leak=0.0)
        prompts = _answered(model, random_prompts(seed, model, batch=4, n_pos=5, first=0, scored="two"))
        true = Circuit(model.config.graph(), real).pruned().kept
        if true.sum() >= FEWEST and effects(model, prompts, true)[true].min() > MATTERS:
            break
    else:
        raise AssertionError(f"no model for seed {seed}")
    if leak:
        model, _ = _draw(np.random.default_rng([seed, attempt]), *sizes, leak=leak)
    return model, prompts, true


@torch.no_grad()
def _answered(model: Transformer, prompts: Split) -> Split:
    """Prompts with the model's own answers: the token with the largest logit, against that other one which gains most
    by corruption."""
    at, pad = tuple(torch.as_tensor(prompts.rows).T), torch.as_tensor(prompts.pad)
    clean, corrupted = (
        model.logits(model.run(torch.as_tensor(tokens), pad)[1][-1][at])
        for tokens in (prompts.clean, prompts.corrupted)
    )
    correct = clean.argmax(-1, keepdim=True)
    wrong = (corrupted - clean).scatter(-1, correct, -torch.inf).argmax(-1, keepdim=True)
    return replace(prompts, correct=correct.numpy(), wrong=wrong.numpy())


def _draw(rng: np.random.Generator, n_layers: int, n_heads: int, leak: float) -> tuple[Transformer, np.ndarray]:
    """A model and its real edges, Bool[sender receiver]."""
    graph = Graph(n_layers, n_heads)
    config = ModelConfig(
        n_layers, n_heads, d_model=SUBSPACE * len(graph.senders), d_head=3, d_mlp=8, n_positions=6, vocab_size=7,
        vocab_out=7, norm="none", activation=("gelu", "silu", "gelu_new")[rng.integers(3)],
    )  # fmt: skip
    real = np.zeros_like(graph.edges)
    for j, receiver in enumerate(graph.receivers):
        n = graph.n_parents(receiver)
        real[rng.choice(n, min(n, rng.integers(1, 4)), replace=False), j] = True
    own = np.repeat(np.eye(len(graph.senders)), SUBSPACE, axis=1)  # Float[sender d_model]

    def writes(name: str) -> np.ndarray:
        """Float[d_model]: 1 where a sender writes."""
        return own[graph.sender_index[name]]

    def reads(name: str) -> np.ndarray:
        """Float[d_model 1]: above 0 where a receiver reads, scaled so that all receivers read about as much."""
        kept = real[:, graph.receiver_index[name]]
        return (np.maximum(kept, leak) @ own / np.sqrt(SUBSPACE * kept.sum()))[:, None]

    weights = {name: rng.normal(size=shape) for name, shape in config.shapes().items()}
    for name, x in weights.items():
        if name.endswith("bias"):
            x *= 0.3
    weights["token.weight"] *= writes("input")
    weights["position.weight"] *= writes("input")
    weights["unembed.weight"] *= 0.5 * reads("logits")
    for layer in range(n_layers):
        at = f"layers.{layer}."
        for h in range(n_heads):
            for c in "qkv":
                weights[f"{at}{c}.weight"][h] *= reads(f"a{layer}.h{h}<{c}>")
            weights[at + "o.weight"][h] *= writes(f"a{layer}.h{h}")
        weights[at + "mlp_in.weight"] *= reads(f"m{layer}")
        weights[at + "mlp_out.weight"] *= 0.6 * writes(f"m{layer}")
        weights[at + "mlp_out.bias"] *= writes(f"m{layer}")
    return Transformer(config, {name: torch.from_numpy(x) for name, x in weights.items()}), real


@torch.no_grad()
def effects(model: Transformer, prompts: Split, which: np.ndarray) -> np.ndarray:
    """Float[sender receiver]: the largest change of a scored logit when an edge of `which` alone is removed; else 0."""
    graph, runs = model.config.graph(), Parts(model, prompts, "corrupted")[0]
    full = torch.tensor(graph.edges).to(model.dtype)
    clean = model.logits(patched_rows(model, graph, runs, full))
    out = np.zeros(graph.edges.shape)
    for s, r in np.argwhere(which):
        edges = full.clone()
        edges[s, r] = 0
        out[s, r] = (model.logits(patched_rows(model, graph, runs, edges)) - clean).abs().max()
    return out


# --- the bundled compiled models ---------------------------------------------------------------------------------


def true_edges(name: str) -> np.ndarray:
    """Bool[sender receiver]: the real edges of a bundled compiled model on paths from inputs to the logits, without
    those that never change an output after BOS (`Program.inert`)."""
    model = compile_tracr.load_model(BUNDLED / name)
    inert = {edge for program in compile_tracr.PROGRAMS if program.name == name for edge in program.inert}
    kept = np.zeros_like(model.graph.edges)
    for edge in set(compile_tracr.structure(model)) - inert:
        kept[model.graph.parse_edge(edge)] = True
    return Circuit(model.graph, kept).pruned().kept


def compiled(name: str) -> tuple[Transformer, Split, np.ndarray]:
    """A bundled compiled model in float64, prompts for it, and its true edges.

    A model with a single output gets a second one that is always 0, so that all metrics are defined.
    """
    raw = compile_tracr.load_model(BUNDLED / name)
    weights = {key: torch.from_numpy(x) for key, x in raw.weights.items()}
    config = ModelConfig(
        **{"vocab_out": raw.config["vocab_size"]} | {k: v for k, v in raw.config.items() if k != "model_type"}
    )
    if config.vocab_out == 1:
        config = replace(config, vocab_out=2)
        for key in ("unembed.weight", "unembed.bias"):
            weights[key] = torch.cat([weights[key], torch.zeros_like(weights[key])], -1)
    program = {p.name: p for p in compile_tracr.PROGRAMS}.get(name)
    clean = np.array([[1]]) if program is None else program.ids[:: max(1, len(program.ids) // 32)]
    corrupted = 1 - clean if program is None else np.roll(clean, 1, axis=0)
    first = int(program is not None)  # after BOS
    rows = np.argwhere(np.ones_like(clean[:, first:])) + np.array([0, first])
    if name == "tracr-reverse":
        correct = clean[:, :0:-1].reshape(-1, 1)
        wrong = np.array([[x for x in (1, 2, 3) if x != answer] for answer in correct.ravel()])
    else:  # the first column is correct where the clean output is larger, so that effects don't cancel over prompts
        change = compile_tracr.forward(raw, clean) - compile_tracr.forward(raw, corrupted)
        wrong = (change[:, first:].reshape(-1, 1) >= 0).astype(np.int64)
        correct = 1 - wrong
    pad = np.zeros(len(clean), dtype=np.int64)
    return Transformer(config, weights), Split(clean, corrupted, pad, rows, correct, wrong), true_edges(name)


def with_neurons(name: str) -> tuple[Transformer, Split, np.ndarray]:
    """A bundled compiled model whose neurons are nodes, prompts for it, and its edges that are real by the weights and
    on paths from inputs to the logits. A rest writes the output bias alone, and reads nothing."""
    whole, prompts, _ = compiled(name)
    model = split(whole, {layer: neurons(whole, layer) for layer in range(whole.config.n_layers)})
    raw, graph = compile_tracr.load_model(BUNDLED / name), model.config.graph()

    def weights(layer: int, node: str) -> tuple[np.ndarray, np.ndarray, bool]:
        """What a node of an MLP reads and writes, Float[d_model], and whether it is ever active."""
        w_in, w_out = raw.layer(layer, "mlp_in.weight"), raw.layer(layer, "mlp_out.weight")
        if node.endswith(".rest"):
            return 0 * w_in[:, 0], raw.layer(layer, "mlp_out.bias"), True
        i = int(node.partition(".n")[2])
        return w_in[:, i], w_out[i], bool(w_in[:, i].any() or raw.layer(layer, "mlp_in.bias")[i] > 0)

    def writes(s) -> np.ndarray:
        if s.kind != "mlp":
            return compile_tracr._writes(raw, s)
        _, written, active = weights(s.layer, s.name)
        return (np.abs(written) > 1e-6) & active

    def reads(r) -> np.ndarray:
        if r.kind != "mlp":
            return compile_tracr._reads(raw, r)
        read, written, _ = weights(r.layer, r.name)
        return (np.abs(read) > 1e-6) & written.any()

    of_senders, of_receivers = (np.stack([*map(writes, graph.senders)]), np.stack([*map(reads, graph.receivers)]))
    real = (of_senders.astype(int) @ of_receivers.T.astype(int) > 0) & graph.edges
    return model, prompts, Circuit(graph, real).pruned().kept


def carrying(model: Transformer, prompts: Split, true: np.ndarray, name: str) -> np.ndarray:
    """Bool[sender receiver]: the true edges of a bundled compiled model in which the clean and the corrupted run differ
    in anything that the receiver reads."""
    runs, raw = Parts(model, prompts, "corrupted")[0], compile_tracr.load_model(BUNDLED / name)
    written = torch.cat([x for _, x in runs.changes(model, len(raw.graph.senders))])
    reads = torch.from_numpy(np.stack([compile_tracr._reads(raw, r) for r in raw.graph.receivers])).to(written)
    moved = torch.einsum("sbtd,rd->sr", written.abs(), reads).numpy() > 1e-9
    return Circuit(raw.graph, true & moved).pruned().kept
