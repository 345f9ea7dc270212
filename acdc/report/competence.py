"""How well a model does a task, as text."""

from __future__ import annotations

from acdc.evaluation.competence import Competence, warning
from acdc.setup.inputs import Inputs


def to_text(inputs: Inputs, found: Competence | None) -> str:
    """A short table, and a warning where the model can't do the task; `found` is None for a task without answers."""
    if found is None:
        return f"{inputs.task.name} has no answers, so there is nothing to be right about"
    config, (low, high) = inputs.config, found.interval
    lines = [
        f"{config.model} on {config.examples} prompts, seed {config.seed}: accuracy {found.accuracy:.1%} ({low:.1%} to "
        f"{high:.1%}), by chance {found.chance:.1%}",
        "",
        f"{'(↓ lower, ↑ higher is better)':32}{'clean':>12}{'corrupted':>12}",
        f"{'accuracy ↑':32}{found.accuracy:>12.4f}{found.accuracy_corrupted:>12.4f}",
        *(f"{name + ' ↓':32}{clean:>12.4f}{other:>12.4f}" for name, (clean, other) in found.metrics.items()),
    ]
    doubt = warning(inputs, found)
    return "\n".join([*lines, "", doubt] if doubt else lines)
