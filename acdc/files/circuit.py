"""`circuit.json`: a circuit, and everything needed to believe it and to make it again.

The same values give the same bytes, and there is one edge a line, so that circuits can be reviewed as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from acdc.errors import FileError
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.io.files import read_json, write_atomic
from acdc.io.schema import Flag, Number, Strict, Text, Whole, validated

FORMAT_VERSION = 1

V = TypeVar("V")


def _by_key(values: dict[str, V]) -> dict[str, V]:
    return dict(sorted(values.items()))


Sorted = Annotated[dict[Text, V], AfterValidator(_by_key)]
Count = Annotated[Whole, Field(ge=0)]
Size = Annotated[Whole, Field(ge=1, le=1_000_000)]
Few = Annotated[Whole, Field(ge=1, le=1000)]  # layers, heads: the graph grows with the square of both


class TaskPart(Strict):
    """The task as it was run.

    Args:
        name: of the task
        version: of the task
        examples: prompts for discovery; as many are held out
        seed: of the prompts
        data_hash: of the prompts' tokens: the first 16 hex digits of their SHA-256
    """

    name: Text
    version: Whole
    examples: Count
    seed: Whole
    data_hash: Text


class ModelPart(Strict):
    """The model. The sizes say which graph the edges belong to.

    Args:
        name: of the model, without folders
        family: the architecture, such as gpt2 or llama
        hash: of the weights: the first 16 hex digits of the SHA-256 of their files
        n_layers: layers
        n_heads: query heads per layer
        d_model: width of the residual stream
        mlp: whether layers have MLPs
        inputs: the senders that are embeddings: input, or tok and pos where positions are a sender of their own
        parallel: whether MLPs read the same stream as the heads of their layer, so that no edge goes between them
    """

    name: Text
    family: Text
    hash: Text
    n_layers: Few
    n_heads: Few
    d_model: Size
    mlp: Flag
    inputs: Annotated[tuple[Text, ...], Field(min_length=1)]
    parallel: Flag

    @cached_property
    def graph(self) -> Graph:
        """The graph of these sizes."""
        return Graph(self.n_layers, self.n_heads, self.mlp, self.inputs, self.parallel)


class MethodPart(Strict):
    """How the circuit was found.

    Args:
        name: of the method
        metric: what was minimised
        ablation: what removed edges carried
        dtype: of the computation
        device: where it ran, such as cpu or cuda
        threshold: τ in the metric's units, or the bound on scores; null where a number of edges was asked for
        options: the method's other options
    """

    name: Text
    metric: Text
    ablation: Text
    dtype: Text
    device: Text
    threshold: Number | None
    options: Sorted[Flag | Whole | Number | Text]


class Kept(Strict):
    """How many of how many.

    Args:
        kept: edges of the circuit
        total: edges of the graph
    """

    kept: Count
    total: Count


class GraphPart(Strict):
    """Counts, in both conventions where direct edges were considered.

    Args:
        edges: residual edges, between nodes
        edges_with_direct: these and the direct edges of whole q, k and v vectors; null where they were not considered
        nodes: nodes that an edge of the circuit touches, inputs and logits among them
        dead: edges that the method kept but that are on no path from an input to the logits; the circuit is without
            them
    """

    edges: Kept
    edges_with_direct: Kept | None
    nodes: Count
    dead: Count

    @classmethod
    def of(cls, circuit: Circuit, dead: int = 0) -> GraphPart:
        """The counts of a circuit that `dead` edges have been removed from."""
        g, n = circuit.graph, circuit.n_edges
        both = None if circuit.direct is None else Kept(kept=n + circuit.n_direct, total=g.n_edges_direct)
        residual = Kept(kept=n, total=g.n_edges)
        return cls(edges=residual, edges_with_direct=both, nodes=len(circuit.nodes()), dead=dead)


class Edge(Strict):
    """One kept edge.

    Args:
        name: `sender->receiver`, such as `a0.h3->m0`, `m0->a1.h0<v>`, or, direct, `a1.h0<v>->a1.h0`
        change: by how much the metric rose when the edge was removed as a test, in its units; null for methods that
            test none
        score: importance in the method's units, larger is more important; null where there is none
    """

    name: Text
    change: Number | None = None
    score: Number | None = None


class CircuitFile(Strict):
    """The content of `circuit.json`.

    Args:
        format_version: of this format
        task: the task as it was run
        model: the model, and the sizes of its graph
        method: how the circuit was found
        graph: counts of edges and nodes
        metrics: `<half>.<what>.<metric>`: of the halves `discovery` and `held_out`, for the full `model`, the `circuit`
            and everything `ablated`, every metric of the task, lower is better, and the `accuracy`, higher is better
        edges: the circuit, in the order of senders and receivers; residual edges first, then direct ones
        environment: versions of acdc, python and torch
        command: what makes it again
        notes: what the user should know, a sentence each
    """

    format_version: Literal[1] = 1
    task: TaskPart
    model: ModelPart
    method: MethodPart
    graph: GraphPart
    metrics: Sorted[Number]
    edges: tuple[Edge, ...]
    environment: Sorted[Text]
    command: Text
    notes: tuple[Text, ...]

    @model_validator(mode="after")
    def _consistent(self) -> CircuitFile:
        g = self.model.graph
        if len(g.sender_index) < len(g.senders):
            raise ValueError(f"model.inputs: {', '.join(self.model.inputs)} are not names of their own")
        seen: set[str] = set()
        for edge in self.edges:
            if g.parse_edge(edge.name) is None and edge.name not in g.direct_index:
                raise ValueError(f"edges: the graph of {self.model.graph.words} has no edge {edge.name!r}")
            if edge.name in seen:
                raise ValueError(f"edges: {edge.name!r} is listed twice")
            seen.add(edge.name)
        if self.graph.edges_with_direct is None and any(name in g.direct_index for name in seen):
            raise ValueError("graph.edges_with_direct: is null, but there are direct edges")
        counted = GraphPart.of(self.circuit(), self.graph.dead)
        for name in ("edges", "edges_with_direct", "nodes"):
            stated, found = getattr(self.graph, name), getattr(counted, name)
            if stated != found:
                raise ValueError(f"graph.{name}: says {_said(stated)}, but the edges make {_said(found)}")
        return self

    def circuit(self) -> Circuit:
        """The circuit; edges that are not in it have no score."""
        g = self.model.graph
        kept, scores = np.zeros_like(g.edges), np.full(g.edges.shape, np.nan)
        direct, direct_scores = np.zeros_like(g.direct), np.full(g.direct.shape, np.nan)
        for edge in self.edges:
            score = np.nan if edge.score is None else edge.score
            place = g.parse_edge(edge.name)
            if place is not None:
                kept[place], scores[place] = True, score
            else:
                j = g.direct_index[edge.name]
                direct[j], direct_scores[j] = True, score
        if self.graph.edges_with_direct is None:
            return Circuit(g, kept, None, scores)
        return Circuit(g, kept, direct, scores, direct_scores)


def edges_of(circuit: Circuit, changes: Mapping[str, float] | None = None) -> list[Edge]:
    """The kept edges in (sender, receiver) order, residual edges first, then direct ones.

    Args:
        changes: by edge name, how much the metric rose when the edge was tested.
    """
    changes = changes or {}
    names = circuit.edge_names() + circuit.direct_names()
    scores = _scores(circuit.scores, circuit.kept) + _scores(circuit.direct_scores, circuit.direct)
    return [Edge(name=n, change=changes.get(n), score=s) for n, s in zip(names, scores, strict=True)]


def _scores(scores: np.ndarray | None, kept: np.ndarray | None) -> list[float | None]:
    if kept is None:
        return []
    if scores is None:
        return [None] * int(kept.sum())
    return [float(s) if np.isfinite(s) else None for s in scores[kept]]


def write_circuit(path: Path, file: CircuitFile) -> None:
    """Write `circuit.json`, whole or not at all. The same values give the same bytes.

    Raises:
        FileError: it can't be written.
    """
    blocks = [f" {_dump(key)}: {_block(value)}" for key, value in file.model_dump().items()]
    write_atomic(path, "{\n" + ",\n".join(blocks) + "\n}\n")


def _block(value: Any) -> str:
    """JSON with one entry a line."""
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f"  {_dump(k)}: {_dump(v)}" for k, v in value.items()) + "\n }"
    if isinstance(value, tuple) and value:
        return "[\n" + ",\n".join(f"  {_dump(v)}" for v in value) + "\n ]"
    return _dump(value)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_circuit(path: Path) -> CircuitFile:
    """Read and check `circuit.json`.

    Raises:
        FileError: the file can't be read, is of a newer format, or is wrong; a line per problem.
    """
    raw = read_json(path)
    version = raw.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        newer = f"format {version}, this one reads up to {FORMAT_VERSION}"
        raise FileError(f"{path}: made by a newer acdc: {newer}; update acdc")
    return validated(CircuitFile, raw, str(path))


def _said(value: Kept | int | None) -> str:
    return f"{value.kept} of {value.total}" if isinstance(value, Kept) else str(value)
