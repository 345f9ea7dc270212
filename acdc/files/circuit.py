"""`circuit.json`: a circuit, with all that is needed to judge and reproduce it. Equal values give equal bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, model_validator

from acdc.errors import FileError, short
from acdc.files.metrics import Measures
from acdc.files.parts import Edge, GraphPart, MethodPart, ModelPart, Sorted, TaskPart, by_key
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.io.files import plain, read_json, write_atomic
from acdc.io.schema import Label, Line, Strict, Text, validated

FORMAT_VERSION = 3  # of circuits with features; with spans alone they are as in version 2, others as in version 1
EAP_IG = "unknown (EAP-IG file)"  # the method of a circuit in EAP-IG's format; what else that doesn't say is "" or 0

Version = Literal[1, 2, 3]

_dump = partial(json.dumps, ensure_ascii=False, allow_nan=False)


class CircuitFile(Strict):
    """The content of `circuit.json`.

    Args:
        format_version: of this format
        task: the task of the run
        model: the model, and the sizes of its graph
        method: how the circuit was found
        graph: counts of edges and nodes
        metrics: `<half>.<what>.<metric>`: for the halves `discovery` and `held_out` and for the full `model`, the
            `circuit` and everything `ablated`, every metric of the task (lower is better) and the `accuracy` (higher is
            better)
        spans: names of the spans of the prompts, if edges are kept by span
        edges: the circuit, in the order of senders and receivers; residual edges first, then direct ones
        environment: versions of acdc, python and torch
        command: the command that reproduces the circuit
        notes: warnings and remarks, a sentence each
    """

    format_version: Version = 1
    task: TaskPart
    model: ModelPart
    method: MethodPart
    graph: GraphPart
    metrics: Annotated[Measures, AfterValidator(by_key)]
    spans: tuple[Label, ...] = ()
    edges: tuple[Edge, ...]
    environment: Sorted[Line]
    command: Line
    notes: tuple[Text, ...]

    @model_validator(mode="after")
    def _consistent(self) -> CircuitFile:
        g = self.model.graph
        if self.format_version != (version := version_of(self.spans, g)):
            why = "3 with features, 2 with spans, else 1"
            raise ValueError(f"format_version: is {self.format_version}; it should be {version} ({why})")
        if len(set(self.spans)) < len(self.spans):
            raise ValueError("spans: has a name twice")
        for edge in self.edges:
            known = (None,) if edge.name in g.direct_index or not self.spans else self.spans
            if g.parse_edge(edge.name) is None and edge.name not in g.direct_index:
                raise ValueError(f"edges: the graph of {g.words} has no edge {short(edge.name)}")
            if edge.span not in known:
                wanted = "no span" if known == (None,) else f"one of the spans {', '.join(self.spans)}"
                raise ValueError(f"edges: {edge.name!r} should have {wanted}, and has {short(edge.span)}")
        for name, times in Counter(edge.label for edge in self.edges).items():
            if times > 1:
                raise ValueError(f"edges: {name!r} is listed twice")
        names = dict.fromkeys(edge.name for edge in self.edges)
        residual = [name for name in names if name not in g.direct_index]
        n_direct = len(names) - len(residual)
        with_direct = self.graph.edges_with_direct is not None
        if n_direct and not with_direct:
            raise ValueError("graph.edges_with_direct: is null, but there are direct edges")
        size = (len(self.edges) - n_direct, len(self.spans)) if self.spans else None
        counted = GraphPart.counted(g, residual, n_direct if with_direct else None, self.graph.dead, size)
        for (name, stated), (_, found) in zip(self.graph, counted, strict=True):
            if stated != found:
                raise ValueError(f"graph.{name}: says {stated}, but the edges make {found}")
        return self

    @property
    def of_eap_ig(self) -> bool:
        """Whether it comes from a file in EAP-IG's format, which states no prompts, no weights and no method."""
        return self.method.name == EAP_IG

    @property
    def unit(self) -> str:
        """What is kept: edges or edge-spans."""
        return "edge-spans" if self.spans else "edges"

    def circuit(self) -> Circuit:
        """Return the circuit; edges outside it have no score."""
        g = self.model.graph
        shape = (*g.edges.shape, len(self.spans)) if self.spans else g.edges.shape
        kept = np.zeros(shape, dtype=bool)
        scores = np.full(shape, np.nan)
        direct = np.zeros_like(g.direct)
        direct_scores = np.full(g.direct.shape, np.nan)
        for edge in self.edges:
            score = np.nan if edge.score is None else edge.score
            place: tuple[int, ...] | None = g.parse_edge(edge.name)
            if place is not None:
                if edge.span is not None:
                    place = (*place, self.spans.index(edge.span))
                kept[place] = True
                scores[place] = score
            else:
                j = g.direct_index[edge.name]
                direct[j] = True
                direct_scores[j] = score
        if self.graph.edges_with_direct is None:
            return Circuit(g, kept, None, scores, spans=self.spans)
        return Circuit(g, kept, direct, scores, direct_scores, self.spans)

    def at_spans(self, spans: tuple[str, ...], who: str) -> CircuitFile:
        """Return the same with its spans in another order; raise FileError unless they are those that `who` has."""
        if set(self.spans) != set(spans):
            mine, others = (", ".join(names) or "none" for names in (self.spans, spans))
            raise FileError(f"{who} have the spans {others}, not those of the circuit, {mine}")
        return self.model_copy(update={"spans": spans})

    def union(self) -> CircuitFile:
        """Return the same without spans: an edge is kept everywhere if it is kept at any span, with change and score of
        largest magnitude among those."""
        if not self.spans:
            return self
        found: dict[str, Edge] = {}
        for edge in self.edges:
            before = found.get(edge.name, edge)
            largest = {
                key: max(getattr(before, key), getattr(edge, key), key=lambda x: abs(x or 0))
                for key in ("change", "score")
            }
            found[edge.name] = Edge(name=edge.name, **largest)
        graph = self.graph.model_copy(update={"edge_spans": None})
        changes = {
            "format_version": version_of((), self.model.graph),
            "spans": (),
            "edges": tuple(found.values()),
            "graph": graph,
        }
        return self.model_copy(update=changes)


def version_of(spans: Sequence[str], graph: Graph) -> Version:
    """The version of the format that a circuit needs."""
    return 3 if graph.features else 2 if spans else 1


def edges_of(circuit: Circuit, changes: Circuit | None = None) -> tuple[Edge, ...]:
    """Return the kept edges, or edge-spans, in the order of their indices, direct ones last. The scores of `changes`
    are the rises of the metric when the edges were tested."""
    g = circuit.graph
    names: list[tuple[str, str | None]] = []
    for s, r, *span in np.argwhere(circuit.kept).tolist():
        names.append((g.edge_name(s, r), circuit.spans[span[0]] if span else None))
    names += [(name, None) for name in circuit.direct_names()]
    scores, tested = (_all_scores(circuit, of) for of in (circuit, changes or Circuit(g, circuit.kept)))
    values = zip(names, tested, scores, strict=True)
    return tuple(Edge(name=name, span=span, change=c, score=s) for (name, span), c, s in values)


def _all_scores(circuit: Circuit, of: Circuit) -> list[float | None]:
    """The scores that one circuit gives the edges of another, None where it has none."""
    scores: list[float | None] = []
    for kept, values in ((circuit.kept, of.scores), (circuit.direct, of.direct_scores)):
        if kept is not None:
            scores += [None] * int(kept.sum()) if values is None else plain(values[kept].tolist())
    return scores


def write_circuit(path: Path, file: CircuitFile) -> None:
    """Write `circuit.json` atomically; raise FileError if it can't be written."""
    write_atomic(path, to_json(file))


def to_json(file: CircuitFile) -> str:
    """Return the content of `circuit.json`."""
    of_spans: Any = {"spans": True, "graph": {"edge_spans"}, "edges": {"__all__": {"span"}}}
    return in_lines(file.model_dump(exclude=None if file.spans else of_spans))


def in_lines(content: dict[str, Any]) -> str:
    """Return JSON with one entry of each block per line, so that it can be reviewed as text."""
    blocks = [f" {_dump(key)}: {_block(value)}" for key, value in content.items()]
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _block(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f"  {_dump(k)}: {_dump(v)}" for k, v in value.items()) + "\n }"
    if isinstance(value, tuple) and value:
        return "[\n" + ",\n".join(f"  {_dump(v)}" for v in value) + "\n ]"
    return _dump(value)


def find_circuit(path: Path) -> Path:
    """Return the circuit in the directory of a run, or the core in that of `acdc stability`; any other path as it is.
    Raise FileError if the directory has neither."""
    if not path.is_dir():
        return path
    found = [path / name for name in ("circuit.json", "core.json") if (path / name).exists()]
    if not found:
        runs = [file.parent for some in ("*", "runs/*") for file in path.glob(f"{some}/circuit.json")]
        right = f"name one of its runs, as {min(runs)}" if runs else "name the directory of a finished run"
        raise FileError(f"{path}: has no circuit.json; {right}")
    return found[0]


def read_circuit(path: Path) -> CircuitFile:
    """Read and check `circuit.json`; raise FileError with a line per problem."""
    return checked_circuit(read_json(path), path)


def checked_circuit(raw: dict[str, Any], path: Path) -> CircuitFile:
    """Return the content of `circuit.json`; raise FileError with a line per problem."""
    version = raw.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        newer = f"format {version}, this one reads up to {FORMAT_VERSION}"
        raise FileError(f"{path}: made by a newer acdc: {newer}; update acdc")
    if is_eap_ig(raw):
        raise FileError(f"{path}: is in EAP-IG's format, which only acdc evaluate, check, diff and export read")
    return validated(CircuitFile, raw, str(path))


def is_eap_ig(raw: dict[str, Any]) -> bool:
    """Return whether the content of a file is in EAP-IG's format."""
    return "cfg" in raw and "format_version" not in raw
