"""Regression checks: does a circuit still equal a golden one, or is it close enough to a published one?

A golden circuit must answer the same question: another task, model, metric, ablation, method, threshold or graph is the
user's mistake (exit code 2). Other weights, prompts or versions are allowed: a check is there to find the differences
that they make (exit code 1).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import numpy as np
from pydantic import Field, ValidationError, model_validator

from acdc.commands.options import Given
from acdc.commands.run import run
from acdc.errors import FileError, UserError
from acdc.evaluation.ranking import auc, roc
from acdc.files.circuit import CircuitFile, find_circuit
from acdc.files.diff import diff, facts_of_both
from acdc.files.eap_ig import NAMES, read_all, read_any, read_eap_ig
from acdc.files.published import load_published, published_names, recovery
from acdc.graph.circuit import Circuit
from acdc.graph.scores import read_scores
from acdc.io.files import check_output, write_output
from acdc.io.progress import Say, Show, one_of, silent
from acdc.io.schema import Number, Strict, Text, Whole, mistakes, validated
from acdc.io.sizes import in_name
from acdc.io.terminal import printable
from acdc.io.yaml_file import read_yaml
from acdc.methods.discover import SCORES
from acdc.model.checkpoint import open_checkpoint
from acdc.report.run import diff_lines
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from acdc.task.load import find_config
from acdc.task.tokenize import make_data

TOLERANCE = 1e-4  # float32 agrees that well across machines
WITHIN = 0.25  # published counts come from other prompts, and from several versions of code and data

Share = Annotated[Number, Field(ge=0, le=1)]


class Bounds(Strict):
    """Bounds on a circuit: `edits` and `tolerance` against a golden circuit, the others against a published one.

    Args:
        edits: maximum number of edges added or removed; by default 0
        tolerance: maximum difference of metrics and scores, absolute or relative to the larger one; by default 0.0001
        recall: minimum share of the published residual edges that are found
        precision: minimum share of the found residual edges that are published
        classes: minimum number of component classes found; one node of a class is enough
        auc: minimum area under the ROC curve of the scores of all edges
    """

    edits: Annotated[Whole, Field(ge=0)] | None = None
    tolerance: Annotated[Number, Field(ge=0)] | None = None
    recall: Share | None = None
    precision: Share | None = None
    classes: Annotated[Whole, Field(ge=0)] | None = None
    auc: Share | None = None


GOLDEN = ("edits", "tolerance")
ASKED = ("tasks", "models", "methods", "metrics", "ablations", "thresholds")  # facts that make the question
PUBLISHED = ("recall", "precision", "classes", "auc")


class Entry(Bounds):
    """One check of a list: a run to make (options of `acdc run`) or an existing circuit, and what to compare it with.

    With `counts` there is a check per threshold: the run is made at each, and each must meet the bounds. Counts are of
    residual and direct edges, dead ones included, like `count_no_edges` in the code of Conmy et al. 2023 for runs with
    `remove_redundant=False`.

    Args:
        name: of the check, unique in the list
        run: options of `acdc run`, with the model unless the task names it
        circuit: a run's directory or circuit.json, relative to the list
        against: a golden run or circuit.json, or a published circuit's YAML, relative to the list; or the name of a
            shipped one
        counts: published number of edges by threshold, instead of a threshold in `run`
        within: share by which a count may differ, rounded up to whole edges; by default 0.25
    """

    name: Text
    run: dict[str, Any] | None = None
    circuit: Text | None = None
    against: Text
    counts: Annotated[dict[Number, Annotated[Whole, Field(ge=1)]], Field(min_length=1)] | None = None
    within: Share | None = None

    @model_validator(mode="after")
    def _one(self) -> Entry:
        if (self.run is None) == (self.circuit is None):
            raise ValueError("give either run (options of `acdc run`) or circuit (a file)")
        if self.counts is None and self.within is not None:
            raise ValueError("within needs counts")
        if self.counts is not None and (self.run is None or self.against.endswith(".json")):
            raise ValueError("counts need a run, against a published circuit")
        if self.counts is not None and self.run is not None and "threshold" in self.run:
            raise ValueError("run.threshold: counts already has the thresholds; give one of the two")
        return self

    def options(self) -> list[dict[str, Any]]:
        """Return the options of every run to make; they differ only in the threshold."""
        if self.run is None:
            return []
        return [{**self.run, "threshold": t} for t in self.counts] if self.counts else [self.run]


class Checks(Strict):
    """The content of a file of checks.

    Args:
        checks: in the order in which they are made
    """

    checks: Annotated[tuple[Entry, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check."""

    name: str
    problems: tuple[str, ...]  # a line each; empty if the check passed
    facts: tuple[str, ...] = ()  # lines about what was compared and found

    @property
    def passed(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def text(self) -> str:
        """Return the outcome as text: passed or not, the problems, the facts."""
        return "\n  ".join([f"{'passed' if self.passed else 'FAILED'}  {self.name}", *self.problems, *self.facts])


def make_bounds(given: Given) -> Bounds:
    """Return the bounds given on the command line; raise UserError if one has a wrong value."""
    try:
        return Bounds.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        raise UserError("--" + mistakes("", error)) from None


def check(
    target: Path, against: str | None, names: Given, given: Given, report: Path | None, say: Say, progress: Show
) -> list[Outcome]:
    """Check a circuit.json, or make a list of checks (a YAML file or the name of a shipped one); `say` gets outcomes,
    and the file `report` is the JUnit XML of them. Raise UserError also if that is a file that is read."""
    if target.suffix == ".json":
        if against is None:
            raise UserError(f"{target}: missing --against; give a golden run or circuit.json, or a published circuit")
        against = find_golden(against)
        check_output("--junit", report, target, Path(against))
        outcomes = [check_circuit(target, against, make_bounds(given), names=names)]
    else:
        target = find_config(target)
        for name, value in {"against": against, **names, **given}.items():
            if value is not None:
                raise UserError(f"--{name}: {target} is a list, which states this for each of its checks")
        read = [Path(file) for entry in read_checks(target) for file in (entry.circuit, entry.against) if file]
        check_output("--junit", report, target, *read)
        outcomes = check_list(target, say, progress)
    if report:
        write_output(report, junit(outcomes))
    if target.suffix == ".json":  # of a list they have been said
        say(outcomes[0].text())
    return outcomes


def check_circuit(
    path: Path, against: str, bounds: Bounds, name: str | None = None, names: Given | None = None
) -> Outcome:
    """Check a circuit against another one (each a circuit.json, or in EAP-IG's format), or against the name or YAML
    file of a published circuit. `names` are the task and the model of a file in EAP-IG's format, compared only if they
    are given. Raise UserError if the two can't be compared, or a bound is for the other kind of comparison."""
    golden = against.endswith(".json")
    paths = [path, Path(against)] if golden else [path]
    file, *others = read_all(paths, names or {}, NAMES if golden and names is not None else ())
    _check_bounds(bounds, against)
    problems, facts = _golden(file, others[0], bounds) if golden else _published(file, path, against, bounds)
    return Outcome(name or f"{path} against {against}", tuple(problems), tuple(facts))


def check_list(path: Path, say: Say = lambda _: None, progress: Show = silent) -> list[Outcome]:
    """Make the runs and the checks that a YAML file lists. Paths in `run` are relative to the working directory. Raise
    UserError if the file is wrong (then nothing is run), or a run fails."""
    outcomes = []
    entries = read_checks(path)
    for entry in entries:
        try:
            _look(entry)
        except UserError as error:
            raise FileError(f"{path}: {entry.name}: {error}") from None
    for i, entry in enumerate(entries):
        for outcome in check_entry(entry, one_of(progress, i, len(entries))):
            outcomes.append(outcome)
            say(outcome.text())
    return outcomes


def _look(entry: Entry) -> None:
    """Raise UserError for what can be known before the first run: missing files, models that can't be had, prompts that
    don't fit, another graph, another question."""
    against = entry.against
    golden = read_any(Path(against), {}, ()) if against.endswith(".json") else None
    graph = golden.model.graph if golden else load_published(against).graph
    if entry.circuit is not None:
        found = read_any(Path(entry.circuit), {}, ()).model.graph
    else:
        config, task, _ = resolve(entry.options()[0], None, None)
        checkpoint = open_checkpoint(config.model)
        found = checkpoint.sizes.graph()
        make_data(task, checkpoint.tokenizer, config.examples, config.seed)
        for what in ("metric", "ablation", "threshold"):
            stated = getattr(golden.method if golden else config, what)
            asked = getattr(config, what)
            if stated != asked and not (golden and golden.of_eap_ig):
                raise FileError(f"{against}: the golden circuit has another {what}: {stated}, not {asked}")
    if found.whole != graph.whole:
        raise FileError(f"{against}: is of a graph of {graph.words}, not {found.words}")


def find_golden(against: str, folder: Path = Path()) -> str:
    """Return the path of what circuits are compared with, in `folder`: a run's directory is that of its circuit.json.
    The name of a published circuit stays as it is."""
    path = folder / against
    is_path = against.endswith((".json", ".yaml", ".yml")) or path.is_dir()
    return str(find_circuit(path)) if is_path and against not in published_names() else against


def check_entry(entry: Entry, progress: Show = silent) -> Iterator[Outcome]:
    """Make one check of a list; with counts, one per threshold."""
    against = entry.against
    if entry.circuit is not None:
        yield check_circuit(Path(entry.circuit), against, entry, entry.name)
    else:
        config, task, _ = resolve(entry.options()[0], None, None)
        inputs = load(config, task)
        for threshold in entry.counts or [None]:
            with tempfile.TemporaryDirectory() as temporary:
                at = inputs if threshold is None else inputs.at(threshold=threshold)
                file, out = run(at, Path(temporary) / "run", progress=progress)
                outcome = check_circuit(out / "circuit.json", against, entry, entry.name)
            if entry.counts is None or threshold is None:
                yield outcome
                continue
            published = entry.counts[threshold]
            allowed = math.ceil((WITHIN if entry.within is None else entry.within) * published)
            kept = (file.graph.edges_with_direct or file.graph.edges).kept + file.graph.dead
            line = f"{kept} edges; published: {published} ({(kept - published) / published:+.0%})"
            name = f"{entry.name}, τ = {in_name(threshold)}"
            if abs(kept - published) <= allowed:
                yield Outcome(name, outcome.problems, (line, *outcome.facts))
            else:
                line += f"; it should be from {published - allowed} to {published + allowed}"
                yield Outcome(name, (line, *outcome.problems), outcome.facts)


def junit(outcomes: list[Outcome]) -> str:
    """Return the outcomes as JUnit XML, for CI services."""
    failed = sum(not o.passed for o in outcomes)
    suite = ElementTree.Element("testsuite", name="acdc check", tests=str(len(outcomes)), failures=str(failed))
    for o in outcomes:
        case = ElementTree.SubElement(suite, "testcase", classname="acdc.check", name=printable(o.name))
        if not o.passed:
            ElementTree.SubElement(case, "failure", message=printable(o.problems[0])).text = printable(o.text())
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _golden(now: CircuitFile, golden: CircuitFile, bounds: Bounds) -> tuple[list[str], list[str]]:
    """Return the problems and facts of a comparison with a golden circuit."""
    unknown = golden.of_eap_ig or now.of_eap_ig
    for what, a, b in facts_of_both(golden, now):
        if a != b and what in ASKED:
            raise FileError(f"the golden circuit has another {what.removesuffix('s')}: {a}, not {b}")
    if not unknown and (golden.graph.edges_with_direct is None) != (now.graph.edges_with_direct is None):
        raise FileError("the golden circuit has another count of direct edges: only one of the two circuits has them")
    tolerance = TOLERANCE if bounds.tolerance is None else bounds.tolerance
    changed = diff(golden, now, tolerance)
    added = len(changed.added)
    removed = len(changed.removed)
    allowed = bounds.edits or 0
    problems = []
    if added + removed > allowed:
        problems.append(f"{added} edges added, {removed} removed; {allowed} edits are allowed")
    if changed.rescored:
        problems.append(f"{len(changed.rescored)} edges re-scored by more than {tolerance:g}")
    for key in [] if unknown else sorted(golden.metrics.keys() | now.metrics.keys()):
        a = golden.metrics.get(key)
        b = now.metrics.get(key)
        if a is None or b is None:
            problems.append(f"metric {key}: only one of the two circuits has it")
        elif not math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance):
            problems.append(f"metric {key}: {a:.6g} → {b:.6g}")
    return problems, [*diff_lines(changed), *(f"note: {note}" for note in changed.notes)]


def _published(file: CircuitFile, path: Path, name: str, bounds: Bounds) -> tuple[list[str], list[str]]:
    """Return the problems and facts of a comparison with a published circuit."""
    published = load_published(name)
    found = recovery(published, file.circuit())
    facts = [found.summary()]
    for component, nodes in found.classes.items():
        names = f" ({', '.join(nodes)})" if nodes else ""
        facts.append(f"{component}: {len(nodes)} of {len(published.classes[component])}{names}")
    problems = []
    if bounds.classes is not None and sum(map(bool, found.classes.values())) < bounds.classes:
        problems.append(f"{found.summary()} found; it should be at least {bounds.classes}")
    if published.circuit is None:
        if (bounds.recall, bounds.precision, bounds.auc) != (None, None, None):
            raise UserError(f"{name}: only the nodes of this circuit were published; use only the bound classes")
        return problems, facts
    rates = ("recall", "precision")
    measured = [(f"{rate} of residual edges", getattr(bounds, rate), getattr(found, rate)) for rate in rates]
    if bounds.auc is not None:
        measured.append(("edge AUC", bounds.auc, _auc(file, path, published.circuit)))
    for what, bound, value in measured:
        facts.append(f"{what} {value:.3f}")
        if bound is not None and value < bound:
            problems.append(f"{what} is {value:.3f}; it should be at least {bound:g}")
    return problems, facts


def _auc(file: CircuitFile, path: Path, published: Circuit) -> float:
    """Return the area under the ROC curve of the scores in an EAP-IG file, or beside a circuit.json."""
    graph = file.model.graph
    beside = path.with_name(SCORES)
    if not file.of_eap_ig and not beside.is_file():
        raise FileError(f"{beside}: is missing; auc needs the scores of all edges, which method acdc doesn't give")
    scores = read_eap_ig(path).scores if file.of_eap_ig else read_scores(beside, graph, file.spans).whole().edges
    if scores is None or np.isnan(scores[graph.edges]).any():
        raise FileError(f"{path}: some edges have no score; auc needs the scores of all edges")
    return auc(roc(scores[graph.edges], published.kept[graph.edges]))


def _check_bounds(bounds: Bounds, against: str) -> None:
    """Raise UserError if a bound is for the other kind of comparison."""
    allowed = GOLDEN if against.endswith(".json") else PUBLISHED
    for name in (*GOLDEN, *PUBLISHED):
        if getattr(bounds, name) is not None and name not in allowed:
            raise UserError(f"{name}: can't be used against {against}; use {', '.join(allowed)}")


def read_checks(path: Path) -> tuple[Entry, ...]:
    """Read a list, with its paths relative to the working directory; raise FileError if it or an option of its runs is
    wrong. Nothing is run."""
    checks = []
    for entry in validated(Checks, read_yaml(path, Checks.model_fields), str(path)).checks:
        circuit = entry.circuit and str(find_circuit(path.parent / entry.circuit))
        against = find_golden(entry.against, path.parent)
        checks.append(entry.model_copy(update={"circuit": circuit, "against": against}))
    names = [entry.name for entry in checks]
    for entry in checks:
        where = f"{path}: {entry.name}"
        if names.count(entry.name) > 1:
            raise FileError(f"{where}: two checks have this name")
        _check_bounds(entry, entry.against)
        for options in entry.options():
            try:
                resolve(options, None, None)
            except UserError as error:
                raise FileError(f"{where}: run: {error}") from None
    return tuple(checks)
