"""How well a model does a task: the circuit of a behaviour that the model doesn't have means nothing."""

import shlex
from dataclasses import dataclass

import numpy as np
import torch

from acdc.errors import plural
from acdc.evaluation.bootstrap import share
from acdc.evaluation.faithfulness import mean_accuracy, measure_rows
from acdc.patching.activations import CHUNK
from acdc.registry import METRICS
from acdc.setup.inputs import Inputs


@dataclass(frozen=True)
class Competence:
    """How the full model does on the discovery half, with the answers of the clean prompts throughout."""

    prompts: int  # their number; each may be scored at several positions, which agree with each other
    # Share of scored positions at which the best correct answer has a higher logit than every wrong one (than every
    # other token where the task has no wrong ones).
    accuracy: float
    accuracy_corrupted: float  # on the corrupted prompts
    chance: float  # accuracy of answers drawn at random from the correct and wrong ones
    # Name → mean (lower is better; logits, probabilities or nats) on clean and corrupted prompts; without kl and l2,
    # which compare with the clean run.
    metrics: dict[str, tuple[float, float]]

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, over prompts."""
        return share(self.accuracy, self.prompts)[1:]

    @property
    def able(self) -> bool:
        """Whether the model is right more often than wrong, and more often than by chance (95 % interval)."""
        return self.accuracy >= 0.5 and self.interval[0] > self.chance


def competence(inputs: Inputs) -> Competence | None:
    """Measure how well the model does the task; None for a task without answers."""
    prompts = inputs.data.discovery
    model = inputs.model.transformer
    if not prompts.correct.shape[1]:
        return None
    with torch.inference_mode():
        ids, pad, at = (torch.as_tensor(x).to(model.device) for x in (prompts.corrupted, prompts.pad, prompts.rows))
        # A view of the last layer would keep the residual streams of all layers in memory: clone it.
        parts = [model.run(t, p)[1][-1].clone() for t, p in zip(ids.split(CHUNK), pad.split(CHUNK), strict=True)]
        corrupted = model.normalise(torch.cat(parts)[at[:, 0], at[:, 1]])
        rows = {"clean": inputs.parts("discovery").targets.clean, "corrupted": corrupted}
        names = [name for name in inputs.task.metrics if not METRICS[name].flat]
        table = measure_rows(inputs, "discovery", rows, names)
    n_correct = (prompts.correct >= 0).sum(1)
    n_wrong = (prompts.wrong >= 0).sum(1)
    others = np.where(n_wrong, n_wrong, model.config.vocab_out - n_correct)
    return Competence(
        prompts=len(prompts.clean),
        accuracy=mean_accuracy(table, "clean"),
        accuracy_corrupted=mean_accuracy(table, "corrupted"),
        chance=float((n_correct / (n_correct + others)).mean()),
        metrics={name: (float(table[name]["clean"].mean()), float(table[name]["corrupted"].mean())) for name in names},
    )


def warning(inputs: Inputs, found: Competence | None) -> str | None:
    """One line of warning if the model can't do the task."""
    if found is None or found.able:
        return None
    low, high = found.interval
    command = shlex.join(["acdc", "tasks", inputs.config.task, "--model", inputs.config.model])
    says = "can't do" if found.accuracy < 0.5 or found.accuracy <= found.chance else "may not be able to do"
    accuracy = f"{found.accuracy:.0%} ({low:.0%} to {high:.0%}) on {plural(found.prompts, 'prompt')}"
    return (
        f"warning: {inputs.config.model_name} {says} {inputs.task.name}: accuracy {accuracy}, {found.chance:.0%} by "
        f"chance; the circuit will not be meaningful ({command})"
    )
