"""A checkpoint's tensors, taken by name and shape, and brought into the transformer's form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from acdc.errors import ModelError


class Checkpoint:
    """Tensors of one checkpoint. Raises ModelError when one that is asked for is missing or has another shape."""

    def __init__(self, tensors: dict[str, Tensor], where: str) -> None:
        self._tensors, self._where = tensors, where

    def has(self, name: str) -> bool:
        return name in self._tensors

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self._tensors:
            raise ModelError(f"{self._where}: tensor {name!r} is missing; is this a whole checkpoint?")
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{self._where}: tensor {name!r} has shape {tuple(tensor.shape)}, not {shape}")
        return tensor

    def linear(self, name: str, n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
        """Weight Float[in out] and bias Float[out] of an nn.Linear; a bias that is not there is 0."""
        weight = self.get(f"{name}.weight", n_out, n_in).T
        bias = f"{name}.bias"
        return weight, self.get(bias, n_out) if self.has(bias) else weight.new_zeros(n_out)

    def fold(self, norm: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(x ⊙ scale + shift) @ W + b as x @ W' + b': a norm's scale and shift, if it has one, go to its reader."""
        d = len(weight)
        if self.has(f"{norm}.bias"):
            bias = bias + self.get(f"{norm}.bias", d) @ weight
        return self.get(f"{norm}.weight", d)[:, None] * weight, bias


def heads(weight: Tensor, bias: Tensor, n_heads: int, repeat: int = 1) -> tuple[Tensor, Tensor]:
    """Float[d_model head·d_head] and Float[head·d_head] as Float[head d_model d_head] and Float[head d_head].

    Args:
        repeat: query heads that share one key or value head (grouped-query attention): each gets a copy
    """
    w = weight.view(len(weight), n_heads, -1).transpose(0, 1)
    return w.repeat_interleave(repeat, 0).contiguous(), bias.view(n_heads, -1).repeat_interleave(repeat, 0)


def take(raw: dict[str, Any], where: str, *names: str) -> list[Any]:
    """Values of config.json; a missing key is an error."""
    for name in names:
        if raw.get(name) is None:
            raise ModelError(f"{where}: key {name!r} is missing")
    return [raw[name] for name in names]


def refuse(raw: dict[str, Any], where: str, **supported: Any) -> None:
    """Raise ModelError for an option that has another value than the only supported one."""
    for key, wanted in supported.items():
        if raw.get(key, wanted) != wanted:
            raise ModelError(f"{where}: {key} is {raw[key]!r}; only {wanted} is supported")


def rope(raw: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of the rotation: transformers 5 has one mapping, older versions several keys."""
    return {
        "rope_theta": raw.get("rope_theta", raw.get("rotary_emb_base", 10_000.0)),
        "partial_rotary_factor": raw.get("partial_rotary_factor", raw.get("rotary_pct", 1.0)),
        **(raw.get("rope_scaling") or {}),
        **(raw.get("rope_parameters") or {}),
    }


def frequencies(raw: dict[str, Any], size: int, where: str) -> Tensor:
    """Float[size/2]: angle per position of each rotated pair (Su et al. 2021), scaled as Llama 3.1 does if so said."""
    said = rope(raw)
    kind = said.get("rope_type", said.get("type", "default"))
    f = 1.0 / said["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    if kind == "default":
        return f
    if kind == "linear":
        return f / said["factor"]
    if kind != "llama3":
        raise ModelError(f"{where}: rope type {kind!r} is not supported; default, linear and llama3 are")
    factor, low, high = said["factor"], said["low_freq_factor"], said["high_freq_factor"]
    turns = said["original_max_position_embeddings"] * f / (2 * math.pi)  # over the original context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * f / factor + smooth * f
