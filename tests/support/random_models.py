"""Tiny random transformers and prompts for them."""

from __future__ import annotations

import numpy as np
import torch

from acdc.model.config import ModelConfig
from acdc.model.features import Features, neurons, split, transcoder_features
from acdc.model.transcoders import Transcoder
from acdc.model.transformer import Transformer
from acdc.task.tokenize import Split

POST_NORM = {  # as Gemma's, with what both of them have
    "norm": "rms",
    "gated": True,
    "activation": "gelu_pytorch_tanh",
    "rotary": 4,
    "head_norm": True,
    "windows": (3, 0),
    "local_rotary": True,
    "post_norm": True,
    "score_cap": 2.0,
    "logit_cap": 3.0,
}
JOINT_HEAD_NORM = {  # as OLMo's
    "norm": "rms",
    "gated": True,
    "activation": "silu",
    "rotary": 4,
    "joint_head_norm": True,
    "pre_norm": False,
    "post_norm": True,
}


FEATURES = ("neurons", "relu", "jumprelu", "topk")


def random_model(seed: int, dtype=torch.float64, scale: float = 0.6, features: str = "", **sizes) -> Transformer:
    """With `features`, one of `FEATURES`, some features of most MLPs are nodes."""
    c = ModelConfig(
        **{
            "n_layers": 2,
            "n_heads": 2,
            "d_model": 8,
            "d_head": 4,
            "d_mlp": 12,
            "n_positions": 8,
            "vocab_size": 11,
            "vocab_out": 11,
            **sizes,
        }
    )
    g = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in c.shapes().items()}
    for name, x in weights.items():
        if name.endswith("bias"):
            x *= 0.3
        elif not name.startswith(("token", "position", "rotary")):
            x *= scale * 2 / x.shape[-min(2, x.ndim)] ** 0.5
    model = Transformer(c, {k: v.to(dtype) for k, v in weights.items()})
    return split(model, random_features(model, seed, features)) if features else model


def random_features(model: Transformer, seed: int, kind: str) -> dict[int, Features]:
    """None to three features of each layer, of the neurons or of random transcoders with ten."""
    rng = np.random.default_rng(seed)
    out = {}
    for layer in range(model.config.n_layers):
        every = neurons(model, layer) if kind == "neurons" else transcoder_features(random_transcoder(rng, model, kind))
        n = int(rng.integers(0 if layer else 1, 4))
        out[layer] = every.take(np.sort(rng.choice(len(every.names), n, replace=False)).tolist())
    return out


def random_transcoder(rng: np.random.Generator, model: Transformer, kind: str, reads: str = "normalised") -> Transcoder:
    d = model.config.d_model

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(0, 0.6, shape)).to(model.dtype)

    threshold = normal(10).abs() if kind == "jumprelu" else None
    return Transcoder(normal(d, 10), normal(10), normal(10, d), threshold, 3 if kind == "topk" else 0, reads)


def random_prompts(
    seed: int,
    model: Transformer,
    batch: int = 3,
    n_pos: int = 5,
    first: int = 1,
    pad: bool = False,
    scored: str = "last",
    n_spans: int = 0,
) -> Split:
    """With spans, each prompt has spans of its own lengths and places, in an order of its own; it may lack some."""
    rng = np.random.default_rng(seed)
    vocab = model.config.vocab_size
    clean = rng.integers(0, vocab, (batch, n_pos))
    corrupted = clean.copy()
    changed = rng.random((batch, n_pos)) < 0.5
    changed[:, :first] = False
    changed[:, first] = True
    corrupted[changed] = (clean[changed] + rng.integers(1, vocab, changed.sum())) % vocab
    pads = rng.integers(0, 2, batch) if pad else np.zeros(batch, dtype=np.int64)
    at = {"last": [n_pos - 1], "two": [n_pos - 2, n_pos - 1], "all": list(range(1, n_pos))}[scored]
    rows = np.array([(b, t) for b in range(batch) for t in at])
    answers = np.stack([rng.permutation(model.config.vocab_out)[:4] for _ in rows])
    correct, wrong = answers[:, :2].copy(), answers[:, 2:].copy()
    correct[::2, 1] = -1
    texts = tuple((f"clean {i}", f"corrupted {i}") for i in range(batch))
    spans = None
    if n_spans:
        cuts = np.sort(rng.integers(0, n_pos + 1, (batch, n_spans - 1)), 1)
        place = (np.arange(n_pos)[None, :, None] >= cuts[:, None, :]).sum(-1)
        orders = np.stack([rng.permutation(n_spans) for _ in range(batch)])
        spans = np.where(np.arange(n_pos) < pads[:, None], -1, np.take_along_axis(orders, place, 1))
    return Split(clean, corrupted, pads, rows, correct, wrong, texts, spans)
