"""How well a model does a task, as text."""

from acdc.evaluation.competence import Competence, warning
from acdc.report.text import grid, number
from acdc.setup.inputs import Inputs


def to_text(inputs: Inputs, found: Competence | None) -> str:
    """Return a short table, with a warning if the model can't do the task; `found` is None for one without answers."""
    if found is None:
        return f"{inputs.task.name} has no answers, so there is no accuracy"
    config = inputs.config
    low, high = found.interval
    rows = [["(↓ lower, ↑ higher is better)", "clean", "corrupted"]]
    rows.append(["accuracy ↑", number(found.accuracy, 4), number(found.accuracy_corrupted, 4)])
    for name, values in found.metrics.items():
        rows.append([f"{name} ↓", *(number(value, 4) for value in values)])
    blocks = [
        f"{config.model} on {config.examples} prompts, seed {config.seed}: accuracy {found.accuracy:.1%} ({low:.1%} to "
        f"{high:.1%}), by chance {found.chance:.1%}",
        grid(rows, widths=(32, 10, 10)),
    ]
    doubt = warning(inputs, found)
    if doubt:
        blocks.append(doubt)
    return "\n\n".join(blocks)
