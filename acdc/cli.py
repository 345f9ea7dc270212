"""The command line: parse, call the library, print. Results go to stdout, notes and progress to stderr.

Exit codes: 0 done, 1 a check or a run failed, 2 an error that the user can mend (one message), 130 interrupted.
"""

import errno
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from acdc.commands import catalog, options
from acdc.commands.help import Command, help_, top
from acdc.commands.options import ConfigFile, Given, Json, JsonFile, MeasuredCircuit, Memory, circuit, default_model
from acdc.errors import INTERRUPTED, UserError, unknown
from acdc.io.files import check_output, to_json, write_atomic, write_output
from acdc.io.progress import progress_bar
from acdc.io.terminal import open_terminal, say, show
from acdc.registry import FORMATS

# Errors of the file system that the user can mend though they name no file: a full disk below stdout, or no writable
# folder for temporary files.
NAMELESS = (errno.ENOSPC, errno.EDQUOT, errno.ENOENT)
UsageError: Any = typer.BadParameter.__base__  # click's; typer ships it under changing names

app = typer.Typer(
    help="Automated circuit discovery: the few edges of a language model that carry a behaviour.",
    epilog="`acdc help COMMAND` shows a command's options; `acdc tasks`, `models` and `methods` list what there is.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback(invoke_without_command=True)(top)
command = partial(app.command, cls=Command)


def main() -> None:
    """The command `acdc`; `acdc.start` calls it."""
    open_terminal()
    try:
        options.refuse_empty(sys.argv)
        code = app(prog_name="acdc", standalone_mode=False)
    except UserError as error:
        code = _fail(str(error))
    except UsageError as error:
        code = _fail(error.format_message())
    except MemoryError as error:
        code = _fail(f"not enough memory: {error or 'none is left'}")
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, for a device; it may not be imported
            raise
        why = ". ".join(str(error).split(". ")[:3])
        code = _fail(f"{why}. What takes less: fewer prompts (--examples), or prompts in parts (a lower --memory)")
    except OSError as error:  # of any file: its name is too long, no permission, the disk is full
        if error.filename is None and error.errno not in NAMELESS:
            raise
        code = _fail(": ".join(str(part) for part in (error.filename, error.strerror) if part))
    if code == 130:  # newer versions of typer return it instead of raising
        say(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> int:
    say(f"acdc: {message}")
    return 2


@command()
@options.add(given=options.RUN, shown=options.PROGRESS)
def run(
    given: Given,
    shown: Given,
    memory: Memory = None,
    config: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run. [default: runs/<task>-<model>-…]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what the directory holds.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print circuit.json instead of a table.")] = False,
) -> None:
    """Discover a circuit, or one for each threshold or target.

    Example: acdc run --task greater-than --model tiny
    """
    from acdc.setup.config import resolve

    if force and config and config.parent.resolve() == (out or Path()).resolve():
        raise UserError(f"--force: would remove {config}, which is read, too; copy it out of that folder first")
    key, values = options.several(given)
    with progress_bar(**shown) as bar:
        settings, checked, notes = resolve(given | ({key: values[0]} if values else {}), config, default_model)
        bar.say(*notes)

        from acdc.commands.run import run_each  # imports torch: only now, when the options are known to be right
        from acdc.report.run import overview, taken, to_text
        from acdc.setup.inputs import load

        inputs = load(settings, checked, memory)
        bar.say(inputs.memory_note(memory))
        found = run_each(inputs, out, force, key, values, tuple(notes), bar, bar.say)
        if inputs.model.transformer.device.type == "cuda":
            bar.say(taken([folder for _, folder in found]))
    if json_:
        files = [(folder / "circuit.json").read_text(encoding="utf-8") for _, folder in found]
        show(files[0] if len(files) == 1 else "[" + ",\n".join(files) + "]\n", end="")
    else:
        show(to_text(*found[0]) if len(found) == 1 else overview(found))
    bar.say(*(note for file, _ in found for note in file.notes))
    say(*(notes if not shown["quiet"] else ()))  # the fallback to another model is the first and the last line


@command()
@options.add(given=options.EVALUATE, shown=options.PROGRESS)
def evaluate(
    circuit: MeasuredCircuit,
    given: Given,
    shown: Given,
    minimality: Annotated[
        int, typer.Option(min=0, help="Remove at most N edges one by one, those with the smallest scores; 0: none.")
    ] = 200,
    memory: Memory = None,
    out: JsonFile = None,
    json_: Json = False,
) -> None:
    """Measure how good a circuit is on held-out prompts.

    That is faithfulness, completeness, minimality and more, with 95 % intervals.

    Example: acdc evaluate runs/…
    """
    from acdc.commands.evaluate import evaluate as execute
    from acdc.report.evaluation import to_text

    check_output("--out", out, circuit, *options.paths(given))
    with progress_bar(**shown) as bar:
        result = execute(circuit, given, memory, minimality, bar)
    _show(result, to_text, out, json_, bar.say)


@command()
@options.add(given=options.EVALUATE, shown=options.PROGRESS)
def explain(
    circuit: MeasuredCircuit,
    edge: Annotated[
        str | None, typer.Option(help="An edge, as 'a8.h6->a9.h9<q>'. [default: all into queries and keys]")
    ] = None,
    *,
    given: Given,
    shown: Given,
    memory: Memory = None,
    out: JsonFile = None,
    json_: Json = False,
) -> None:
    """Say why a circuit's heads attend where they do.

    For each edge into a query or key: where it acts, what it adds to the score, in how few directions, and what is left
    of its effect when it carries only these.

    Example: acdc explain runs/… --examples 20
    """
    from acdc.commands.explain import explain as execute
    from acdc.report.signals import to_text

    check_output("--out", out, circuit, *options.paths(given))
    with progress_bar(**shown) as bar:
        result = execute(circuit, given, edge, memory, bar)
    _show(result, to_text, out, json_, bar.say)


def _show(result: Any, to_text: Callable[[Any], str], out: Path | None, json_: bool, say: Callable[..., None]) -> None:
    """Write and print a result and its notes."""
    try:
        if out:
            write_output(out, to_json(result))
    finally:  # if the file can't be written, the result is printed
        show(to_json(result), end="") if json_ else show(to_text(result))
        for note in result.notes:
            say(note if note.startswith("warning") else f"note: {note.removeprefix('note: ')}")


@command()
@options.add(names=options.NAMED, bounds=options.BOUNDS, shown=options.PROGRESS)
def check(
    target: Annotated[Path, typer.Argument(help="A run or circuit.json, or a list of checks (YAML).", parser=circuit)],
    *,
    against: Annotated[
        str | None, typer.Option(help="A golden run or circuit.json, or a published circuit: its name or YAML file.")
    ] = None,
    names: Given,
    bounds: Given,
    shown: Given,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit XML report to this file.")] = None,
) -> None:
    """Check a circuit against a golden or published one.

    Exit code 1 if it isn't the golden one any more, or not near enough to the published one.

    Example: acdc check runs/… --against golden.json
    """
    from acdc.commands.check import check as execute

    with progress_bar(**shown) as progress:
        outcomes = execute(target, against, names, bounds, junit, show, progress)
    failed = sum(not outcome.passed for outcome in outcomes)
    if len(outcomes) > 1:
        show(f"{len(outcomes) - failed} passed, {failed} failed")
    if failed:
        raise typer.Exit(1)


@command()
@options.add(names=options.NAMED, picture=options.PICTURE)
def export(
    circuit: Annotated[Path, typer.Argument(help="A run, its circuit.json, or EAP-IG's JSON.", parser=circuit)],
    *,
    to: Annotated[str, typer.Option("--to", help=", ".join(FORMATS) + ".")],
    edges: Annotated[
        int | None, typer.Option(min=1, help="The N strongest edges of the run; after --faithfulness, of its path.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write. [default: beside the circuit; - is stdout]")
    ] = None,
    names: Given,
    picture: Given,
) -> None:
    """Write a circuit in another format.

    The options after --out are for pictures: svg, png, pdf and tikz. Parameters need the model; --model says where it
    is, unless the run does.

    Example: acdc export runs/… --to pdf --width 3.3
    """
    from acdc.commands.export import READ, convert, make_look, strongest
    from acdc.files.eap_ig import read_all

    if to not in FORMATS:
        raise UserError(f"--to: {unknown('format', to, FORMATS)}")
    (file,) = read_all([circuit], names, FORMATS[to].named, ("model",) if to == "parameters" else ())
    file = strongest(file, edges, circuit.parent) if edges else file
    if to == "eap-ig" and (file.spans or file.model.features):
        say("note: EAP-IG's format has no positions and no features: an edge is in the file if any part of it is kept")
    data = convert(file, to, make_look(to, picture), circuit.parent, names["model"])
    stem = f"{circuit.stem}-{edges}" if edges else circuit.stem
    target = out or circuit.with_name(f"{stem}.{FORMATS[to].ending}")
    if str(target) == "-":
        show(data.encode() if isinstance(data, str) else data)
        return
    check_output("--out", target, circuit, *(circuit.with_name(name) for name in READ))
    (write_output if out else write_atomic)(target, data)  # a link is followed if the user has named it
    show(str(target))


@command()
@options.add(names=options.NAMED)
def diff(
    a: Annotated[Path, typer.Argument(help="A run, its circuit.json, or EAP-IG's JSON.", parser=circuit)],
    b: Annotated[Path, typer.Argument(help="Another one of the same graph.", parser=circuit)],
    *,
    names: Given,
    tolerance: Annotated[float, typer.Option(help="Scores that differ by more count as re-scored.")] = 1e-6,
    json_: Json = False,
) -> None:
    """Compare two circuits edge by edge, and by their metrics.

    Example: acdc diff runs/a runs/b
    """
    from acdc.files.diff import diff as compare
    from acdc.files.eap_ig import read_all
    from acdc.report.run import diff_text

    before, after = read_all([a, b], names, ())
    result = compare(before, after, tolerance)
    if json_:
        show(json.dumps(asdict(result), indent=1))
        return
    say(*(f"note: {note}" for note in result.notes))
    show(diff_text(before, after, result))


command()(catalog.tasks)
command()(catalog.models)
command()(catalog.methods)


@command()
@options.add(wanted=options.PLAN, given=options.COMPARE, shown=options.PROGRESS)
def compare(
    wanted: Given,
    given: Given,
    shown: Given,
    memory: Memory = None,
    json_: Annotated[bool, typer.Option("--json", help="Print compare.json instead of tables.")] = False,
    plots: Annotated[bool, typer.Option(help="Draw faithfulness and ROC curves.")] = True,
) -> None:
    """Compare methods on tasks, or models on a task.

    That is faithfulness by number of edges, cost, ROC against a reference circuit, and overlap; of models what their
    circuits share, and how faithful each circuit is in the other models.

    Example: acdc compare --tasks ioi,greater-than --model tiny --examples 50
    """
    from acdc.commands import compare, compare_models, compare_plan
    from acdc.report.comparison import models_to_text, to_text

    result: Any
    with progress_bar(**shown) as bar:
        if wanted["models"] is not None:
            of_models = compare_models.make_plan(given, wanted)
            result = compare_models.compare_models(of_models, memory, bar, bar.say)
            text = models_to_text(result)
            out = of_models.out
        else:
            plan, notes = compare_plan.make_plan(given, wanted, default_model)
            result = compare.compare(plan, memory, plots, bar, bar.say, notes)
            text = to_text(result)
            out = plan.out
    show(to_json(result), end="") if json_ else show(f"{text}\n\nfiles     {out}/")


@command()
@options.add(given=options.STABILITY, shown=options.PROGRESS, reruns=options.RERUNS)
def stability(
    *,
    given: Given,
    shown: Given,
    memory: Memory = None,
    config: ConfigFile = None,
    reruns: Given,
    core: Annotated[float, typer.Option(help="The core has the edges found in at least this share of the runs.")] = 0.9,
    out: Annotated[Path | None, typer.Option(help="Directory. [default: stability/<task>-<model>-…]")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print stability.json instead of a table.")] = False,
) -> None:
    """Measure how often each edge is found again.

    The run is repeated with other seeds, prompts and orders; edges that are nearly always found are the core.

    Example: acdc stability --task greater-than --model tiny
    """
    from acdc.commands.stability import make_plan
    from acdc.commands.stability import stability as execute
    from acdc.report.stability import to_text

    plan, notes = make_plan(given, config, reruns, core, out, default_model)
    with progress_bar(**shown) as bar:
        bar.say(*notes)
        result, folder = execute(plan, memory, bar, bar.say)
    show(to_json(result), end="") if json_ else show(f"{to_text(result)}\n\nfiles     {folder}/")


@command()
@options.add(given=options.WORKERS, shown=options.PROGRESS)
def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML file with a base config and a grid, or a shipped one's name.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Directory. [default: sweeps/<name of the file>]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, show runs, cost and state; run none.")] = False,
    given: Given,
    shown: Given,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask, however many runs it is.")] = False,
    plots: Annotated[bool, typer.Option(help="Draw plots.")] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of a table.")] = False,
) -> None:
    """Make a grid of runs, on all cores or a Slurm cluster.

    Called again, it continues. Exit code 1 if a run failed.

    Example: acdc sweep sweep-tiny
    """
    from acdc.report.results import summary, to_text
    from acdc.sweep.plan import make_plan, overview
    from acdc.sweep.sweep import sweep as execute

    def sure(runs: int) -> bool:
        asked = sys.stdin is not None and sys.stdin.isatty()
        return yes or (asked and typer.confirm(f"{runs:,} runs. Go on?", err=True))

    plan, notes = make_plan(file, out, given | {"plots": plots}, sure, default_model)
    with progress_bar(**shown) as bar:
        bar.say(*notes)
        if dry_run:
            show(overview(plan))
            return
        rows = execute(plan, bar, bar.say)
    show(json.dumps(rows, indent=1) if json_ else f"{to_text(rows)}\n\n{summary(rows)}\nfiles     {plan.out}/")
    if any(row["state"] != "done" for row in rows):
        say("acdc: " + "; ".join(f"{r['run']} failed: {r['message']}" for r in rows if r["state"] == "failed"))
        raise typer.Exit(1)


command()(catalog.results)
command(name="help")(help_)

if __name__ == "__main__":
    main()
