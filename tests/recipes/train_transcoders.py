"""Recipe of the bundled transcoders of `tiny`, `tiny-transcoders`: one for each MLP, on the prompts of its own tasks.

    pip install 'acdc-circuits[dev]'
    python -m tests.recipes.train_transcoders --out acdc/bundled/tiny-transcoders

1. prompts   clean and corrupted ones of the variants that `tiny` is trained on (`train_tiny.VARIANTS`), without the
             clean ones that the tasks draw by default
2. train     ReLU features that read the MLP's input behind its norm and write its output: squared error, plus the L1
             norm of what the features write (Dunefsky et al. 2024). All positions of one prompt are not alike: most
             are those of a template, whose output varies much and matters little. So the scored positions of every task
             count as much as the others
3. measure   on the held-out halves of the tasks: explained variance and features that are active at once (L0)
4. write     circuit-tracer's layout, and a card with what was measured

Seeded and single-threaded: the same versions on the same kind of machine give the same weights.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from acdc.model.load import load_model
from acdc.model.transformer import Transformer
from acdc.task.load import load_task
from acdc.task.tokenize import Data, Split, make_data
from tests.recipes.train_tiny import TASKS, VARIANTS, variant_task

EXAMPLES = 400  # prompts of a variant
BATCH = 2048  # positions of a step
CONFIG = {
    "model_name": "tiny",
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "mlp.hook_out",
}


class Prompts(NamedTuple):
    """Clean and corrupted prompts of a task, of one length."""

    task: str
    tokens: np.ndarray  # Int[prompt pos]
    scored: np.ndarray  # Int[any], the positions at which the task is scored


class Group(NamedTuple):
    """What the MLP of a layer reads, behind its norm with scale and shift, and what it writes, at the scored positions
    of a task's prompts, or at the others."""

    name: str
    read: Tensor  # Float[position d_model]
    written: Tensor  # Float[position d_model]

    @property
    def variance(self) -> Tensor:
        """Of what is written: the mean squared distance from the mean."""
        return (self.written - self.written.mean(0)).square().sum(1).mean()


class Measured(NamedTuple):
    """How a transcoder does at some positions."""

    explained: float  # share of the variance of the MLP's output
    active: float  # features at a position, their mean: L0


def prompts(task: str, split: Split, avoid: Collection[str] = ()) -> Prompts:
    """The clean and the corrupted prompts of a split, each once, without those to be avoided."""
    clean = [tokens for (text, _), tokens in zip(split.texts, split.clean, strict=True) if text not in avoid]
    corrupted = [tokens for (_, text), tokens in zip(split.texts, split.corrupted, strict=True) if text not in avoid]
    tokens = np.unique(clean + corrupted, axis=0) if clean or corrupted else split.clean[:0]
    return Prompts(task, tokens, np.unique(split.rows[:, 1]))


def defaults(tokenizer: Any) -> dict[str, Data]:
    """The prompts that the tasks draw by default."""
    tasks = [load_task(name) for name in TASKS]
    return {t.name: make_data(t, tokenizer, t.defaults.examples, t.defaults.seed) for t in tasks}


def training(tokenizer: Any, seed: int) -> list[Prompts]:
    """The prompts of training."""
    drawn = [data.discovery.texts + data.held_out.texts for data in defaults(tokenizer).values()]
    avoid = {clean for texts in drawn for clean, _ in texts}
    out = []
    for variant in VARIANTS:
        data = make_data(variant_task(variant), tokenizer, min(variant.examples, EXAMPLES), seed + 1)
        out += [prompts(variant.task, split, avoid) for split in (data.discovery, data.held_out)]
    return [of for of in out if len(of.tokens)]


def unseen(tokenizer: Any) -> list[Prompts]:
    """The prompts of the held-out halves of the tasks."""
    return [prompts(name, data.held_out) for name, data in defaults(tokenizer).items()]


@torch.no_grad()
def groups(model: Transformer, shown: list[Prompts]) -> list[list[Group]]:
    """The groups of each layer: two of each task, of the scored positions and the others."""
    parts: list[dict[str, list[tuple[Tensor, Tensor]]]] = [{} for _ in range(model.config.n_layers)]
    for of in shown:
        run, stream = model.run(torch.from_numpy(of.tokens), torch.zeros(len(of.tokens), dtype=torch.int64))
        rest = np.setdiff1d(np.arange(of.tokens.shape[1]), of.scored)
        for layer, found in enumerate(parts):
            scale, shift = model.mlp_norms[layer]
            read = model.normalise(model.after_attention(layer, stream[layer], run.z[layer])) * scale + shift
            for name, at in ((of.task, rest), (f"{of.task}, scored", of.scored)):
                both = (read[:, at].flatten(0, 1), run.mlp[layer][:, at].flatten(0, 1))
                found.setdefault(name, []).append(both)
    return [[Group(name, *map(torch.cat, zip(*both, strict=True))) for name, both in found.items()] for found in parts]


def train(data: list[Group], n_features: int, sparsity: float, steps: int, seed: int) -> dict[str, Tensor]:
    """The tensors of a transcoder by circuit-tracer's names.

    Every group counts alike: errors in shares of its output's variance, the lengths of what features write in standard
    deviations of it.
    """
    generator = torch.Generator().manual_seed(seed)
    width = data[0].read.shape[1]
    variances = torch.stack([group.variance for group in data])
    decoder = torch.randn(n_features, width, generator=generator)
    decoder *= (variances.mean() / width).sqrt() / decoder.norm(dim=1, keepdim=True)
    encoder = torch.randn(n_features, width, generator=generator) / math.sqrt(width)
    mean = torch.stack([group.written.mean(0) for group in data]).mean(0)
    tensors = {"W_enc": encoder, "b_enc": torch.zeros(n_features), "W_dec": decoder, "b_dec": mean}
    optimizer = torch.optim.Adam([tensor.requires_grad_() for tensor in tensors.values()], lr=2e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1, n / 100, 3 * (1 - n / steps)))
    each = BATCH // len(data)
    variance = variances.repeat_interleave(each)
    for step in range(steps):
        at = [torch.randint(len(group.read), (each,), generator=generator) for group in data]
        read = torch.cat([group.read[rows] for group, rows in zip(data, at, strict=True)])
        written = torch.cat([group.written[rows] for group, rows in zip(data, at, strict=True)])
        active = activations(tensors, read)
        error = (written - active @ tensors["W_dec"] - tensors["b_dec"]).square().sum(1)
        size = (active * tensors["W_dec"].norm(dim=1)).sum(1)
        weight = sparsity * min(1, 4 * step / steps)
        (error / variance + weight * size / variance.sqrt()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return {name: tensor.detach() for name, tensor in tensors.items()}


def activations(tensors: dict[str, Tensor], read: Tensor) -> Tensor:
    """Of all features: Float[position d_model] to Float[position feature]."""
    return (read @ tensors["W_enc"].T + tensors["b_enc"]).relu()


def measure(tensors: dict[str, Tensor], group: Group) -> Measured:
    """How a transcoder does at the positions of a group."""
    active = activations(tensors, group.read)
    error = (group.written - active @ tensors["W_dec"] - tensors["b_dec"]).square().sum(1).mean()
    return Measured(1 - float(error / group.variance), float((active > 0).sum(1, dtype=torch.float32).mean()))


CARD = """---
license: mit
tags: [interpretability, circuits, transcoders]
---

# tiny-transcoders

Transcoders of the bundled model `tiny`: {features} ReLU features for each of its {layers} MLPs, which read what the MLP
reads, behind its norm, and write what it writes. They are trained on the prompts of tiny's tasks, and good for
these alone. Layout: circuit-tracer's. Licence: MIT, as acdc and `tiny`; all training data is drawn from the tasks.

## How they were made

```
python -m tests.recipes.train_transcoders --out {out} \\
    --seed {seed} --features {features} --sparsity {sparsity} --steps {steps}
```

{steps} steps of {batch:,} positions for each layer, from {positions:,} positions of {prompts:,} prompts: clean and
corrupted ones of the variants of the tasks that `tiny` is trained on. The clean prompts that the tasks draw by
default are not among them; their corrupted ones, of which some tasks have few, may be. Adam, 2e-3; squared error plus
L1 norm of what the features write; the tasks count alike, and so do the positions where they are scored and the
others. Seed {seed}, {minutes:.0f} minutes on one core of a shared machine, torch {torch}.

## How well they do

On the clean and corrupted prompts of the held-out halves of the tasks (default examples and seed). For each layer
the share of the variance of the MLP's output that is explained, and L0, the mean number of features that are active,
beside {d_mlp} hidden units; at the positions where a task is scored and at the others.

| prompts | {titles} |
|---|{lines}
{table}
"""


def main() -> None:
    """Train the transcoders and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=int, default=512, help="of each MLP")
    parser.add_argument("--sparsity", type=float, default=0.05, help="weight of the L1 norm")
    parser.add_argument("--steps", type=int, default=2500)
    arguments = parser.parse_args()
    start = time.monotonic()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = load_model("tiny", "cpu")
    shown = training(model.tokenizer, arguments.seed)
    fresh = groups(model.transformer, unseen(model.tokenizer))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    cells: dict[str, list[str]] = {}
    for layer, data in enumerate(groups(model.transformer, shown)):
        tensors = train(data, arguments.features, arguments.sparsity, arguments.steps, arguments.seed)
        file = arguments.out / f"layer_{layer}.safetensors"
        save_file(tensors, file)
        file.chmod(0o644)
        for group in fresh[layer]:
            found = measure(tensors, group)
            cells.setdefault(group.name, []).append(f"{found.explained:.3f}, {found.active:.1f}")
        print(f"{time.monotonic() - start:6.0f} s  layer {layer}", file=sys.stderr, flush=True)
    table = [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]
    text = CARD.format(
        out=arguments.out.as_posix(), seed=arguments.seed, steps=arguments.steps, features=arguments.features,
        sparsity=arguments.sparsity, batch=BATCH, layers=len(fresh), positions=sum(of.tokens.size for of in shown),
        prompts=sum(len(of.tokens) for of in shown), minutes=(time.monotonic() - start) / 60, torch=torch.__version__,
        d_mlp=model.transformer.config.d_mlp, titles=" | ".join(f"layer {layer}" for layer in range(len(fresh))),
        lines="--:|" * len(fresh), table="\n".join(table),
    )  # fmt: skip
    (arguments.out / "README.md").write_text(text, encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
