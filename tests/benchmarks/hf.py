"""The same weights as a Hugging Face GPT-2: `acdc.model.gpt2` the other way round."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from acdc.model.transformer import Transformer
from tests.benchmarks.models import Split, unfolded


def to_hugging_face(model: Transformer) -> torch.nn.Module:
    """A GPT2LMHeadModel with the same logits: norms have weight 1 and bias 0, for theirs are folded in."""
    from transformers import GPT2Config, GPT2LMHeadModel

    c, w = model.config, unfolded(model)
    raw = GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.n_positions,
        n_embd=c.d_model,
        n_layer=c.n_layers,
        n_head=c.n_heads,
        n_inner=c.d_mlp,
        layer_norm_epsilon=c.norm_eps,
        activation_function=c.activation,
        tie_word_embeddings=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    out = GPT2LMHeadModel(raw)
    d = c.d_model
    tensors = {"wte.weight": w["token.weight"], "wpe.weight": w["position.weight"]}
    for i in range(c.n_layers):
        at, to = f"layers.{i}.", f"h.{i}."
        scale = {"q": c.d_head**0.5, "k": 1.0, "v": 1.0}
        parts = {x: (w[f"{at}{x}.weight"] * s, w[f"{at}{x}.bias"] * s) for x, s in scale.items()}
        tensors[to + "attn.c_attn.weight"] = torch.cat([p.transpose(0, 1).reshape(d, -1) for p, _ in parts.values()], 1)
        tensors[to + "attn.c_attn.bias"] = torch.cat([b.flatten() for _, b in parts.values()])
        tensors[to + "attn.c_proj.weight"] = w[at + "o.weight"].reshape(-1, d)
        tensors[to + "attn.c_proj.bias"] = w[at + "o.bias"]
        for ours, theirs in (("mlp_in", "mlp.c_fc"), ("mlp_out", "mlp.c_proj")):
            for x in ("weight", "bias"):
                tensors[f"{to}{theirs}.{x}"] = w[f"{at}{ours}.{x}"]
    for norm in ("ln_f", *(f"h.{i}.ln_{n}" for i in range(c.n_layers) for n in (1, 2))):
        tensors[norm + ".weight"], tensors[norm + ".bias"] = torch.ones(d), torch.zeros(d)
    state = {"transformer." + name: x.to(model.dtype) for name, x in tensors.items()}
    out.lm_head = torch.nn.Linear(d, c.vocab_out)  # with a bias: that of the folded final norm
    state |= {"lm_head.weight": w["unembed.weight"].T.contiguous(), "lm_head.bias": w["unembed.bias"]}
    out.load_state_dict(state, strict=True, assign=True)
    return out.to(model.device).eval()


def forward(model: torch.nn.Module, batch: Split, device: torch.device, last: bool) -> Tensor:
    """Logits of one plain pass over the clean prompts, of all positions or of the last one only."""
    ids, pad = (torch.as_tensor(x).to(device) for x in (batch.clean, batch.pad))
    given = {}
    if np.any(batch.pad):
        at = torch.arange(ids.shape[1], device=device)
        given = {"attention_mask": (at >= pad[:, None]).long(), "position_ids": (at - pad[:, None]).clamp(min=0)}
    return model(ids, use_cache=False, logits_to_keep=int(last), **given).logits
