"""Comparisons of methods, and of a circuit with its reruns."""

from pathlib import Path
from typing import Any

from acdc.commands import compare_plan
from acdc.commands import stability as reruns
from acdc.commands.compare import compare as compare_methods
from acdc.files.comparison import Comparison
from acdc.files.stability import KINDS, Stability
from acdc.io.progress import progress_bar
from acdc.io.sizes import memory_bound
from acdc.library.arguments import checked, folder_for, loaded_task, of_model, refuse_unknown, task_name, warn
from acdc.library.models import load_model
from acdc.library.shown import ShownComparison, ShownStability
from acdc.model.load import Model
from acdc.task.schema import Task

OF_COMPARISON = ("examples", "seed", "ablation", "abs", "positions")
OF_RERUNS = ("method", "threshold", "faithfulness", "edges", "positions", "metric", "ablation", "examples", "seed")


@checked
def compare(
    model: Model | str,
    tasks: Task | str | list,
    *,
    methods: str | list = "all",
    sizes: list | tuple = (5, 10, 20, 50, 100),
    out: str | Path | None = None,
    memory: str | None = None,
    progress: bool = False,
    **options: Any,
) -> Comparison:
    """Compare methods on tasks, as `acdc compare` does: faithfulness by number of edges, cost, ranking, overlap.

    Args:
        model: from `load_model`, or its name
        tasks: one or more, from `load_task` or by name
        methods: names, or "all"; `eap-ig:0.05+acdc` is ACDC among the best 5 % of eap-ig's edges
        sizes: numbers of edges
        out: directory for the files that `acdc compare` writes; an interrupted comparison there continues
        memory, progress: as of `discover`
        options: examples, seed, ablation, abs, positions, greedy, reference (the path of a circuit.json), updates
    Raises:
        UserError: an option, the model or a task is wrong, or they don't fit together.
    """
    known = ("greedy", "reference", "updates")
    refuse_unknown(options, (*OF_COMPARISON, *known))
    model = model if isinstance(model, Model) else load_model(model)
    chosen = {task_name(task): task for task in (tasks if isinstance(tasks, list) else [tasks])}
    given = of_model(model) | {key: options.get(key) for key in OF_COMPARISON}
    wanted = {"greedy": False, "reference": None, "updates": None, **{k: v for k, v in options.items() if k in known}}
    wanted |= {"tasks": ",".join(map(str, chosen)), "sizes": ",".join(map(str, sizes))}
    wanted["methods"] = methods if isinstance(methods, str) else ",".join(map(str, methods))
    with folder_for(out) as wanted["out"], progress_bar(progress) as show:
        plan, _ = compare_plan.make_plan(given, wanted, None, lambda name: loaded_task(chosen[name]))
        result = compare_methods(plan, memory_bound(memory), out is not None, show, warn, model=model)
    return ShownComparison(**vars(result))


@checked
def stability(
    model: Model | str,
    task: Task | str,
    *,
    seeds: int | None = None,
    resamples: int | None = None,
    orders: int | None = None,
    core: float = 0.9,
    out: str | Path | None = None,
    memory: str | None = None,
    progress: bool = False,
    **options: Any,
) -> Stability:
    """Measure how often each edge is found again, as `acdc stability` does.

    Args:
        model, task: from `load_model` and `load_task`, or their names
        seeds, resamples, orders: reruns on the prompts of other seeds, on bootstrap resamples of the prompts, and with
            the edges in other orders; 5 each by default
        core: the core has the edges found in at least this share of the reruns
        out: directory for the files that `acdc stability` writes; interrupted reruns there continue
        memory, progress: as of `discover`
        options: method, threshold, faithfulness, edges, positions, metric, ablation, examples, seed
    Raises:
        UserError: an option, the model or the task is wrong, or they don't fit together.
    """
    refuse_unknown(options, OF_RERUNS)
    model = model if isinstance(model, Model) else load_model(model)
    given = {**options, **of_model(model), "task": task_name(task)}
    counts = dict(zip(KINDS, (seeds, resamples, orders), strict=True))
    with folder_for(out) as folder, progress_bar(progress) as show:
        plan, _ = reruns.make_plan(given, None, counts, core, folder, None, lambda _: loaded_task(task))
        result, _ = reruns.stability(plan, memory_bound(memory), show, warn, model)
    return ShownStability(**vars(result))
