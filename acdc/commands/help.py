"""The help of commands, with options grouped by what they are for, as plain text that any terminal can show."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from acdc.errors import UserError, unknown
from acdc.io.terminal import show

# Title of a group → names of its options, of all commands; whatever is in no group comes last.
GROUPS = {
    "Task and model": "task tasks model models revision examples seed",
    "Method and metric": "method methods metric ablation minimality edge prefilter direct positions features order abs",
    "Details of one method": "steps updates penalty sparsity",
    "Edges to keep": "threshold faithfulness edges sizes greedy",
    "Reruns": "seeds resamples orders core",
    "Comparison": "against reference edits tolerance recall precision classes auc",
    "Computation": "device dtype batch memory executor workers threads retry dry_run yes",
    "Pictures": "width direction scores no_header title font_size legend",
    "Files and output": "config to out force junit plots where sort columns csv json_ quiet verbose",
}
TITLES = {name: title for title, names in GROUPS.items() for name in names.split()}


class Command(TyperCommand):
    """A command whose help has a section for each of `GROUPS`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of arguments and options."""
        titles = ["Arguments", *GROUPS, "Options"]
        records: dict[str, list[Any]] = {}
        for parameter in self.get_params(ctx):
            title = "Arguments" if parameter.param_type_name == "argument" else TITLES.get(parameter.name, "Options")
            records.setdefault(title, []).append(parameter.get_help_record(ctx))
        for title in sorted(records, key=titles.index):
            with formatter.section(title):
                formatter.write_dl(records[title])


def _commands(ctx: typer.Context) -> list[str]:
    top: Any = ctx.parent
    return list(top.command.commands)


def help_(
    ctx: typer.Context, name: Annotated[str | None, typer.Argument(help="A command.", autocompletion=_commands)] = None
) -> None:
    """Show what a command does, and its options.

    Example: acdc help run
    """
    top: Any = ctx.parent
    commands = top.command.commands
    if name is not None and name not in commands:
        raise UserError(unknown("command", name, commands))
    of = top if name is None else commands[name].make_context(name, [], top, resilient_parsing=True)
    show(of.get_help())


def top(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False
) -> None:
    """Show the version or, without a command, what there is."""
    if version:
        from importlib.metadata import version as of  # takes time

        show(f"acdc {of('acdc-circuits')}")
        raise typer.Exit()
    if ctx.invoked_subcommand is None:
        show(ctx.get_help())
