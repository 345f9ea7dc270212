"""`acdc tasks`, `acdc models` and `acdc methods`: list what there is, or show one in detail."""

import shlex
from collections.abc import Mapping
from typing import Annotated

import typer

from acdc.errors import UserError, unknown
from acdc.io.terminal import show
from acdc.registry import ABLATIONS, METHODS, ORDERS


def tasks(
    name: Annotated[str | None, typer.Argument(help="A task or a YAML file, for its details.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Show how well this model does the task.")] = None,
) -> None:
    """List the shipped tasks, or show one.

    Example: acdc tasks greater-than --model tiny
    """
    from acdc.task.load import load_task, task_names

    if name is None and model is not None:
        command = shlex.join(["acdc", "tasks", "greater-than", "--model", model])
        raise UserError(f"--model {model}: name a task, too: {command}")
    if name is None:
        _list({n: load_task(n).description for n in task_names()})
        return
    task = load_task(name)
    d = task.defaults
    details = {
        "name": f"{task.name} (version {task.version})",
        "description": task.description,
        "source": task.source,
        "metrics": ", ".join(task.metrics),
        "scored at": str(task.score_at),
        "defaults": f"metric {d.metric}, threshold {d.threshold:g}, {d.examples} examples each half, seed {d.seed}, "
        f"{d.ablation} ablation",
    }
    if d.model:
        details["defaults"] += f", model {d.model}"
    if d.models:
        details["per model"] = "; ".join(f"{m}: {o.model_dump(exclude_none=True)}" for m, o in d.models.items())
    if model is None:
        _list(details)
        return
    from acdc.evaluation.competence import competence, warning  # imports torch
    from acdc.report.text import ARROWS, grid, heading, number, readable
    from acdc.setup.config import resolve
    from acdc.setup.inputs import load

    config, checked, _ = resolve({"task": name, "model": model}, None, None)
    inputs = load(config, checked)
    found = competence(inputs)
    _list(details)
    if found is None:
        show(f"\n{task.name} has no answers, so there is no accuracy")
        return
    low, high = found.interval
    rows = [[ARROWS, "clean", "corrupted"]]
    rows.append([heading("accuracy"), number(found.accuracy, 4), number(found.accuracy_corrupted, 4)])
    rows += [[heading(m), *(number(x, 4) for x in readable(m, values))] for m, values in found.metrics.items()]
    on = f"{model} on {inputs.config.examples} prompts, seed {inputs.config.seed}"
    show(f"\n{on}: accuracy {found.accuracy:.1%} ({low:.1%} to {high:.1%}), by chance {found.chance:.1%}")
    show("\n" + grid(rows, widths=(32, 10, 10)))
    if doubt := warning(inputs, found):
        show("\n" + doubt)


def models(name: Annotated[str | None, typer.Argument(help="A model, for its details.")] = None) -> None:
    """List the models at hand, or show one.

    They are bundled, in installed packages, or in the Hugging Face cache.

    Example: acdc models tiny
    """
    from acdc.model.find import BUNDLED, bundled_models, describe_model, packaged_models
    from acdc.model.hub import cached_models

    if name is None:
        bundled = {n: f"bundled; {describe_model(BUNDLED / n)}" for n in bundled_models()}
        cached = {n: f"in the Hugging Face cache; {describe_model(path)}" for n, path in cached_models().items()}
        _list(bundled | packaged_models() | cached)
        return
    if name in bundled_models():
        _list({"name": name, "sizes": describe_model(BUNDLED / name)})
        show("\n" + (BUNDLED / name / "README.md").read_text(encoding="utf-8").rstrip())
        return
    from acdc.model.load import load_model  # imports torch

    model = load_model(name, "cpu")
    c = model.checkpoint.sizes
    found = model.verification
    _list(
        {
            "name": name,
            "sizes": f"{model.checkpoint.family}, {c.n_layers} layers, {c.n_heads} heads, {c.d_model:,} wide, "
            f"{c.vocab_size:,} tokens, {c.n_positions:,} positions; {c.graph().n_edges:,} edges",
            "weights": f"SHA-256 begins with {model.hash}",
            "BOS": "none" if model.tokenizer.bos_id is None else model.tokenizer.pieces([model.tokenizer.bos_id])[0],
            "logits": f"at most {found.difference:.1e} from those of transformers, whose standard deviation is "
            f"{found.spread:.3g}"
            if found
            else "not compared",
        }
    )


def methods(name: Annotated[str | None, typer.Argument(help="A method, for its details.")] = None) -> None:
    """List the methods of discovery, or show one.

    Example: acdc methods acdc
    """
    if name is None:
        _list({n: method.what for n, method in METHODS.items()})
        return
    if name not in METHODS:
        raise UserError(unknown("method", name, METHODS))
    method = METHODS[name]
    details = {"name": name, "what": method.what, "options": ", ".join(method.options), "threshold": method.bound}
    if "order" in method.options:
        details["orders"] = "; ".join(f"{order}: {text}" for order, text in ORDERS.items())
    details["ablations"] = "; ".join(f"{ablation}: {text}" for ablation, text in ABLATIONS.items())
    _list(details)


def _list(lines: Mapping[str, str]) -> None:
    """Print a line for each name, with the texts in a column."""
    width = max(map(len, lines)) + 2
    for name, text in lines.items():
        show(f"{name:{width}}{' '.join(text.split())}")
