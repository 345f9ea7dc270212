"""`circuit.json`: a circuit, with all that is needed to judge and reproduce it. Equal values give equal bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from acdc.errors import FileError, short
from acdc.files.metrics import Measures
from acdc.graph.circuit import Circuit
from acdc.graph.graph import AT, MAX_NODES, Graph, known_inputs
from acdc.io.files import plain, read_json, write_atomic
from acdc.io.schema import Flag, Label, Line, Number, Strict, Text, Whole, validated

FORMAT_VERSION = 2  # of circuits with spans; others are as in version 1
EAP_IG = "unknown (EAP-IG file)"  # the method of a circuit in EAP-IG's format; what else that doesn't say is "" or 0

V = TypeVar("V")

_dump = partial(json.dumps, ensure_ascii=False, allow_nan=False)


def _by_key(values: dict[str, V]) -> dict[str, V]:
    return dict(sorted(values.items()))


Sorted = Annotated[dict[Line, V], AfterValidator(_by_key)]
Count = Annotated[Whole, Field(ge=0)]
Size = Annotated[Whole, Field(ge=1, le=1_000_000)]
Few = Annotated[Whole, Field(ge=1, le=1000)]  # layers, heads: the graph grows with the square of both


class TaskPart(Strict):
    """The task of the run.

    Args:
        name: name of the task
        version: version of the task
        examples: prompts for discovery; as many are held out
        seed: seed of the prompts
        data_hash: the first 16 hex digits of the SHA-256 of the prompts' tokens
    """

    name: Label
    version: Whole
    examples: Count
    seed: Whole
    data_hash: Label


class ModelPart(Strict):
    """The model. Its sizes define the graph that the edges belong to.

    Args:
        name: name of the model, without folders
        family: the architecture, such as gpt2 or llama
        hash: the first 16 hex digits of the SHA-256 of the files of the weights
        n_layers: layers
        n_heads: query heads per layer
        d_model: width of the residual stream
        mlp: whether layers have MLPs
        inputs: the embedding senders: input, or tok and pos if positional embeddings are a separate sender
        parallel: whether MLPs read the same stream as the heads of their layer, so that there is no edge between them
    """

    name: Label
    family: Label
    hash: Label
    n_layers: Few
    n_heads: Few
    d_model: Size
    mlp: Flag
    inputs: Annotated[tuple[Text, ...], AfterValidator(known_inputs)]
    parallel: Flag

    @model_validator(mode="after")
    def _possible(self) -> ModelPart:
        if self.n_layers * (self.n_heads + self.mlp) > MAX_NODES:
            size = f"{self.n_layers} layers of {self.n_heads} heads"
            raise ValueError(f"{size} are a graph of more than {MAX_NODES:,} nodes; no model has so many")
        return self

    @cached_property
    def graph(self) -> Graph:
        """The graph of these sizes."""
        return Graph(self.n_layers, self.n_heads, self.mlp, self.inputs, self.parallel)


class MethodPart(Strict):
    """How the circuit was found.

    Args:
        name: name of the method
        metric: the metric that was minimised
        ablation: what removed edges carried
        dtype: of the computation
        device: device of the run, such as cpu or cuda
        threshold: τ in the metric's units, or the smallest score to keep; null if a number of edges was asked for
        options: the method's other options
    """

    name: Label
    metric: Label
    ablation: Label
    dtype: Label
    device: Label
    threshold: Number | None
    options: Sorted[Flag | Whole | Number | Line]


class Kept(Strict):
    """A number of edges out of a total.

    Args:
        kept: edges of the circuit
        total: edges of the graph
    """

    kept: Count
    total: Count

    def __str__(self) -> str:
        return f"{self.kept} of {self.total}"


class GraphPart(Strict):
    """Counts, without and with direct edges.

    Args:
        edges: residual edges, between nodes
        edges_with_direct: residual edges and direct edges (of whole q, k and v vectors); null if direct edges were not
            considered
        nodes: nodes that an edge of the circuit touches, including inputs and logits
        dead: edges that the method kept, residual and direct, but that are on no path from an input to the logits; they
            are not in the circuit. With spans, edge-spans
        edge_spans: residual edges times the spans at which they are kept; only with spans
    """

    edges: Kept
    edges_with_direct: Kept | None
    nodes: Count
    dead: Count
    edge_spans: Kept | None = None

    @classmethod
    def of(cls, circuit: Circuit, dead: int = 0) -> GraphPart:
        """Return the counts of a circuit from which `dead` edges have been removed."""
        n_direct = None if circuit.direct is None else circuit.n_direct
        size = (circuit.size, len(circuit.spans)) if circuit.spans else None
        return cls.counted(circuit.graph, circuit.edge_names(), n_direct, dead, size)

    @classmethod
    def counted(
        cls, g: Graph, edges: Collection[str], n_direct: int | None, dead: int, size: tuple[int, int] | None
    ) -> GraphPart:
        """Return the counts of residual edges, by name, of direct ones, None if they don't count, and, as `size`, of
        edge-spans and spans. Nothing of the size of the graph is made: a file of a few bytes can claim one of 800
        million edges."""
        n = len(edges)
        nodes = {end.partition("<")[0] for edge in edges for end in edge.split("->")}
        both = None if n_direct is None else Kept(kept=n + n_direct, total=g.n_edges_direct)
        residual = Kept(kept=n, total=g.n_edges)
        edge_spans = None if size is None else Kept(kept=size[0], total=g.n_edges * size[1])
        return cls(edges=residual, edges_with_direct=both, nodes=len(nodes), dead=dead, edge_spans=edge_spans)


class Edge(Strict):
    """One kept edge or, in a circuit with spans, one kept edge-span.

    Args:
        name: `sender->receiver`, such as `a0.h3->m0`, `m0->a1.h0<v>`, or, direct, `a1.h0<v>->a1.h0`
        span: where in the prompts the edge is kept, one of the circuit's spans; only with spans, and not for a direct
            edge
        change: rise of the metric when the edge was removed in a test, in the metric's units: in ACDC's circuit at that
            moment; with a target of faithfulness or edges in this circuit; null for methods that test no edges
        score: importance in the method's units, larger is more important; null if there is none. With a target of
            faithfulness or edges it is 1/N, where N is the size of the smallest of the nested circuits that has the
            edge
    """

    name: Label
    span: Label | None = None
    change: Number | None = None
    score: Number | None = None

    @property
    def label(self) -> str:
        """The name, with the span if there is one: `a0.h3->m0 @ S2`."""
        return self.name if self.span is None else f"{self.name}{AT}{self.span}"


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

    format_version: Literal[1, 2] = 1
    task: TaskPart
    model: ModelPart
    method: MethodPart
    graph: GraphPart
    metrics: Annotated[Measures, AfterValidator(_by_key)]
    spans: tuple[Label, ...] = ()
    edges: tuple[Edge, ...]
    environment: Sorted[Line]
    command: Line
    notes: tuple[Text, ...]

    @model_validator(mode="after")
    def _consistent(self) -> CircuitFile:
        g = self.model.graph
        if bool(self.spans) != (self.format_version > 1):
            raise ValueError(f"format_version: is {self.format_version}; it should be 2 with spans, and 1 without")
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
        changes = {"format_version": 1, "spans": (), "edges": tuple(found.values()), "graph": graph}
        return self.model_copy(update=changes)


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
    content = file.model_dump(exclude=None if file.spans else of_spans)
    return in_lines(content)


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
