"""Sizes and options of a transformer, checked, and the shapes of its weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from acdc.errors import ModelError, unknown
from acdc.graph.graph import MAX_NODES, Graph
from acdc.model.find import SIZES

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
}
NORMS = ("layer", "rms", "none")
MAX_HEAD = 100_000  # dimensions of a head


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a transformer. `d_mlp` 0 means attention only; `vocab_out` counts the output columns."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    n_positions: int
    vocab_size: int
    vocab_out: int
    norm: str = "layer"
    norm_eps: float = 1e-5
    activation: str = "gelu_new"
    causal: bool = True
    split_position: bool = False  # token and position embedding are two senders
    rotary: int = 0  # head dimensions that are rotated by position; 0: a position embedding is added to the stream
    parallel: bool = False  # attention and MLP of a layer read the same stream (GPT-NeoX)
    gated: bool = False  # MLP = out(activation(gate(x)) * in(x))
    head_norm: bool = False  # queries and keys are RMS-normalised per head (Qwen 3)
    joint_head_norm: bool = False  # or by those of all heads together, from the same input (OLMo 2)
    windows: tuple[int, ...] = ()  # per layer: how many positions back a query sees, itself included; 0: all
    local_rotary: bool = False  # layers with a window rotate by frequencies of their own (Gemma 3)
    pre_norm: bool = True  # heads and MLPs normalise what they read
    post_norm: bool = False  # what a layer's heads write together, or its MLP, is RMS-normalised before it is added
    score_cap: float = 0.0  # attention scores are cap · tanh(score / cap); 0: they have no cap
    logit_cap: float = 0.0  # logits likewise
    features: tuple[tuple[str, ...], ...] = ()  # of the graph, where MLPs are split into features

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("d_mlp", "rotary") else 1
            if field.type is int and (type(value) is not int or value < least):
                raise ModelError(f"model config: {field.name} is {value!r}; it must be a whole number from {least} up")
            if field.type is bool and not isinstance(value, bool):
                raise ModelError(f"model config: {field.name} is {value!r}; it must be true or false")
        if self.n_layers * (self.n_heads + 1) > MAX_NODES:
            size = f"{self.n_layers} layers of {self.n_heads} heads"
            raise ModelError(f"model config: {size} are a graph of more than {MAX_NODES:,} nodes, which can't be held")
        if self.rotary > self.d_head or self.d_head > MAX_HEAD:
            raise ModelError(f"model config: {self.rotary} of {self.d_head} dimensions of a head are rotated")
        for kind, name, known in (("activation", self.activation, ACTIVATIONS), ("norm", self.norm, NORMS)):
            if name not in known:
                raise ModelError("model config: " + unknown(kind, name, known))
        for name in ("norm_eps", "score_cap", "logit_cap"):
            number = getattr(self, name)
            if type(number) not in (int, float) or not 0 <= number < math.inf:
                raise ModelError(f"model config: {name} is {number!r}; it must be a number from 0 up")
        if not all(type(window) is int and window >= 0 for window in self.windows):
            raise ModelError(f"model config: windows are {self.windows!r}; each must be a whole number from 0 up")
        if self.windows and len(self.windows) != self.n_layers:
            raise ModelError(f"model config: attention is described for {len(self.windows)} of {self.n_layers} layers")

    @cache  # noqa: B019 - there are few configs
    def graph(self) -> Graph:
        """The graph of this transformer."""
        inputs = ("tok", "pos") if self.split_position else ("input",)
        return Graph(self.n_layers, self.n_heads, self.d_mlp > 0, inputs, self.parallel, self.features)

    def operations(self, kind: str) -> int:
        """Multiplications and additions of a node at one position: an input, a head without the mixing of positions, an
        MLP, a feature of one, or the logits."""
        d = self.d_model
        head = (4 + 2 * self.n_heads * self.joint_head_norm) * d * self.d_head
        mlp = (3 if self.gated else 2) * d * self.d_mlp
        return 2 * {"input": 0, "head": head, "mlp": mlp, "feature": 2 * d, "logits": d * self.vocab_out}[kind]

    @property
    def n_weights(self) -> int:
        """The number of all weights, biases included."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every weight."""
        c = self
        out: dict[str, tuple[int, ...]] = {
            "token.weight": (c.vocab_size, c.d_model),
            "unembed.weight": (c.d_model, c.vocab_out),
            "unembed.bias": (c.vocab_out,),
        }
        if c.rotary:
            out["rotary.frequencies"] = (c.rotary // 2,)
            if c.local_rotary:
                out["rotary.local"] = (c.rotary // 2,)
        else:
            out["position.weight"] = (c.n_positions, c.d_model)
        norm = (c.n_heads, c.d_head) if c.joint_head_norm else (c.d_head,)
        layer: dict[str, tuple[int, ...]] = {}
        if c.head_norm or c.joint_head_norm:
            layer = {"q.norm": norm, "k.norm": norm}
        for x in "qkv":
            layer[f"{x}.weight"] = (c.n_heads, c.d_model, c.d_head)
            layer[f"{x}.bias"] = (c.n_heads, c.d_head)
        layer["o.weight"] = (c.n_heads, c.d_head, c.d_model)
        layer["o.bias"] = (c.d_model,)
        if c.d_mlp:
            for x in ("mlp_in", "mlp_gate") if c.gated else ("mlp_in",):
                layer[f"{x}.weight"] = (c.d_model, c.d_mlp)
                layer[f"{x}.bias"] = (c.d_mlp,)
            layer["mlp_out.weight"] = (c.d_mlp, c.d_model)
            layer["mlp_out.bias"] = (c.d_model,)
        if c.post_norm:
            layer |= {f"{x}.norm": (c.d_model,) for x in (("o", "mlp_out") if c.d_mlp else ("o",))}
        return out | {f"layers.{i}.{name}": shape for i in range(c.n_layers) for name, shape in layer.items()}


def sizes_of(config: Any, d_head: int | None = None, **more: Any) -> ModelConfig:
    """The transformer's config, from transformers' config and what a family has of its own. `d_head` is by default a
    head's share of d_model; raise ModelError if that is no whole number."""
    found: dict[str, Any] = {}
    for size, names in SIZES.items():
        found[size] = next(getattr(config, name) for name in names if hasattr(config, name))
    if d_head is None:
        width = found["d_model"]
        n_heads = found["n_heads"]
        if n_heads < 1 or width % n_heads:
            raise ModelError(f"model config: the width {width} is not a multiple of the number of heads {n_heads}")
        d_head = width // n_heads
    return ModelConfig(**{**found, "d_head": d_head, "vocab_out": found["vocab_size"], **more})
