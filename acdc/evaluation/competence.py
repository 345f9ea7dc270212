"""How well a model does a task, before a circuit is looked for: a circuit of a failure means nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acdc.evaluation.bootstrap import share
from acdc.evaluation.faithfulness import finite
from acdc.patching.activations import CHUNK
from acdc.patching.metrics import accuracy
from acdc.registry import METRICS
from acdc.setup.inputs import Inputs


@dataclass(frozen=True)
class Competence:
    """How the full model does on the prompts for discovery.

    Args:
        rows: number of scored positions
        accuracy: share of them at which the best correct answer has a higher logit than every wrong one (than every
            other token where the task has no wrong ones), on the clean prompts
        accuracy_corrupted: the same on the corrupted prompts, with the answers of the clean ones
        chance: the accuracy of answers drawn blindly from the correct and wrong ones
        metrics: name → mean metric (↓ lower is better; logits, probabilities or nats) on clean and corrupted prompts,
            with the answers of the clean ones; KL and l2, which compare with the clean run, are not among them
    """

    rows: int
    accuracy: float
    accuracy_corrupted: float
    chance: float
    metrics: dict[str, tuple[float, float]]

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        _, low, high = share(self.accuracy, self.rows)
        return low, high

    @property
    def able(self) -> bool:
        """Whether the model is right more often than wrong, and more often than by chance (95 % interval)."""
        return self.accuracy >= 0.5 and self.interval[0] > self.chance


def competence(inputs: Inputs) -> Competence | None:
    """How well the model does the task; None where the task has no answers."""
    prompts, model = inputs.data.discovery, inputs.model.transformer
    if not prompts.correct.shape[1]:
        return None
    with torch.inference_mode():
        targets = inputs.parts("discovery").targets
        corrupted = _final_rows(inputs, prompts.corrupted)
        metrics = {}
        for name in inputs.task.metrics:
            if not METRICS[name].flat:
                metric = inputs.parts("discovery").metric(name)
                both = (finite(inputs, "discovery", name, metric(h)) for h in (targets.clean, corrupted))
                clean, other = (float(values.mean()) for values in both)
                metrics[name] = clean, other
        right, right_corrupted = (
            float(accuracy(model, targets, h).double().mean()) for h in (targets.clean, corrupted)
        )
    n_correct, n_wrong = (prompts.correct >= 0).sum(1), (prompts.wrong >= 0).sum(1)
    others = np.where(n_wrong, n_wrong, model.config.vocab_out - n_correct)
    chance = float((n_correct / (n_correct + others)).mean())
    return Competence(len(prompts.rows), right, right_corrupted, chance, metrics)


def warning(inputs: Inputs, found: Competence | None) -> str | None:
    """One line where a model can't do a task."""
    if found is None or found.able:
        return None
    low, high = found.interval
    says = "can't do" if found.accuracy < 0.5 or found.accuracy <= found.chance else "may not be able to do"
    return (
        f"warning: {inputs.config.model_name} {says} {inputs.task.name}: accuracy {found.accuracy:.0%} "
        f"({low:.0%} to {high:.0%}) of {found.rows} answers, {found.chance:.0%} by chance; a circuit of a failure "
        f"means little (acdc tasks {inputs.config.task} --model {inputs.config.model_name})"
    )


def _final_rows(inputs: Inputs, tokens: np.ndarray) -> Tensor:
    """The model's normalised final stream at the scored positions of some prompts: Float[row d_model]."""
    model, prompts = inputs.model.transformer, inputs.data.discovery
    ids, pad, rows = (torch.as_tensor(x).to(model.device) for x in (tokens, prompts.pad, prompts.rows))
    # A view of the last layer would keep the streams of all layers, of all prompts.
    parts = [model.run(t, p)[1][-1].clone() for t, p in zip(ids.split(CHUNK), pad.split(CHUNK), strict=True)]
    return model.normalise(torch.cat(parts)[rows[:, 0], rows[:, 1]])
