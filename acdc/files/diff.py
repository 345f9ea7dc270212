"""Differences between two circuits."""

import math
from dataclasses import dataclass

from acdc.errors import FileError, UserError
from acdc.files.circuit import CircuitFile


@dataclass(frozen=True)
class Diff:
    """How circuit b differs from circuit a."""

    added: tuple[str, ...]  # names of the edges that only b has
    removed: tuple[str, ...]  # names of the edges that only a has
    rescored: tuple[tuple[str, float, float], ...]  # name, score in a, score in b of common edges
    shared: int  # edges of both
    jaccard: float  # shared edges, over those of either; 1 if neither has an edge
    notes: tuple[str, ...]  # other differences, such as task, model or method, that may explain these


def diff(a: CircuitFile, b: CircuitFile, tolerance: float = 1e-6) -> Diff:
    """Compare two circuits edge by edge; raise FileError if they are of different graphs, UserError for a tolerance
    that is not a number from 0 up.

    Scores that differ by at most `tolerance`, absolutely or relative to the larger one, count as equal.
    """
    if not 0 <= tolerance < math.inf:
        raise UserError(f"--tolerance: is {tolerance:g}; it should be a finite number, 0 or above")
    if a.model.graph != b.model.graph:
        graphs = (f"{file.model.name or 'a model'} with {file.model.graph.words}" for file in (a, b))
        raise FileError(f"circuits of different graphs can't be compared: {', and '.join(graphs)}")
    notes = [f"{what} differ: {x}, and {y}" for what, x, y in facts_of_both(a, b) if x != y]
    if set(a.spans) != set(b.spans):
        spans = (", ".join(file.spans) or "none" for file in (a, b))
        notes.append(f"spans differ: {', and '.join(spans)}; edges are compared wherever they are kept")
        a = a.union()
        b = b.union()
    old = {edge.label: edge.score for edge in a.edges}
    new = {edge.label: edge.score for edge in b.edges}
    if (a.graph.edges_with_direct is None) != (b.graph.edges_with_direct is None):
        notes.append("conventions differ: only one counts direct edges, so only residual edges are compared")
        direct = a.model.graph.direct_index
        old = {name: score for name, score in old.items() if name not in direct}
        new = {name: score for name, score in new.items() if name not in direct}
    rescored = []
    for name, x in old.items():
        y = new.get(name)
        if x is not None and y is not None and not math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance):
            rescored.append((name, x, y))
    added = tuple(name for name in new if name not in old)
    removed = tuple(name for name in old if name not in new)
    shared = len(old) - len(removed)
    either = len(old) + len(added)
    return Diff(added, removed, tuple(rescored), shared, shared / either if either else 1.0, tuple(notes))


def facts_of_both(a: CircuitFile, b: CircuitFile) -> list[tuple[str, object, object]]:
    """Return what is known of both circuits: what it is, and its values."""
    known = _facts(b)
    return [(what, value, known[what]) for what, value in _facts(a).items() if what in known]


def _facts(file: CircuitFile) -> dict[str, object]:
    """Return what is known of a circuit and may explain why it differs from another one."""
    names = {"tasks": file.task.name, "models": file.model.name}
    if file.of_eap_ig:
        return {what: name for what, name in names.items() if name}
    return {
        **names,
        "versions of the task": file.task.version,
        "prompts": file.task.data_hash,
        "weights": file.model.hash,
        "methods": file.method.name,
        "metrics": file.method.metric,
        "ablations": file.method.ablation,
        "thresholds": file.method.threshold,
    }
