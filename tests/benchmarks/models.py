"""What is measured: transformers with random weights, prompts for them, and the settings.

Nothing is downloaded. The weights are drawn as GPT-2 draws them and scaled so that edges matter: with them ACDC finds
circuits of 50 to 300 edges, as it does in trained models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from acdc.model.config import ModelConfig
from acdc.model.transformer import Transformer
from acdc.task.tokenize import Split

VOCAB = 50257
MANY = 10**9  # weights
ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class Shape:
    """The shape of a task's prompts: their length, and the positions at which clean and corrupted ones differ."""

    n_pos: int
    differ: tuple[int, ...]


GREATER_THAN = Shape(12, (7,))
IOI = Shape(15, (2, 3, 5, 8, 10, 11))


@dataclass(frozen=True)
class Setting:
    """One row of the benchmark.

    Args:
        name: of the row
        layers, heads, width, vocab: sizes of a model with random weights; 0 layers for the bundled model `tiny`
        shape: of the prompts; "greater-than" or "ioi" (for `tiny`: its task of that name)
        prompts: number of prompts
        threshold: τ of KL in nats
        repeats: runs of which the median counts
        naive: edges at which a whole patched forward pass is timed
        peer: edges per layer at which auto-circuit is timed, 0 to leave it out
        replay: seconds spent on making the products again
        instrument: whether a further run is made under the recorder of matrix products
        llama: whether the model is a Llama (RMS norms, rotated heads, gated MLPs) instead of a GPT-2
        hidden: hidden units of its MLPs; 0: four times the width
        positions: how many the model has
    """

    name: str
    layers: int
    heads: int
    width: int
    vocab: int
    shape: str
    prompts: int
    threshold: float
    repeats: int = 3
    naive: int = 2
    peer: int = 0
    replay: float = 15.0
    instrument: bool = True
    llama: bool = False
    hidden: int = 0
    positions: int = 64

    @property
    def model(self) -> ModelConfig:
        c = config(self.layers, self.heads, self.width, self.vocab, self.positions)
        if not self.llama:
            return c
        return replace(c, norm="rms", activation="silu", rotary=c.d_head, gated=True, d_mlp=self.hidden or c.d_mlp)

    @property
    def tiny(self) -> bool:
        return self.layers == 0


def config(layers: int, heads: int, width: int, vocab: int, n_pos: int = 64) -> ModelConfig:
    return ModelConfig(layers, heads, width, width // heads, 4 * width, n_pos, vocab, vocab)


def raw_weights(c: ModelConfig, seed: int = 0, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Weights by name (`ModelConfig.shapes`), float32, on a device. Those of models of up to a billion weights are the
    same on all devices; of larger ones they are drawn on the device."""
    drawn_on = torch.device("cpu" if c.n_weights < MANY else device)
    g = torch.Generator(drawn_on).manual_seed(seed)
    spread = 0.02 * (768 / c.d_model) ** 0.5  # the same activations at every width
    out: dict[str, Tensor] = {}
    for name, shape in c.shapes().items():
        if name == "unembed.weight":
            out[name] = 3 * out["token.weight"].T
        elif name == "unembed.bias":
            out[name] = torch.zeros(shape, device=device)
        elif name == "rotary.frequencies":
            out[name] = ROTARY_BASE ** (-torch.arange(shape[0], device=device) / shape[0])
        else:
            scale = 0.1 if name.endswith("bias") else 1.5 if name.startswith("layers") else 1.0
            out[name] = torch.empty(shape, device=drawn_on).normal_(0, spread * scale, generator=g).to(device)
    return out


def prompts(shape: Shape, n: int, vocab: int, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, vocab, (n, shape.n_pos))
    corrupted = clean.copy()
    at = list(shape.differ)
    if len(at) == 1:  # one token for all prompts, like the "01" of greater-than
        corrupted[:, at] = 486
    else:
        corrupted[:, at] = (clean[:, at] + rng.integers(1, vocab, (n, len(at)))) % vocab
    rows = np.stack([np.arange(n), np.full(n, shape.n_pos - 1)], 1)
    answers = rng.integers(0, vocab, (n, 2))
    return Split(clean, corrupted, np.zeros(n, dtype=np.int64), rows, answers[:, :1], answers[:, 1:])


def make(
    setting: Setting, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Transformer, Split]:
    """The model and the prompts of a setting."""
    if setting.tiny:
        return load_tiny(setting.shape, dtype, setting.prompts, str(device))
    shape = {"greater-than": GREATER_THAN, "ioi": IOI}[setting.shape]
    c = setting.model
    weights = raw_weights(c, device=device)
    for name in weights:
        weights[name] = weights[name].to(dtype)
    return Transformer(c, weights, setting.name), prompts(shape, setting.prompts, c.vocab_size)


def load_tiny(task: str, dtype: torch.dtype, examples: int, device: str) -> tuple[Transformer, Split]:
    """The bundled model and the prompts of one of its tasks."""
    from acdc.setup.config import resolve
    from acdc.setup.inputs import load

    given = {"task": task, "dtype": str(dtype).removeprefix("torch."), "device": device, "examples": examples}
    resolved, spec, _ = resolve(given, None, lambda: ("tiny", None))
    inputs = load(resolved, spec)
    d = inputs.data.discovery
    return inputs.model.transformer, Split(d.clean, d.corrupted, d.pad, d.rows, d.correct, d.wrong)


def unfolded(model: Transformer) -> dict[str, Tensor]:
    """A model's weights by name, with the unembedding as it was given (not centred)."""
    out = dict(model.weights)
    out["unembed.weight"] = (model.weights["unembed.weight"] + model.unembed_mean).T.contiguous()
    out["unembed.bias"] = model.weights["unembed.bias"] + model.unembed_bias_mean
    return out


# Thresholds were found once by trying, so that circuits of 50 to 300 edges result.
SMALL = Setting("small", 12, 12, 768, VOCAB, "greater-than", 25, 0.002)
FULL = (
    replace(SMALL, name="greater-than 25", repeats=5, peer=5),
    replace(SMALL, name="ioi 25", shape="ioi", threshold=0.006, repeats=5, peer=5),
    replace(SMALL, name="greater-than 100", prompts=100, repeats=1, naive=1, instrument=False),
    replace(SMALL, name="ioi 100", shape="ioi", threshold=0.006, prompts=100, repeats=1, naive=1, instrument=False),
    Setting("tiny greater-than", 0, 0, 0, 0, "greater-than", 100, 0.01, repeats=5, naive=20),
    Setting("tiny ioi", 0, 0, 0, 0, "ioi", 100, 0.01, repeats=5, naive=20),
)
LARGER = (
    replace(SMALL, name="GPT-2 medium", layers=24, heads=16, width=1024, repeats=1, naive=0, instrument=False),
    replace(SMALL, name="GPT-2 large", layers=36, heads=20, width=1280, repeats=1, naive=0, instrument=False),
)
# Of the shapes of Llama 3.2 1B and 3.1 8B, with a key and a value for every query head: 6.4 and 35 GB in float32.
LLAMA = (
    replace(SMALL, name="Llama 1B", layers=16, heads=32, width=2048, vocab=128_256, repeats=1, llama=True),
    replace(
        SMALL, name="Llama 8B", layers=32, heads=32, width=4096, hidden=14_336, vocab=128_256, repeats=1, llama=True
    ),
)
LLAMA = tuple(replace(s, naive=1, instrument=False) for s in LLAMA)
MIDDLE = Setting("6×6×192", 6, 6, 192, 8192, "greater-than", 25, 0.003, repeats=3, naive=5, peer=2, replay=2.0)
QUICK = (
    replace(MIDDLE, name="quick greater-than"),
    replace(MIDDLE, name="quick ioi", shape="ioi", threshold=0.01),
    replace(MIDDLE, name="quick Llama", threshold=0.01, llama=True, hidden=512, positions=32),
    *(replace(s, name="quick " + s.name, repeats=3, naive=5, replay=2.0) for s in FULL if s.tiny),
)
# A model on which auto-circuit's ACDC and the naive oracle can be run as a whole.
WHOLE = Setting("whole", 4, 4, 64, 500, "ioi", 8, 0.003)
