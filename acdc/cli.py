"""The command line: parse, call the library, print. stdout is the result, stderr log and progress.

Exit codes: 0 done, 1 a check failed, 2 the user can mend it (one message), 130 interrupted.
"""

from __future__ import annotations

import errno
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acdc.errors import UserError

if TYPE_CHECKING:
    from acdc.io.progress import Progress, Show

# Errors of the file system that name no file and are still the user's: stdout is on a full disk; no folder for
# temporary files can be written, as the message then says.
NAMELESS = (errno.ENOSPC, errno.EDQUOT, errno.ENOENT)
UsageError: Any = typer.BadParameter.__base__  # click's, which typer brings along under changing names

app = typer.Typer(
    name="acdc",
    help="Automated circuit discovery: the few edges of a language model that carry a behaviour.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Entry point of the command `acdc`."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        code = _fail(str(error))
    except UsageError as error:
        code = _fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except OSError as error:  # of whatever file: a name that is too long, no permission, a full disk
        if error.filename is None and error.errno not in NAMELESS:
            raise
        code = _fail(": ".join(str(part) for part in (error.filename, error.strerror) if part))
    if code == 130:  # newer versions of typer return it instead of raising
        say("interrupted; the same command goes on from here")
    sys.exit(code if isinstance(code, int) else 0)


def say(message: str) -> None:
    """One line to stderr."""
    typer.echo(message, err=True)


def _fail(message: str) -> int:
    say("acdc: " + " ".join(message.split("\n")))
    return 2


TaskOption = Annotated[str | None, typer.Option("--task", "-t", help="A shipped task (`acdc tasks`) or a YAML file.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A bundled model, a local directory or a Hugging Face id. [default: gpt2]"),
]
MethodOption = Annotated[str | None, typer.Option(help="Method of discovery (`acdc methods`).")]
EdgesOption = Annotated[int | None, typer.Option(help="Keep the N edges with the highest scores (not for acdc).")]
MetricOption = Annotated[str | None, typer.Option(help="kl, logit-diff, prob-diff, nll or l2, as the task allows.")]
AblationOption = Annotated[str | None, typer.Option(help="What a removed edge carries: corrupted, zero or mean.")]
ExamplesOption = Annotated[int | None, typer.Option(help="Prompts for discovery, and as many held out.")]
AbsOption = Annotated[
    bool | None, typer.Option("--abs/--signed", help="Go by the size of a change or score, not its sign.")
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
MemoryOption = Annotated[str | None, typer.Option(help="Stay below this, as 4GB. [default: half of the machine's]")]


@app.command()
def run(
    task: TaskOption = None,
    model: ModelOption = None,
    method: MethodOption = None,
    threshold: Annotated[
        str | None, typer.Option("--threshold", "-T", help="τ in the metric's units; several, with commas: a run each.")
    ] = None,
    edges: EdgesOption = None,
    greedy: Annotated[
        bool | None, typer.Option("--greedy/--top", help="Grow the N edges from the logits instead.")
    ] = None,
    prefilter: Annotated[
        str | None, typer.Option(help="METHOD:SHARE: acdc decides among its best edges only, as eap-ig:0.05.")
    ] = None,
    metric: MetricOption = None,
    ablation: AblationOption = None,
    examples: ExamplesOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the prompts and of random orders.")] = None,
    direct: Annotated[
        bool | None, typer.Option("--direct/--no-direct", help="Test whole q, k, v vectors first.")
    ] = None,
    order: Annotated[str | None, typer.Option(help="paper, heads-ascending, parents-ascending or random.")] = None,
    abs_: AbsOption = None,
    steps: Annotated[int | None, typer.Option(help="Points on the path, for eap-ig.")] = None,
    updates: Annotated[int | None, typer.Option(help="Updates of a method that trains gates.")] = None,
    penalty: Annotated[float | None, typer.Option(help="Price of open gates, for subnetwork-probing.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of edges to close, for edge-pruning.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64.")] = None,
    device: DeviceOption = None,
    batch: Annotated[int | None, typer.Option(help="Most candidates evaluated at once.")] = None,
    memory: MemoryOption = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with any of these options, or the name of a shipped one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run. [default: runs/<task>-<model>-…]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what the directory holds.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print circuit.json instead of a table.")] = False,
) -> None:
    """Discover one circuit, or one per threshold.

    Example: acdc run --task greater-than --model tiny
    """
    thresholds = _numbers("--threshold", threshold) if threshold else [None]
    given = {
        "task": task,
        "model": model,
        "method": method,
        "threshold": thresholds[0],
        "metric": metric,
        "ablation": ablation,
        "examples": examples,
        "seed": seed,
        "direct": direct,
        "order": order,
        "abs": abs_,
        "dtype": dtype,
        "device": device,
        "batch": batch,
        "edges": edges,
        "greedy": greedy,
        "prefilter": prefilter,
        "steps": steps,
        "updates": updates,
        "penalty": penalty,
        "sparsity": sparsity,
    }
    from acdc.setup.config import resolve

    settings, checked, notes = resolve(given, config, _default_model)
    for note in notes:
        say(note)
    from acdc.commands.run import run as execute
    from acdc.report.run import overview, to_text
    from acdc.setup.inputs import load  # torch is loaded here, after all that can be wrong without it

    bound = _bytes(memory)
    inputs = load(settings, checked, bound)
    more = f", more than --memory {memory}: with less it can't be made" if bound else ""
    say(f"memory: about {inputs.expected_memory / 1e9:.1f} GB" + more * (inputs.expected_memory > (bound or 0)))
    found = []
    for value in thresholds:
        at = inputs if value is None else inputs.at(value)
        folder = out / f"threshold-{value:g}" if out and len(thresholds) > 1 else out
        with _bar() as progress:
            found.append(execute(at, folder, force, tuple(notes), progress, say))
    if json_:
        files = [(folder / "circuit.json").read_text(encoding="utf-8") for _, folder in found]
        typer.echo(files[0] if len(files) == 1 else "[" + ",\n".join(files) + "]", nl=len(files) > 1)
    else:
        typer.echo(to_text(*found[0]) if len(found) == 1 else overview(found))
    for note in found[0][0].notes:
        say(note)


def _numbers(flag: str, text: str) -> list[float]:
    """Numbers with commas between them, each once."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not a number, nor several with commas between them") from None
    if len(set(values)) < len(values):
        raise UserError(f"{flag}: {text!r} has a number twice")
    for value in values:
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{flag}: is {value}; it must be a finite number, 0 or above, in the metric's units")
    return values


def _bytes(text: str | None) -> float | None:
    from acdc.setup.config import memory_bound

    return memory_bound(text)


def _default_model() -> tuple[str, str | None]:
    from acdc.errors import ModelError
    from acdc.model.find import find_model
    from acdc.setup.config import DEFAULT_MODEL, FALLBACK_MODEL

    try:
        find_model(DEFAULT_MODEL)
        return DEFAULT_MODEL, None
    except ModelError:
        return FALLBACK_MODEL, (
            f"note: {DEFAULT_MODEL} is neither in the Hugging Face cache nor reachable; this is the bundled model "
            f"{FALLBACK_MODEL} (choose with --model)"
        )


@contextmanager
def _bar() -> Iterator[Show]:
    """A bar on stderr, where that is a terminal: what is done of all, what the method says of it, ETA."""
    from tqdm import tqdm

    with tqdm(disable=None, file=sys.stderr, dynamic_ncols=True, leave=False) as bar:

        def show(p: Progress) -> None:
            if bar.disable:
                return
            if p.unit != bar.desc:  # another stage
                bar.reset()
            bar.total, bar.desc = p.total, p.unit
            bar.set_postfix_str(p.note, refresh=False)
            bar.update(p.done - bar.n)

        yield show


@app.command()
def evaluate(
    circuit: Annotated[Path, typer.Argument(help="A circuit.json.")],
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="Another task, or where its YAML file is. [default: the circuit's]"),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Where the circuit's model is. [default: where it was]")
    ] = None,
    examples: Annotated[int | None, typer.Option(help="Prompts. [default: as many as it was found with]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the prompts, random circuits and intervals.")] = None,
    minimality: Annotated[
        int, typer.Option(min=0, help="Remove at most N edges one by one, those with the smallest scores; 0: none.")
    ] = 200,
    device: DeviceOption = None,
    memory: MemoryOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the JSON, beside what is printed.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """How good a circuit is on held-out prompts: faithfulness, completeness, minimality, with intervals.

    Example: acdc evaluate runs/…/circuit.json
    """
    given = {"task": task, "model": model, "examples": examples, "seed": seed, "device": device}
    bound = _bytes(memory)
    from acdc.commands.evaluate import evaluate as execute
    from acdc.files.evaluation import to_json
    from acdc.io.files import write_atomic
    from acdc.report.evaluation import to_text

    with _bar() as progress:
        result = execute(circuit, given, bound, minimality, progress)
    typer.echo(to_json(result), nl=False) if json_ else typer.echo(to_text(result))
    for note in result.notes:
        say(note if note.startswith("warning") else f"note: {note.removeprefix('note: ')}")
    if out:  # last: a result that can't be written has been shown
        write_atomic(out, to_json(result))


@app.command()
def check(
    target: Annotated[
        Path, typer.Argument(help="A circuit.json, or a list of checks: a YAML file or the name of a shipped one.")
    ],
    against: Annotated[
        str | None, typer.Option(help="A golden circuit.json, or a published circuit: its name or YAML file.")
    ] = None,
    edits: Annotated[int | None, typer.Option(help="Edges that may be added or removed. [default: 0]")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="By how much metrics and scores may differ. [default: 0.0001]")
    ] = None,
    recall: Annotated[float | None, typer.Option(help="Least share of the published edges that is found.")] = None,
    precision: Annotated[float | None, typer.Option(help="Least share of the edges that is published.")] = None,
    classes: Annotated[int | None, typer.Option(help="Least number of published component classes found.")] = None,
    auc: Annotated[float | None, typer.Option(help="Least area under the ROC curve of the scores.")] = None,
    junit: Annotated[Path | None, typer.Option(help="File for a report in JUnit's XML.")] = None,
) -> None:
    """Whether a circuit is still the golden one, or near enough to a published one; exit code 1 where it isn't.

    Example: acdc check runs/…/circuit.json --against golden.json
    """
    bounds = {
        "edits": edits,
        "tolerance": tolerance,
        "recall": recall,
        "precision": precision,
        "classes": classes,
        "auc": auc,
    }
    if a_list := target.suffix != ".json" and not target.is_dir():
        from acdc.task.load import find_config

        target = find_config(target)
    given = [f"--{name}" for name, value in {"against": against, **bounds}.items() if value is not None]
    if a_list and given:
        raise UserError(f"{given[0]}: {target} is a list, and says that itself for each of its checks")
    if not a_list and against is None:
        raise UserError(f"{target}: against what? Give --against golden.json, or the name of a published circuit")
    from acdc.commands.check import check_circuit, check_list, make_bounds
    from acdc.commands.check import junit as to_junit
    from acdc.io.files import write_atomic

    if a_list:
        with _bar() as progress:
            outcomes = check_list(target, typer.echo, progress)
    else:
        outcomes = [check_circuit(target, str(against), make_bounds(bounds))]
        typer.echo(outcomes[0].text())
    if junit:
        write_atomic(junit, to_junit(outcomes))
    failed = sum(not outcome.passed for outcome in outcomes)
    if len(outcomes) > 1:
        typer.echo(f"{len(outcomes) - failed} passed, {failed} failed")
    if failed:
        raise typer.Exit(1)


@app.command()
def export(
    circuit: Annotated[Path, typer.Argument(help="A circuit.json.")],
    to: Annotated[str, typer.Option("--to", help="graphml, node-link, dot, svg, png, pdf, html or eap-ig.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write. [default: beside the circuit; - is stdout]")
    ] = None,
    width: Annotated[
        float | None, typer.Option(help="Inches, for print: 3.3 is a paper's column. [default: as the layout needs]")
    ] = None,
    direction: Annotated[
        str | None, typer.Option(help="Where the logits are: up, down, right or left. [default: up]")
    ] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Write the edges' scores beside them.")] = False,
    bare: Annotated[bool, typer.Option("--no-header", help="Leave out title, counts and legend.")] = False,
) -> None:
    """Write a circuit in another format. The options after --out are for pictures: svg, png and pdf.

    Example: acdc export runs/…/circuit.json --to pdf --width 3.3
    """
    from acdc.commands.export import FORMATS, convert, make_look
    from acdc.files.circuit import read_circuit
    from acdc.io.files import write_atomic

    if to not in FORMATS:
        from acdc.errors import unknown

        raise UserError(f"--to: {unknown('format', to, FORMATS)}")
    given = {"width": width, "direction": direction, "scores": scores or None, "no-header": bare or None}
    look = make_look(to, given)
    data = convert(read_circuit(circuit), to, look, circuit.parent)
    if str(out) == "-":
        typer.echo(data, nl=False)
        return
    target = out or circuit.with_name(f"{circuit.stem}{FORMATS[to]}")
    write_atomic(target, data)
    typer.echo(str(target))


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A circuit.json.")],
    b: Annotated[Path, typer.Argument(help="Another one of the same graph.")],
    tolerance: Annotated[float, typer.Option(help="Scores that differ by more count as re-scored.")] = 1e-6,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Edges added, removed and re-scored from one circuit to another.

    Example: acdc diff a/circuit.json b/circuit.json
    """
    import json
    from dataclasses import asdict

    from acdc.files.circuit import read_circuit
    from acdc.files.diff import diff as compare
    from acdc.report.text import diff_text

    result = compare(read_circuit(a), read_circuit(b), tolerance)
    if json_:
        typer.echo(json.dumps(asdict(result), indent=1))
        return
    for note in result.notes:
        say(f"note: {note}")
    typer.echo(diff_text(result))


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="A task or a YAML file, for its details.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Show how well this model does the task.")] = None,
) -> None:
    """The shipped tasks, one line each; with a name: its details, and with a model: how well the model does it.

    Example: acdc tasks greater-than --model tiny
    """
    from acdc.task.load import load_task, task_names

    if name is None and model is not None:
        raise UserError(f"--model {model}: name a task, too: acdc tasks greater-than --model {model}")
    if name is None:
        _list({n: load_task(n).description for n in task_names()})
        return
    task = load_task(name)
    d = task.defaults
    overrides = "; ".join(f"{m}: {o.model_dump(exclude_none=True)}" for m, o in d.models.items())
    _details({
        "name": f"{task.name} (version {task.version})", "description": task.description, "source": task.source,
        "metrics": ", ".join(task.metrics), "scored at": str(task.score_at),
        "defaults": f"metric {d.metric}, threshold {d.threshold:g}, {d.examples} examples each half, seed {d.seed}, "
        f"{d.ablation} ablation" + (f", model {d.model}" if d.model else ""),
        **({"per model": overrides} if overrides else {}),
    })  # fmt: skip
    if model is not None:
        typer.echo("\n" + _competence(name, model))


def _competence(task: str, model: str) -> str:
    """How well a model does a task, as a short table."""
    from acdc.setup.config import resolve

    settings, checked, _ = resolve({"task": task, "model": model}, None, _default_model)
    from acdc.evaluation.competence import competence
    from acdc.report.competence import to_text
    from acdc.setup.inputs import load

    inputs = load(settings, checked)
    return to_text(inputs, competence(inputs))


@app.command()
def models(name: Annotated[str | None, typer.Argument(help="A model, for its details.")] = None) -> None:
    """The bundled and packaged models and those in the Hugging Face cache, one line each; with a name: its details.

    Example: acdc models tiny
    """
    from acdc.model.find import (
        BUNDLED,
        bundled_models,
        cached_models,
        describe_model,
        find_model,
        packaged_models,
    )

    if name is None:
        bundled = {n: f"bundled; {describe_model(BUNDLED / n)}" for n in bundled_models()}
        _list(bundled | packaged_models() | cached_models())
        return
    folder = find_model(name)
    card = folder / "README.md"
    _details({"name": name, "sizes": describe_model(folder)})
    if folder.parent == BUNDLED and card.is_file():
        typer.echo("\n" + card.read_text(encoding="utf-8").rstrip())


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="A method, for its details.")] = None) -> None:
    """The methods of discovery, one line each; with a name: its details.

    Example: acdc methods acdc
    """
    from acdc.errors import unknown
    from acdc.registry import ABLATIONS, METHODS, ORDERS

    if name is None:
        _list({n: m.what for n, m in METHODS.items()})
    elif name in METHODS:
        method = METHODS[name]
        details = {"name": name, "what": method.what, "options": ", ".join(method.options), "threshold": method.bound}
        if "order" in method.options:
            details["orders"] = "; ".join(f"{k}: {v}" for k, v in ORDERS.items())
        _details(details | {"ablations": "; ".join(f"{k}: {v}" for k, v in ABLATIONS.items())})
    else:
        raise UserError(unknown("method", name, METHODS))


@app.command()
def compare(
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="Tasks or YAML files, with commas between them.")],
    methods: Annotated[
        str, typer.Option(help="Methods with commas, or all; eap-ig:0.05+acdc is acdc among another one's best edges.")
    ] = "all",
    sizes: Annotated[str, typer.Option(help="How many edges to keep, with commas.")] = "5,10,20,50,100",
    model: ModelOption = None,
    examples: ExamplesOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the prompts, random scores and intervals.")] = None,
    ablation: AblationOption = None,
    greedy: Annotated[bool, typer.Option("--greedy/--top", help="Grow the edges from the logits instead.")] = False,
    abs_: AbsOption = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="A circuit.json that is taken for true, or TASK=FILE with commas. "
            "[default: acdc's at the task's threshold]"
        ),
    ] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Updates of the methods that train gates.")] = None,
    device: DeviceOption = None,
    memory: MemoryOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the comparison. [default: compare/<tasks>-<model>]")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print compare.json instead of tables.")] = False,
    plots: Annotated[bool, typer.Option(help="Draw faithfulness and ROC curves; needs matplotlib.")] = True,
) -> None:
    """Compare methods on tasks: faithfulness by size, cost, ROC against a reference, overlap.

    Example: acdc compare --tasks ioi,greater-than --model tiny --examples 50
    """
    from acdc.commands.compare import compare as execute
    from acdc.commands.compare_plan import make_plan
    from acdc.files.comparison import to_json
    from acdc.report.comparison import to_text

    given = {
        "model": model,
        "examples": examples,
        "seed": seed,
        "ablation": ablation,
        "abs": abs_,
        "device": device,
    }
    plan, notes = make_plan(given, tasks, methods, sizes, greedy, reference, updates, out, _default_model)
    for note in notes:
        say(note)
    with _bar() as progress:
        result = execute(plan, _bytes(memory), plots, progress, say)
    typer.echo(to_json(result), nl=False) if json_ else typer.echo(f"{to_text(result)}\n\nfiles     {plan.out}/")


@app.command()
def stability(
    task: TaskOption = None,
    model: ModelOption = None,
    method: MethodOption = None,
    threshold: Annotated[float | None, typer.Option("--threshold", "-T", help="τ in the metric's units.")] = None,
    edges: EdgesOption = None,
    metric: MetricOption = None,
    ablation: AblationOption = None,
    examples: ExamplesOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the base run; the others follow.")] = None,
    device: DeviceOption = None,
    memory: MemoryOption = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with any options of `acdc run`, or the name of a shipped one.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=0, help="Runs on the prompts of other seeds. [default: 5]")] = None,
    resamples: Annotated[
        int | None, typer.Option(min=0, help="Runs on bootstrap resamples of the prompts. [default: 5]")
    ] = None,
    orders: Annotated[
        int | None, typer.Option(min=0, help="Runs with the edges in other orders; acdc only. [default: 5]")
    ] = None,
    core: Annotated[float, typer.Option(help="An edge of the core is found in this share of the runs.")] = 0.9,
    out: Annotated[Path | None, typer.Option(help="Directory. [default: stability/<task>-<model>-…]")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print stability.json instead of a table.")] = False,
) -> None:
    """How often each edge is found again with other seeds, prompts and orders; and the core of those that nearly
    always are.

    Example: acdc stability --task greater-than --model tiny
    """
    from acdc.commands.stability import make_plan
    from acdc.commands.stability import stability as execute
    from acdc.files.stability import to_json
    from acdc.report.stability import to_text

    given = {
        "task": task,
        "model": model,
        "method": method,
        "threshold": threshold,
        "edges": edges,
        "metric": metric,
        "ablation": ablation,
        "examples": examples,
        "seed": seed,
        "device": device,
    }
    bound = _bytes(memory)
    counts = {"seeds": seeds, "resamples": resamples, "orders": orders}
    plan, notes = make_plan(given, config, counts, core, out, _default_model)
    for note in notes:
        say(note)
    with _bar() as progress:
        result, folder = execute(plan, bound, progress, say)
    typer.echo(to_json(result), nl=False) if json_ else typer.echo(f"{to_text(result)}\n\nfiles     {folder}/")


@app.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(help="A YAML file with a base config and a grid, or the name of a shipped one.")
    ],
    out: Annotated[Path | None, typer.Option(help="Directory. [default: sweeps/<name of the file>]")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, show the runs, what they cost and what is done; make none.")
    ] = False,
    executor: Annotated[str | None, typer.Option(help="local or slurm. [default: the file's, or local]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [default: one per core, or GPU]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each. [default: cores / workers]")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Each process stays below this, as 4GB. [default: half of the machine's, shared]")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry-failed", help="Make the runs again that have failed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask, however many runs it is.")] = False,
    plots: Annotated[bool, typer.Option(help="Draw plots, where matplotlib is installed.")] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of a table.")] = False,
) -> None:
    """Make a grid of runs, on all cores or a Slurm cluster; called again, it makes what is left. Exit code 1 if a run
    has failed.

    Example: acdc sweep sweep-tiny
    """
    from acdc.report.results import summary, to_text
    from acdc.sweep.plan import make_plan, overview
    from acdc.sweep.sweep import sweep as execute

    given = {
        "executor": executor,
        "workers": workers,
        "threads": threads,
        "memory": _bytes(memory),
        "retry": retry,
        "plots": plots,
    }

    def sure(runs: int) -> bool:
        return yes or (sys.stdin.isatty() and typer.confirm(f"{runs:,} runs. Go on?", err=True))

    plan, notes = make_plan(file, out, given, sure, _default_model)
    for note in notes:
        say(note)
    if dry_run:
        typer.echo(overview(plan))
        return
    with _bar() as progress:
        rows = execute(plan, progress, say)
    typer.echo(_json(rows) if json_ else f"{to_text(rows)}\n\n{summary(rows)}\nfiles     {plan.out}/")
    if any(row["state"] != "done" for row in rows):
        say("acdc: " + "; ".join(f"{r['run']} failed: {r['message']}" for r in rows if r["state"] == "failed"))
        raise typer.Exit(1)


@app.command()
def results(
    directory: Annotated[Path, typer.Argument(help="That of a sweep, or one that holds directories of runs.")],
    where: Annotated[
        list[str] | None, typer.Option("--where", "-w", help="COLUMN=VALUE (or !=, <, >, <=, >=); repeatable.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by; -COLUMN from the largest.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to show, with commas, or all.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The table of a sweep, or of any runs: filtered, sorted, as text, CSV or JSON. It can be read while they run.

    Example: acdc results sweeps/sweep-tiny --where task=ioi --sort kept
    """
    from acdc.files.table import chosen, every_column, found_rows, to_csv
    from acdc.report.results import to_text

    rows = found_rows(directory)
    known = every_column(rows)
    rows = chosen(rows, where or [], sort)
    names = known if columns == "all" else columns.split(",") if columns else None
    if json_:
        typer.echo(_json([{k: row.get(k) for k in names or known} for row in rows]))
    else:
        typer.echo(to_csv(rows, names or known) if csv else to_text(rows, names), nl=not csv)


def _json(rows: list[dict[str, Any]]) -> str:
    import json

    return json.dumps(rows, indent=1)


def _list(lines: dict[str, str]) -> None:
    width = max(map(len, lines)) + 2
    for name, text in lines.items():
        typer.echo(f"{name:{width}}{' '.join(text.split())}")


def _details(lines: dict[str, Any]) -> None:
    for key, text in lines.items():
        typer.echo(f"{key:13}{' '.join(str(text).split())}")


if __name__ == "__main__":
    main()
