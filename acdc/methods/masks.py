"""Masks of hard-concrete gates (Louizos et al. 2018, arXiv 1712.01312), and the training that three methods share.

A gate is σ((logit(u) + α) / T), u uniform in (0, 1), stretched from (0, 1) to (LOW, HIGH) and clamped to [0, 1]:
exactly closed or exactly open with some probability, and differentiable in α in between. The larger α, the more open.

The noise of an update depends on the seed and the update's number only, and prompts come in a fixed cycle. So a
training resumed from a checkpoint ends as an uninterrupted one, on a CPU bit for bit.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from acdc.errors import FileError, UserError
from acdc.io.files import write_atomic
from acdc.io.progress import Progress, Show
from acdc.patching.activations import BATCH, ActivationCache
from acdc.patching.patch import PatchedModel
from acdc.patching.problem import Problem

LOW = -0.1  # these three as in Louizos et al.
HIGH = 1.1
TEMPERATURE = 2 / 3
START = 2.0  # initial α: a gate is open with probability 0.97, but only 0.6 of its samples are clamped to 1
LIMIT = 7.0  # bound on |α|: a gate beyond it is almost certain, and would need many updates to come back
RATE = 0.1  # Adam's step in α in the first half of the updates; in the second half it falls linearly to 0
# Adam forgets the second moment sooner than usual, since training is short and begins with large gradients; its ε is
# smaller, since gradients are as small as 1 / gates.
MEAN_DECAY = 0.9
SQUARE_DECAY = 0.98
EPSILON = 1e-12
SAVED_EVERY = 25  # updates between two checkpoints


def sample(alpha: Tensor, uniform: Tensor) -> Tensor:
    """Sample gates, Float[gate] in [0, 1], from noise: uniform Float[gate] in (0, 1)."""
    smooth = torch.sigmoid((torch.logit(uniform) + alpha) / TEMPERATURE)
    return (smooth * (HIGH - LOW) + LOW).clamp(0, 1)


def p_open(alpha: Tensor) -> Tensor:
    """Probability that a sample of each gate is above 0, Float[gate]; its mean is the expected share of open gates."""
    return torch.sigmoid(alpha - TEMPERATURE * math.log(-LOW / HIGH))


@dataclass(frozen=True)
class Update:
    """What the objective of one update depends on."""

    cache: ActivationCache  # of the prompts of the update
    batch: int  # the index of their batch
    alpha: Tensor  # Float[gate]
    gates: Tensor  # Float[gate], sampled
    multipliers: Tensor  # Float[multiplier]
    share: float  # of the training that is done, from 0 to 1


@dataclass(frozen=True)
class Training:
    """A training: Adam moves gates down the gradient of an objective, Lagrange multipliers go up it."""

    method: str  # name of the method, for messages
    settings: dict[str, float]  # of the method by name, which distinguish trainings
    updates: int
    seed: int
    gates: int  # number of gates
    objective: Callable[[Update], Tensor]  # minimised in the gates, maximised in the multipliers
    multipliers: tuple[float, ...] = ()  # initial values
    ascent: tuple[float, ...] = ()  # step of each multiplier per unit of its gradient
    least: float = -math.inf  # lower bound on the multipliers


class Batches:
    """The prompts of a problem in batches of similar size, in the same order in every cycle."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._where: list[tuple[int, slice]] = []
        for index, cache in enumerate(problem.parts):
            n = len(cache.pad)
            bounds = np.linspace(0, n, -(-n // BATCH) + 1).round().astype(int).tolist()
            self._where += [(index, slice(*at)) for at in pairwise(bounds)]
            self._part = index, cache  # the part in memory

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, batch: int) -> ActivationCache:
        part, at = self._where[batch]
        if part != self._part[0]:
            self._part = (part, self._problem.parts[part])
        return self._part[1].examples(at)

    def __iter__(self) -> Iterator[ActivationCache]:
        return (self[i] for i in range(len(self)))


@torch.no_grad()
def span(problem: Problem, batches: Batches) -> float:
    """The distance between the metric with everything ablated and that of the full model; 1 if they are equal."""
    model = problem.model
    total = 0.0
    none = torch.zeros(len(problem.graph.senders), dtype=model.dtype, device=model.device)
    for cache in batches:
        metric = cache.metric(problem.metric, model)
        total += float((metric(PatchedModel(model, cache).with_nodes(none)) - metric(cache.targets.clean)).sum())
    return abs(total) / problem.n_prompts or 1.0


def train(training: Training, problem: Problem, batches: Batches, checkpoint: Path | None, progress: Show) -> Tensor:
    """Train all gates; returns the α of each, Float[gate]. The state is written to the file `checkpoint` regularly and
    at the end; an existing one is resumed. Raises UserError if a loss is not finite, FileError if the file is not a
    checkpoint or from another training, or can't be written."""
    model = problem.model
    mark = _fingerprint(training, problem)
    alpha = torch.full((training.gates,), START, dtype=model.dtype)
    state = {"alpha": alpha, "mean": torch.zeros_like(alpha), "square": torch.zeros_like(alpha)}
    state["multipliers"] = torch.tensor(training.multipliers, dtype=model.dtype)
    begin = 0
    if checkpoint is not None and checkpoint.exists():
        begin, state = _read(checkpoint, mark, state)
    state = {name: x.to(model.device) for name, x in state.items()}
    ascent = torch.tensor(training.ascent, dtype=model.dtype).to(model.device)
    if begin:
        progress(Progress("scores", begin, training.updates, resumed=f"{begin:,} updates from the checkpoint"))
    for done in range(begin, training.updates):
        alpha, multipliers = (state[name].clone().requires_grad_() for name in ("alpha", "multipliers"))
        noise = torch.from_numpy(_noise(training.seed, done, training.gates)).to(model.device, model.dtype)
        batch = done % len(batches)
        share = done / training.updates
        with torch.enable_grad():
            update = Update(batches[batch], batch, alpha, sample(alpha, noise), multipliers, share)
            loss = training.objective(update)
        value = float(loss.detach())
        if not math.isfinite(value):
            where = f"--method {training.method}: the loss is {value} at update {done + 1}"
            raise UserError(f"{where}; choose another --metric, or --dtype float64")
        down, up = torch.autograd.grad(loss, (alpha, multipliers), allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            state["mean"] = MEAN_DECAY * state["mean"] + (1 - MEAN_DECAY) * down
            state["square"] = SQUARE_DECAY * state["square"] + (1 - SQUARE_DECAY) * down.square()
            length = (state["square"] / (1 - SQUARE_DECAY ** (done + 1))).sqrt() + EPSILON
            step = state["mean"] / (1 - MEAN_DECAY ** (done + 1)) / length
            state["alpha"] = (alpha - RATE * min(1.0, 2 - 2 * share) * step).clamp(-LIMIT, LIMIT)
            state["multipliers"] = (multipliers + ascent * up).clamp(min=training.least)
            kept = float((p_open(state["alpha"]) >= 0.5).cpu().double().mean())
        if checkpoint is not None and ((done + 1) % SAVED_EVERY == 0 or done + 1 == training.updates):
            tensors = {name: x.detach().cpu().contiguous() for name, x in state.items()}
            write_atomic(checkpoint, save(tensors, {"training": mark, "updates": str(done + 1)}))
        note = f"loss {value:.4g}, kept {kept:.1%}, update {done + 1:,} of {training.updates:,}"
        progress(Progress("scores", done + 1, training.updates, note))
    return state["alpha"]


def _noise(seed: int, update: int, n: int) -> np.ndarray:
    """Uniform noise inside (0, 1), even after rounding to float32: Float[gate]."""
    return np.random.default_rng([seed, update]).uniform(1e-6, 1 - 1e-6, n)


def _fingerprint(training: Training, problem: Problem) -> str:
    """A hash of what a training depends on, except weights and ablation: the run's config has those."""
    targets = problem.parts.targets
    ids = [x.tolist() for x in (targets.example, targets.correct, targets.wrong)]
    of = [training.method, training.settings, training.updates, training.seed, training.gates, problem.metric]
    of += [str(problem.model.config), str(problem.model.dtype), ids]
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()


def _read(path: Path, mark: str, like: dict[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
    """Read the number of updates done, and the state."""
    try:
        if not path.is_file():
            raise OSError
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            state = {name: f.get_tensor(name).clone() for name in like}
    except (OSError, SafetensorError):
        raise FileError(f"{path}: can't be read as a checkpoint; remove it or use --force") from None
    if metadata.get("training") != mark:
        raise FileError(f"{path}: is the checkpoint of a training with other settings; remove it or use --force")
    alike = {k: (x.shape, x.dtype) for k, x in state.items()} == {k: (x.shape, x.dtype) for k, x in like.items()}
    done = re.fullmatch(r"[1-9][0-9]{0,17}", metadata.get("updates", ""))
    if not alike or done is None or not all(x.isfinite().all() for x in state.values()):
        raise FileError(f"{path}: is damaged; remove it or use --force")
    return int(done.group()), state
