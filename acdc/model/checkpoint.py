"""A checkpoint's tensors, taken by name and shape, and brought into the transformer's form."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model.config import MAX_NODES

IGNORED = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|^(lm_head|embed_out)\.weight$")
"""Tensors that change nothing: masks and frequencies that old checkpoints hold, and a second copy of a tied head."""


class Checkpoint:
    """Tensors of one checkpoint. Raises ModelError when one that is asked for is missing or has another shape, and in
    `finish` when one was never asked for."""

    def __init__(self, tensors: dict[str, Tensor], where: str) -> None:
        self._tensors, self._where = tensors, where
        self._used: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def get(self, name: str, *shape: int) -> Tensor:
        """The tensor of this name and shape."""
        if name not in self._tensors:
            raise ModelError(f"{self._where}: tensor {name!r} is missing; is this a whole checkpoint?")
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{self._where}: tensor {name!r} has shape {tuple(tensor.shape)}, not {shape}")
        self._used.add(name)
        return tensor

    def finish(self) -> None:
        """Raise ModelError if a tensor has no place in the family: the model that it belongs to computes something else
        (quantized weights with scales beside them, norms with a fixed deviation, adapters)."""
        if left := sorted(n for n in self._tensors if n not in self._used and not IGNORED.search(n)):
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise ModelError(
                f"{self._where}: tensor {left[0]!r}{more} has no place in a model of this family; without it another "
                "model would be computed"
            )

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


@contextmanager
def values(where: str) -> Iterator[None]:
    """Any error inside, a ModelError aside, comes from a value of config.json that is not what its key holds."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: a value is not of the kind that its key holds ({error})") from None


def share(width: int, n_heads: int, where: str) -> int:
    """The size of a head: an equal part of the width."""
    if width % n_heads:
        raise ModelError(f"{where}: the width {width} is no multiple of the number of heads {n_heads}")
    return width // n_heads


def take(raw: dict[str, Any], where: str, *names: str) -> list[Any]:
    """Values of config.json; a missing key is an error."""
    for name in names:
        if raw.get(name) is None:
            raise ModelError(f"{where}: key {name!r} is missing")
    return [raw[name] for name in names]


def sizes(raw: dict[str, Any], where: str, *names: str) -> list[int]:
    """Values of config.json that are whole numbers above 0; of layers no more than any model has."""
    found = take(raw, where, *names)
    for name, value in zip(names, found, strict=True):
        if type(value) is not int or value < 1:
            raise ModelError(f"{where}: {name} is {value!r}; it must be a whole number above 0")
        if "layer" in name and value > MAX_NODES:
            raise ModelError(f"{where}: {name} is {value}; no model has so many")
    return found


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
    if kind not in ("default", "linear", "llama3"):
        raise ModelError(f"{where}: rope type {kind!r} is not supported; default, linear and llama3 are")
    with values(where):
        f = 1.0 / said["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
        if kind == "default":
            return f
        if kind == "linear":
            return f / take(said, where, "factor")[0]
        factor, low, high, context = take(
            said, where, "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
        )
        turns = context * f / (2 * math.pi)  # over the original context
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * f / factor + smooth * f
