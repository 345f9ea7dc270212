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
from acdc.graph.graph import MAX_NODES, Graph, known_inputs
from acdc.io.files import plain, read_json, write_atomic
from acdc.io.schema import Flag, Label, Line, Number, Strict, Text, Whole, validated

FORMAT_VERSION = 1
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
            are not in the circuit
    """

    edges: Kept
    edges_with_direct: Kept | None
    nodes: Count
    dead: Count

    @classmethod
    def of(cls, circuit: Circuit, dead: int = 0) -> GraphPart:
        """Return the counts of a circuit from which `dead` edges have been removed."""
        n_direct = None if circuit.direct is None else circuit.n_direct
        return cls.counted(circuit.graph, circuit.edge_names(), n_direct, dead)

    @classmethod
    def counted(cls, g: Graph, edges: Collection[str], n_direct: int | None, dead: int) -> GraphPart:
        """Return the counts of residual edges, by name, and of direct ones, None if they don't count. Nothing of the
        size of the graph is made: a file of a few bytes can claim one of 800 million edges."""
        n = len(edges)
        nodes = {end.partition("<")[0] for edge in edges for end in edge.split("->")}
        both = None if n_direct is None else Kept(kept=n + n_direct, total=g.n_edges_direct)
        residual = Kept(kept=n, total=g.n_edges)
        return cls(edges=residual, edges_with_direct=both, nodes=len(nodes), dead=dead)


class Edge(Strict):
    """One kept edge.

    Args:
        name: `sender->receiver`, such as `a0.h3->m0`, `m0->a1.h0<v>`, or, direct, `a1.h0<v>->a1.h0`
        change: rise of the metric when the edge was removed in a test, in the metric's units: in ACDC's circuit at that
            moment; with a target of faithfulness or edges in this circuit; null for methods that test no edges
        score: importance in the method's units, larger is more important; null if there is none. With a target of
            faithfulness or edges it is 1/N, where N is the size of the smallest of the nested circuits that has the
            edge
    """

    name: Label
    change: Number | None = None
    score: Number | None = None


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
        edges: the circuit, in the order of senders and receivers; residual edges first, then direct ones
        environment: versions of acdc, python and torch
        command: the command that reproduces the circuit
        notes: warnings and remarks, a sentence each
    """

    format_version: Literal[1] = 1
    task: TaskPart
    model: ModelPart
    method: MethodPart
    graph: GraphPart
    metrics: Annotated[Measures, AfterValidator(_by_key)]
    edges: tuple[Edge, ...]
    environment: Sorted[Line]
    command: Line
    notes: tuple[Text, ...]

    @model_validator(mode="after")
    def _consistent(self) -> CircuitFile:
        g = self.model.graph
        names = Counter(edge.name for edge in self.edges)
        for name, times in names.items():
            if g.parse_edge(name) is None and name not in g.direct_index:
                raise ValueError(f"edges: the graph of {g.words} has no edge {short(name)}")
            if times > 1:
                raise ValueError(f"edges: {name!r} is listed twice")
        residual = [name for name in names if name not in g.direct_index]
        n_direct = len(names) - len(residual)
        with_direct = self.graph.edges_with_direct is not None
        if n_direct and not with_direct:
            raise ValueError("graph.edges_with_direct: is null, but there are direct edges")
        counted = GraphPart.counted(g, residual, n_direct if with_direct else None, self.graph.dead)
        for (name, stated), (_, found) in zip(self.graph, counted, strict=True):
            if stated != found:
                raise ValueError(f"graph.{name}: says {stated}, but the edges make {found}")
        return self

    @property
    def of_eap_ig(self) -> bool:
        """Whether it comes from a file in EAP-IG's format, which states no prompts, no weights and no method."""
        return self.method.name == EAP_IG

    def circuit(self) -> Circuit:
        """Return the circuit; edges outside it have no score."""
        g = self.model.graph
        kept = np.zeros_like(g.edges)
        scores = np.full(g.edges.shape, np.nan)
        direct = np.zeros_like(g.direct)
        direct_scores = np.full(g.direct.shape, np.nan)
        for edge in self.edges:
            score = np.nan if edge.score is None else edge.score
            place = g.parse_edge(edge.name)
            if place is not None:
                kept[place] = True
                scores[place] = score
            else:
                j = g.direct_index[edge.name]
                direct[j] = True
                direct_scores[j] = score
        if self.graph.edges_with_direct is None:
            return Circuit(g, kept, None, scores)
        return Circuit(g, kept, direct, scores, direct_scores)


def edges_of(circuit: Circuit, changes: Circuit | None = None) -> tuple[Edge, ...]:
    """Return the kept edges in (sender, receiver) order, direct ones last. The scores of `changes` are the rises of the
    metric when the edges were tested."""
    names = circuit.edge_names() + circuit.direct_names()
    scores, tested = (_all_scores(circuit, of) for of in (circuit, changes or Circuit(circuit.graph, circuit.kept)))
    return tuple(Edge(name=n, change=c, score=s) for n, c, s in zip(names, tested, scores, strict=True))


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
    blocks = [f" {_dump(key)}: {_block(value)}" for key, value in file.model_dump().items()]
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _block(value: Any) -> str:
    """Return JSON with one entry per line, so that circuits can be reviewed as text."""
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
