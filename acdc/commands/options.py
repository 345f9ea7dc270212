"""The options of the command line that commands share, or pass on together, declared once.

A table maps names to options; `add` adds all options of a table to a command, which gets their values as one dict.
"""

import inspect
import math
import os
import re
from collections.abc import Callable, Iterable
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from acdc.errors import ModelError, UserError
from acdc.io.sizes import memory_bound
from acdc.io.terminal import say
from acdc.registry import DEVICES, LIMITS, METHODS, NAMES, PENALTY, SPARSITY

MANY = 5000  # prompts that take seconds to draw
REQUIRED = inspect.Parameter.empty
Given = dict[str, Any]  # name → value of an option, None if not given
Option = tuple[Any, Any]  # annotation and default of a parameter of a command
COUNT: dict[str, Any] = {"min": 0, "max": LIMITS["reruns"]}
SIZE: dict[str, Any] = {"parser": memory_bound, "metavar": "<size>"}


def whole(text: str) -> int:
    """The value of an option that is a whole number."""
    if not re.fullmatch(r"-?[0-9]{1,1000}", text):
        raise typer.BadParameter(f"{text!r} is not a whole number; write it in digits, as 1000")
    return int(text)


def circuit(text: str) -> Path:
    """The value of an argument that is a circuit's file, or the directory of its run."""
    from acdc.files.circuit import find_circuit

    return find_circuit(Path(text))


def option(kind: Any, help_: str, *flags: str, default: Any = None, **settings: Any) -> Option:
    """Declare an option of a table; `default` is REQUIRED if it may not be left out."""
    annotated: Any = Annotated
    if kind is int and "min" not in settings:
        settings |= {"parser": whole, "metavar": "<int>"}
    return annotated[kind | None, typer.Option(*flags, help=help_, **settings)], default


def task_names() -> list[str]:
    """The names of tasks, for a shell to complete."""
    from acdc.task import load

    return load.task_names()


def model_names() -> list[str]:
    """The names of models, for a shell to complete."""
    from acdc.model.find import PACKAGED, bundled_models
    from acdc.model.hub import cached_models

    return [*bundled_models(), *PACKAGED, *cached_models()]


def among(names: Iterable[str]) -> Callable[[], list[str]]:
    """Some names, for a shell to complete."""
    return lambda: list(names)


COMPLETED = {"task": task_names, "model": model_names, "method": among(METHODS), "device": among(DEVICES)} | {
    key: among(names) for key, names in NAMES.items()
}
RUN = {
    "task": option(str, "A shipped task (`acdc tasks`) or a YAML file.", "--task", "-t"),
    "model": option(
        str,
        "A bundled model, a directory, a .gguf file or a Hugging Face id. [default: the task's, or gpt2, or tiny "
        "without GPT-2 at hand]",
        *("--model", "-m"),
    ),
    "revision": option(str, "A branch, tag or commit of a Hugging Face id, as step1000; short: --model ID@REVISION."),
    "method": option(str, "Method of discovery (`acdc methods`). [default: acdc]"),
    "threshold": option(
        str, "τ in the metric's units; several with commas make a run each. [default: the task's]", "--threshold", "-T"
    ),
    "faithfulness": option(
        str, "For acdc: find the smallest circuit so faithful, as 0.9; several with commas make a run each."
    ),
    "edges": option(int, "Keep the N edges with the highest scores; acdc finds the best circuit of N edges."),
    "greedy": option(bool, "Grow the N edges from the logits instead. [default: top]", "--greedy/--top"),
    "prefilter": option(str, "METHOD:SHARE, as eap-ig:0.05: acdc tests only this share of the edges, METHOD's best."),
    "metric": option(str, "kl, logit-diff, prob-diff, nll or l2, as the task allows. [default: the task's]"),
    "ablation": option(str, "What a removed edge carries: corrupted, zero or mean. [default: the task's]"),
    "examples": option(int, "Prompts for discovery, and as many held out. [default: the task's]"),
    "seed": option(int, "Seed of the prompts and of random orders. [default: the task's]"),
    "direct": option(bool, "Test whole q, k, v vectors first. [default: direct]", "--direct/--no-direct"),
    "positions": option(bool, "Say where in the prompt an edge is kept: at which of the task's spans.", "--positions"),
    "features": option(str, "Split MLPs: neurons:20, or DIR:20 for transcoders: the 20 features that matter most."),
    "order": option(str, "paper, heads-ascending, parents-ascending or random. [default: paper]"),
    "abs": option(bool, "Go by the size of a change or score, not its sign. [default: signed]", "--abs/--signed"),
    "steps": option(int, f"Points on the path, for eap-ig. [default: {METHODS['eap-ig'].repeats}]"),
    "updates": option(int, "Updates of a method that trains gates. [default: the method's]"),
    "penalty": option(float, f"Price of open gates, for subnetwork-probing. [default: {PENALTY}]"),
    "sparsity": option(float, f"Share of edges to close, for edge-pruning. [default: {SPARSITY}]"),
    "dtype": option(str, "float32 or float64. [default: float32]"),
    "device": option(str, "auto, cpu, cuda or mps. [default: auto]"),
    "batch": option(int, "Most candidates to evaluate at once. [default: 64]"),
}

COMPARE_OF_RUN = ("model", "revision", "examples", "seed", "ablation", "abs", "positions", "device")
COMPARE = {name: RUN[name] for name in COMPARE_OF_RUN} | {
    "seed": option(int, "Seed of the prompts, random scores and intervals. [default: the task's]"),
}

PLAN = {
    "tasks": option(str, "Tasks or YAML files, with commas between them.", "--tasks", "-t", default=REQUIRED),
    "models": option(str, "Compare these models instead, on one task, by the circuits of one method (acdc)."),
    "methods": option(
        str, "Methods with commas, or all; eap-ig:0.05+acdc is acdc among another one's best edges. [default: all]"
    ),
    "sizes": option(str, "How many edges to keep, with commas. [default: 5,10,20,50,100]"),
    "faithfulness": option(
        float, "With --models: find the smallest circuit so faithful in each. [default: the task's τ]"
    ),
    "greedy": option(bool, "Grow the edges from the logits instead.", "--greedy/--top", default=False),
    "reference": option(
        str, "A run or circuit.json to take as true, or TASK=FILE with commas. [default: by acdc, at the task's τ]"
    ),
    "updates": option(int, "Updates of the methods that train gates.", min=1, max=LIMITS["updates"]),
    "out": option(Path, "Directory of the comparison. [default: compare/<tasks>-<models>]"),
}

STABILITY_OF_RUN = "task model revision method threshold faithfulness edges metric ablation examples seed device"
STABILITY = {name: RUN[name] for name in (*STABILITY_OF_RUN.split(), "positions")} | {
    "threshold": option(float, "τ in the metric's units. [default: the task's]", "--threshold", "-T"),
    "faithfulness": option(float, "For acdc: find the smallest circuit so faithful, as 0.9."),
    "seed": option(int, "Seed of the base run; the others follow. [default: the task's]"),
}

RERUNS = {
    "seeds": option(int, "Runs on the prompts of other seeds. [default: 5]", **COUNT),
    "resamples": option(int, "Runs on bootstrap resamples of the prompts. [default: 5]", **COUNT),
    "orders": option(int, "Runs with the edges in other orders; acdc only. [default: 5]", **COUNT),
}

EVALUATE = {
    "task": option(str, "Another task, or where its YAML file is. [default: the circuit's]", "--task", "-t"),
    "model": option(str, "Where the circuit's model is. [default: where it was]", "--model", "-m"),
    "revision": RUN["revision"],
    "metric": option(str, "Another metric. [default: the circuit's, or the task's]"),
    "ablation": option(str, "Another ablation. [default: the circuit's, or the task's]"),
    "examples": option(int, "Prompts. [default: as many as it was found with]"),
    "seed": option(int, "Seed of the prompts, random circuits and intervals. [default: the circuit's]"),
    "device": RUN["device"],
}

NAMED = {
    "task": option(str, "The task of a file in EAP-IG's format, which doesn't name it.", "--task", "-t"),
    "model": option(str, "Its model, likewise.", "--model", "-m"),
}

BOUNDS = {
    "edits": option(int, "Edges that may be added or removed. [default: 0]"),
    "tolerance": option(float, "How much metrics and scores may differ. [default: 0.0001]"),
    "recall": option(float, "Least share of the published edges that is found."),
    "precision": option(float, "Least share of the edges that is published."),
    "classes": option(int, "Least number of published component classes found."),
    "auc": option(float, "Least area under the ROC curve of the scores."),
}

PICTURE = {
    "width": option(float, "Inches, for print: 3.3 is a paper's column. [default: as the layout needs]"),
    "direction": option(str, "Where the logits are: up, down, right or left. [default: up]"),
    "scores": option(bool, "Write the edges' scores beside them.", "--scores"),
    "no_header": option(bool, "Leave out title, counts and legend.", "--no-header"),
    "legend": option(bool, "The legend, or the title and counts alone. [default: legend]", "--legend/--no-legend"),
    "title": option(str, "The title. [default: task, model, method and its threshold]"),
    "font_size": option(float, "Points of the nodes' names, instead of --width. [default: 12]"),
}

WORKERS = {
    "executor": option(str, "local or slurm. [default: the file's, or local]"),
    "workers": option(
        int, "Processes. [default: one per core, or as many per GPU as fit]", min=1, max=LIMITS["workers"]
    ),
    "threads": option(int, "Threads of each process. [default: cores / workers]", min=1, max=LIMITS["threads"]),
    "memory": option(float, "Each process stays below this, as 4GB. [default: half of the machine's, shared]", **SIZE),
    "retry": option(bool, "Make failed runs again.", "--retry-failed"),
}

PROGRESS = {
    "quiet": option(bool, "No progress and no notes on stderr; warnings stay.", "--quiet", "-q", default=False),
    "verbose": option(bool, "Say at the end how many seconds each stage took.", "--verbose", "-v", default=False),
}

Memory = Annotated[float | None, typer.Option(help="Stay below this, as 4GB. [default: half of the machine's]", **SIZE)]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A YAML file with options of `acdc run`, or the name of a shipped one.")
]
JsonFile = Annotated[Path | None, typer.Option("--out", "-o", help="Also write the JSON to this file.")]
MeasuredCircuit = Annotated[
    Path, typer.Argument(help="A run, its circuit.json, or EAP-IG's JSON with --task and --model.", parser=circuit)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def add(**tables: dict[str, Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: the parameter named like a table becomes its options, and gets their values."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name not in tables:
                parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
                continue
            for name, (annotation, default) in tables[parameter.name].items():
                annotation.__metadata__[0].autocompletion = COMPLETED.get(name)
                added = inspect.Parameter(name, parameter.KEYWORD_ONLY, default=default, annotation=annotation)
                parameters.append(added)

        @wraps(command)
        def call(**values: Any) -> None:
            for parameter, table in tables.items():
                given = {name: values.pop(name) for name in table}
                if (revision := given.pop("revision", None)) is not None:
                    if given["model"] is None or "@" in given["model"]:
                        raise UserError("--revision: give --model, too, as a Hugging Face id without @")
                    given["model"] += f"@{revision}"
                values[parameter] = given
                if MANY < (many := given.get("examples") or 0) <= LIMITS["examples"]:
                    say(f"drawing {many:,} prompts, and as many held out: about a minute per 50,000")
            command(**values)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
        return call

    return decorate


def paths(given: Given) -> list[Path]:
    """What is read because task or model are paths: the task's file, the model's file or files."""
    named = [Path(os.path.expanduser(given[key])) for key in ("task", "model") if given.get(key)]
    return named + [file for path in named if path.is_dir() for file in path.iterdir()]


def listed(flag: str, text: str, kind: Callable[[str], Any] = str, what: str = "a name") -> list[Any]:
    """Parse values with commas between them; raise UserError if one is missing, there twice, or not of its kind."""
    try:
        values = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not {what}, nor several with commas between them") from None
    if "" in values:
        raise UserError(f"{flag}: {text!r} has nothing where {what} should be")
    if twice := [value for value in values if values.count(value) > 1]:
        raise UserError(f"{flag}: {text!r} has {twice[0]} twice")
    return values


def several(given: Given) -> tuple[str, list[float]]:
    """Return the option that makes a run for each of its values, and these, none if it isn't given; raise UserError if
    a value is wrong or there twice."""
    for key, fits, what in (
        ("threshold", lambda x: 0 <= x < math.inf, "a finite number, 0 or above, in the metric's units"),
        ("faithfulness", lambda x: 0 < x <= 1, "above 0 and up to 1, the full model's"),
    ):
        if given[key] is not None:
            values = listed(f"--{key}", given[key], float, "a number")
            for value in values:
                if not fits(value):
                    raise UserError(f"--{key}: is {value:g}; it must be {what}")
            return key, values
    return "threshold", []


def refuse_empty(words: list[str]) -> None:
    """Raise UserError for an option or an argument that is empty, as from a shell's unset variable."""
    for before, word in pairwise(words):
        flag, equals, value = word.partition("=")
        if not word.strip() or (word.startswith("--") and equals and not value.strip()):
            raise UserError(f"{flag.strip() or before}: is empty; give a value, or leave it out")


def default_model() -> tuple[str, str | None]:
    """The model of a run that names none, and a note if it is the fallback."""
    from acdc.model.find import find_model
    from acdc.setup.config import DEFAULT_MODEL, FALLBACK_MODEL

    try:
        find_model(DEFAULT_MODEL)
        return DEFAULT_MODEL, None
    except ModelError:
        why = f"{DEFAULT_MODEL} is neither in the Hugging Face cache nor reachable"
        return FALLBACK_MODEL, f"note: {why}; this is the bundled model {FALLBACK_MODEL} (choose with --model)"
