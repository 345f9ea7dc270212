"""Published circuits and the known circuits of compiled models (`tasks/circuits/`); how much of one a circuit recovers.

`PublishedFile` explains the format. An edge's own name, `a0.h5->a1.h4<v>`, is also a rule. The circuit has the direct
edges of every head input that a residual edge enters, as in all circuits with published direct edges.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field

from acdc.errors import FileError, UserError, unknown
from acdc.graph.circuit import Circuit
from acdc.graph.graph import INPUTS, QKV, Array, Graph, known_inputs
from acdc.io.schema import Flag, Strict, Text, Texts, Whole, validated
from acdc.io.yaml_file import read_yaml
from acdc.task.load import find, shipped_dir, task_names

MOST_NODES = 5_000  # of a published circuit's graph; GPT-2 XL has 1,248
FOLDER = "tasks/circuits"
RULE = re.compile(r"(?P<senders>[^<>]+?)\s*->\s*(?P<receivers>[^<>]+?)\s*(<(?P<inputs>[qkv]+)>)?")
NAME = re.compile(r"[^,<>\s]([^,<>]*[^,<>\s])?")
NODE = re.compile(r"(a\d+\.h|m)\d+")
MLPS = re.compile(r"m(\d+)-m(\d+)")

Size = Annotated[Whole, Field(ge=1, le=128)]
Count = Annotated[Whole, Field(ge=0)]


class Sizes(Strict):
    """The graph's sizes, as in `acdc.graph.graph.Graph`.

    Args:
        layers: layers
        heads: query heads per layer
        mlp: whether layers have MLPs
        inputs: the embedding senders: input, or tok and pos if positional embeddings are a separate sender
        parallel: whether MLPs read the same stream as the heads of their layer
    """

    layers: Size
    heads: Size
    mlp: Flag = True
    inputs: Annotated[Texts, AfterValidator(known_inputs)] = INPUTS[0]
    parallel: Flag = False


class Counts(Strict):
    """The number of edges that the rules make.

    Args:
        edges: residual edges
        with_direct: residual and direct edges
    """

    edges: Count
    with_direct: Count


class PublishedFile(Strict):
    """The content of a file in `tasks/circuits/`. Without `edges` only nodes are known.

    Args:
        name: the file's name without .yaml
        task: a shipped task, or the path of a YAML file
        model: a name for readers; only the graph is compared
        source: the publication, and how the rules were derived from it
        graph: the graph of the model
        classes: nodes of each component class, such as `a9.h6`, `m0` or `m0-m3`
        groups: names for sets of nodes and classes, for use in rules only
        edges: rules `senders -> receivers <inputs>`, each for all edges from any of the senders to any of the
            receivers; both sides are comma-separated names, and `<kv>` takes only k and v of heads
        counts: the number of edges that the rules make; needed with edges
    """

    name: Text
    task: Text
    model: Text
    source: Text
    graph: Sizes
    classes: Annotated[dict[Text, Texts], Field(min_length=1)]
    groups: dict[Text, Texts] = Field(default_factory=dict)
    edges: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    counts: Counts | None = None


@dataclass(frozen=True)
class Published:
    """A published circuit."""

    name: str
    task: str
    model: str  # a name for readers; only the graph is compared
    source: str
    graph: Graph
    classes: dict[str, tuple[str, ...]]  # the nodes of each component class
    circuit: Circuit | None  # including direct edges; None if only nodes are known


class Recovery(NamedTuple):
    """How much of a published circuit another circuit has."""

    classes: dict[str, list[str]]  # the nodes of each class that its edges touch
    recall: float  # share of the published residual edges that it has; NaN if only nodes were published
    precision: float  # share of its residual edges that were published; likewise

    def summary(self) -> str:
        """`k of n component types`: classes with at least one node, which Conmy et al. 2023 report as "5/5"."""
        return f"{sum(map(bool, self.classes.values()))} of {len(self.classes)} component types"


def recovery(published: Published, circuit: Circuit) -> Recovery:
    """Compare a circuit with a published one; raise UserError if they are of different graphs."""
    if circuit.graph != published.graph:
        theirs = f"the published circuit {published.name!r} is of {published.model}, {published.graph.words}"
        raise UserError(f"{theirs}; this one is of a model of {circuit.graph.words}")
    touched = circuit.nodes()
    classes = {name: [node for node in nodes if node in touched] for name, nodes in published.classes.items()}
    if published.circuit is None:
        return Recovery(classes, np.nan, np.nan)
    true = int((circuit.edges & published.circuit.kept).sum())
    return Recovery(classes, true / max(1, published.circuit.n_edges), true / max(1, circuit.n_edges))


def published_names() -> list[str]:
    """Return the names of the shipped circuits."""
    return sorted(path.stem for path in shipped_dir(FOLDER).glob("*.yaml"))


@cache  # every run of a sweep asks
def published_for(task: str, graph: Graph) -> Published | None:
    """Return the shipped circuit of a task in a model with this graph, or None."""
    shipped = map(load_published, published_names())
    return next((p for p in shipped if p.task == task and p.graph == graph), None)


def load_published(name_or_path: str) -> Published:
    """Read and check a shipped circuit, or a .yaml file; raise FileError with a line per problem."""
    path = find(name_or_path, "published circuit", FOLDER)
    file = validated(PublishedFile, read_yaml(path, PublishedFile.model_fields), str(path))
    try:
        if file.name != path.stem:
            raise FileError(f"name: {file.name!r} should be the file's name, {path.stem!r}")
        if file.task not in task_names() and not file.task.endswith((".yaml", ".yml")):
            raise FileError("task: " + unknown("task", file.task, task_names()))
        sizes = file.graph
        graph = Graph(sizes.layers, sizes.heads, sizes.mlp, sizes.inputs, sizes.parallel)
        if len(graph.senders) > MOST_NODES:
            more = f"more than {MOST_NODES:,} nodes; no circuit is known of such a graph"
            raise FileError(f"graph: {graph.words}: {more}")
        names = _names(file, graph)
        classes = {name: tuple(names[name]) for name in file.classes}
        circuit = None
        if file.edges is not None:
            kept = np.zeros_like(graph.edges)
            for i, rule in enumerate(file.edges):
                kept |= _edges(rule, names, graph, f"edges.{i}")
            circuit = Circuit(graph, kept, graph.direct & kept.any(axis=0))
            _check_circuit(circuit, classes, file.counts)
        elif file.counts or file.groups:
            raise FileError(f"{'counts' if file.counts else 'groups'}: there are no edges")
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    return Published(file.name, file.task, file.model, file.source, graph, classes, circuit)


def _names(file: PublishedFile, graph: Graph) -> dict[str, list[str]]:
    """Return the nodes of every class and group."""
    names: dict[str, list[str]] = {}
    for key, entries in (("classes", file.classes), ("groups", file.groups)):
        for name, members in entries.items():
            where = f"{key}.{name}"
            taken = name in names or name in (*graph.sender_index, "logits")
            if taken or not NAME.fullmatch(name) or MLPS.fullmatch(name) or "->" in name:
                raise FileError(f"{where}: should be an unused name without commas, ->, < and >")
            known = names if key == "groups" else {}  # groups may use names defined above
            nodes = [node for member in members for node in _resolve(member, known, graph, where)]
            if not nodes:
                raise FileError(f"{where}: is empty")
            for node in nodes:
                if key == "classes" and not NODE.fullmatch(node):
                    raise FileError(f"{where}: {node!r} is not a head or an MLP")
                if nodes.count(node) > 1:
                    raise FileError(f"{where}: {node} is there twice")
            names[name] = nodes
    return names


def _resolve(name: str, names: dict[str, list[str]], graph: Graph, where: str) -> list[str]:
    """Return the nodes of a class, a group, a node's name or a range of MLPs."""
    if name in names:
        return names[name]
    if name in graph.sender_index or name == "logits":
        return [name]
    mlps = MLPS.fullmatch(name)
    first, last = (int(x) for x in mlps.groups()) if mlps else (0, 0)
    if mlps and graph.mlp and first < last < graph.n_layers:
        return [f"m{layer}" for layer in range(first, last + 1)]
    if mlps or NODE.fullmatch(name):
        raise FileError(f"{where}: the graph of {graph.words} has no {name!r}")
    known = [*names, *graph.inputs, "logits"]
    raise FileError(f"{where}: {unknown('node or class', name, known)}, and heads and MLPs such as a0.h0, m0, m0-m1")


def _edges(rule: str, names: dict[str, list[str]], graph: Graph, where: str) -> Array:
    """Return the edges that a rule stands for, Bool[sender receiver]."""
    parsed = RULE.fullmatch(rule)
    if not parsed:
        raise FileError(f"{where}: should be 'senders -> receivers' or 'senders -> receivers <qkv>', got {rule!r}")
    inputs = parsed["inputs"] or QKV

    def terms(side: str, nodes: list[str]) -> Array:
        """Return which nodes each name on one side stands for, Bool[term node]."""
        return np.array([np.isin(nodes, _resolve(x.strip(), names, graph, where)) for x in parsed[side].split(",")])

    senders = terms("senders", [s.name for s in graph.senders])
    receivers = terms("receivers", [r.node for r in graph.receivers])
    taken = np.array([r.kind in inputs or r.kind not in QKV for r in graph.receivers])
    edges: Array = graph.edges & np.outer(senders.any(0), receivers.any(0) & taken)
    if not ((senders & edges.any(1)).any(1).all() and (receivers & edges.any(0)).any(1).all()):
        raise FileError(f"{where}: {rule!r}: the graph of {graph.words} has no such edge, or none for one of the names")
    if parsed["inputs"] and not graph.direct[edges.any(0)].any():
        raise FileError(f"{where}: {rule!r}: <{inputs}> is for heads, and no receiver is one")
    return edges


def _check_circuit(circuit: Circuit, classes: dict[str, tuple[str, ...]], counts: Counts | None) -> None:
    touched = circuit.nodes()
    for name, nodes in classes.items():
        if missed := [node for node in nodes if node not in touched]:
            raise FileError(f"classes.{name}: no edge touches {missed[0]}")
    if dead := Circuit(circuit.graph, circuit.kept & ~circuit.live()).edge_names():
        raise FileError(f"edges: {dead[0]} is on no path from an input to the logits")
    made = {"edges": circuit.n_edges, "with_direct": circuit.n_edges + circuit.n_direct}
    if counts is None:
        raise FileError(f"counts: is missing; the edges make {made}")
    for key, said in counts:
        if said != made[key]:
            raise FileError(f"counts.{key}: says {said}, but the edges make {made[key]}")
