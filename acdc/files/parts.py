"""The parts of `circuit.json`: task, model, method, counts and edges."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from acdc.graph.circuit import Circuit
from acdc.graph.graph import AT, MAX_NODES, Graph, known_inputs
from acdc.io.schema import Flag, Label, Line, Number, Strict, Text, Whole

V = TypeVar("V")


def by_key(values: dict[str, V]) -> dict[str, V]:
    """The same, sorted by key."""
    return dict(sorted(values.items()))


Sorted = Annotated[dict[Line, V], AfterValidator(by_key)]
Count = Annotated[Whole, Field(ge=0)]
Size = Annotated[Whole, Field(ge=1, le=1_000_000)]
Feature = Annotated[str, Field(pattern=r"^[nf](0|[1-9][0-9]{0,8})$")]
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
        features: per layer, the features of the MLP that are nodes of their own (n: neurons, f: of a transcoder); only
            where there are any
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
    features: tuple[tuple[Feature, ...], ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> ModelPart:
        if self.features and (len(self.features) != self.n_layers or not self.mlp):
            raise ValueError(f"features: should be a list for each of the {self.n_layers} layers, which have MLPs")
        if any(len(set(names)) < len(names) for names in self.features) or (self.features and not any(self.features)):
            raise ValueError("features: should have no name twice in a layer, and some names; or be left out")
        n_features = sum(map(len, self.features))
        if self.n_layers * (self.n_heads + self.mlp) + n_features > MAX_NODES:
            features = f" and {n_features:,} features" if n_features else ""
            size = f"{self.n_layers} layers of {self.n_heads} heads{features}"
            raise ValueError(f"{size} are a graph of more than {MAX_NODES:,} nodes; no model has so many")
        return self

    @model_serializer(mode="wrap")
    def _written(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without features, the content is what it was before there were any."""
        return {key: value for key, value in written(self).items() if key != "features" or value}

    @cached_property
    def graph(self) -> Graph:
        """The graph of these sizes."""
        return Graph(self.n_layers, self.n_heads, self.mlp, self.inputs, self.parallel, self.features)


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
