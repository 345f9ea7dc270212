"""The tensors of a checkpoint, by name and shape, re-expressed as the weights of a transformer."""

import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model.config import ModelConfig


class Weights:
    """Reads the tensors of a checkpoint into the weights of a transformer, `out`; large tensors are freed as they are
    read, so that the model is held once. Tensors of a narrower dtype are widened to `dtype` when they are read."""

    def __init__(self, tensors: dict[str, Tensor], sizes: ModelConfig, where: str, dtype: torch.dtype) -> None:
        self.out: dict[str, Tensor] = {}
        # By layer, the scale and shift of its MLP's norm, Float[d_model] each, which are folded into the MLP.
        self.mlp_norms: dict[int, tuple[Tensor, Tensor]] = {}
        self.sizes = sizes
        self._tensors = tensors
        self._dtype = dtype
        self._where = where
        self._used: set[str] = set()

    def get(self, name: str) -> Tensor:
        """Return the tensor of this name; raise ModelError if it is missing."""
        if name not in self._tensors:
            raise ModelError(f"{self._where}: tensor {name!r} is missing; is this a whole checkpoint?")
        self._used.add(name)
        return self._widened(self._tensors[name])

    def _widened(self, tensor: Tensor) -> Tensor:
        return tensor.to(torch.promote_types(tensor.dtype, self._dtype))

    def take(self, name: str) -> Tensor:
        """As `get`, for a tensor that is read once; what is tied to it stays tied."""
        tensor = self.get(name)
        stored = self._tensors.pop(name)
        for other, tied in self._tensors.items():
            if tied is stored:
                self._tensors[other] = tensor
        return tensor

    def linear(self, name: str, transposed: bool = True) -> tuple[Tensor, Tensor]:
        """Weight Float[in out] and bias Float[out], 0 if missing, of an nn.Linear, whose weight is transposed."""
        weight = self.take(f"{name}.weight")
        weight = weight.T if transposed else weight
        bias = f"{name}.bias"
        return weight, self.take(bias) if bias in self._tensors else weight.new_zeros(weight.shape[1])

    def fold(self, norm: str, weight: Tensor, bias: Tensor, mlp: int | None = None) -> tuple[Tensor, Tensor]:
        """Fold a norm's scale and shift into the weights that read it: (x ⊙ scale + shift) @ W + b = x @ W' + b'. The
        weight is changed in place. `mlp` is the layer if its MLP reads the norm; then they are kept, too."""
        scale = self.get(f"{norm}.weight")
        shift = torch.zeros_like(scale)
        if f"{norm}.bias" in self._tensors:
            shift = self.get(f"{norm}.bias")
            bias = bias + shift @ weight
        if mlp is not None:
            self.mlp_norms[mlp] = (scale, shift)
        return weight.mul_(scale[:, None]), bias

    def put(self, name: str, weight: Tensor, bias: Tensor) -> None:
        """Set a weight and a bias of the transformer."""
        self.out[f"{name}.weight"] = weight
        self.out[f"{name}.bias"] = bias

    def put_heads(self, name: str, weight: Tensor, bias: Tensor, n_heads: int, repeat: int = 1) -> None:
        """Set queries, keys or values from Float[d_model head·d_head]; `repeat` query heads get a copy of each."""
        w = weight.view(len(weight), n_heads, -1).transpose(0, 1).repeat_interleave(repeat, 0)
        self.put(name, w.contiguous(), bias.view(n_heads, -1).repeat_interleave(repeat, 0))

    def put_output(self, name: str, weight: Tensor, bias: Tensor) -> None:
        """Set the output projection of a layer's heads from Float[head·d_head d_model] and Float[d_model]."""
        self.put(name, weight.reshape(self.sizes.n_heads, -1, weight.shape[1]), bias)

    def scale(self, name: str, factor: float | Tensor) -> None:
        """Multiply a weight and its bias, if it has one; a factor may be Float[d_head]."""
        for tensor in (f"{name}.weight", f"{name}.bias"):
            if tensor in self.out:
                self.out[tensor] = self.out[tensor] * factor

    def shift_norms(self) -> None:
        """Add 1 to the scales of all norms (Gemma)."""
        for name, tensor in self._tensors.items():
            if name.endswith("norm.weight"):
                self._tensors[name] = 1 + self._widened(tensor)

    def rotary(self, module: str, scale: float | None = None, name: str = "frequencies") -> Tensor:
        """Set the angle per position of each rotated pair (Su et al. 2021); return the queries' factor, Float[d_head].

        It is `scale`, by default 1/√d_head, on rotated dimensions times the square of what yarn multiplies sine and
        cosine by.
        """
        c = self.sizes
        self.out[f"rotary.{name}"] = self.get(f"{module}inv_freq")
        factor = self.out["token.weight"].new_full((c.d_head,), c.d_head**-0.5 if scale is None else scale)
        factor[: c.rotary] *= float(self.get(f"{module}attention_scaling")) ** 2
        return factor

    def put_unembedding(self, norm: str) -> None:
        """Set the unembedding, of the head or the embedding that it is tied to, with its norm folded in, and finish."""
        token = self.out["token.weight"]
        head = next((name for name in ("lm_head.weight", "embed_out.weight") if name in self._tensors), None)
        weight = self.take(head) if head else token
        if weight is token:
            weight = token.clone()
        self.put("unembed", *self.fold(norm, weight.T, weight.new_zeros(len(weight))))
        self.finish()

    def finish(self) -> None:
        """Raise ModelError if a tensor was never read."""
        if left := sorted(set(self._tensors) - self._used):
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            what = f"tensor {left[0]!r} has no place in a model of this family{more}"
            raise ModelError(f"{self._where}: {what}; without it another model would be computed")
