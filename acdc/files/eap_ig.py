"""EAP-IG's JSON, which the MIB benchmark uses too (`Graph.to_json` in github.com/hannamw/EAP-IG).

Every edge of the graph is listed, with a score (0.0 if it has none) and whether it is in the circuit. The format has
one input, an MLP in each layer, and no direct edges. Removing a direct edge is the same as removing all edges into its
receiver, so those are written as not in the graph: the circuit behaves the same.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from acdc.errors import FileError
from acdc.files.circuit import EAP_IG, CircuitFile, checked_circuit, edges_of, is_eap_ig
from acdc.files.parts import GraphPart, MethodPart, ModelPart, TaskPart
from acdc.graph.circuit import Circuit
from acdc.graph.graph import MAX_NODES, QKV, Graph
from acdc.io.files import read_json
from acdc.setup.config import Config

NAMES = ("task", "model")
LARGEST = sys.float_info.max  # a larger whole number is not a score


def to_eap_ig(circuit: Circuit, d_model: int) -> str:
    """Return the text for EAP-IG's `Graph.from_json`; raise FileError if the model has no MLPs, or several inputs."""
    g = circuit.graph
    if not g.mlp or g.inputs != ("input",):
        what = f"inputs {', '.join(g.inputs)}" if g.mlp else "models without MLPs"
        raise FileError(f"the EAP-IG format has no names for {what}; export to graphml or node-link instead")
    kept = circuit.open
    scores = np.zeros(kept.shape) if circuit.scores is None else circuit.scores
    scores = np.where(np.isfinite(scores), scores, 0.0)
    fed = [bool(kept[:, list(own)].any()) or not own for own in g.own_receivers]
    nodes = {s.name: {"in_graph": bool(kept[i].any()) and fed[i]} for i, s in enumerate(g.senders)}
    edges = {g.edge_name(s, r): {"score": float(scores[s, r]), "in_graph": bool(kept[s, r])} for s, r in _in_order(g)}
    cfg = {"n_layers": g.n_layers, "n_heads": g.n_heads, "parallel_attn_mlp": g.parallel, "d_model": d_model}
    return json.dumps({"cfg": cfg, "nodes": nodes | {"logits": {"in_graph": True}}, "edges": edges})


def read_all(
    paths: Sequence[Path], names: Mapping[str, Any], needed: Sequence[str] = NAMES, used: Sequence[str] = ()
) -> list[CircuitFile]:
    """Read files as `read_any` does; raise FileError also if there are names that are not `used` otherwise, but no file
    that needs them."""
    files = [read_any(path, names, needed) for path in paths]
    for name in set(NAMES) - set(used):
        if names.get(name) is not None and not any(file.of_eap_ig for file in files):
            raise FileError(f"--{name}: is for a file in EAP-IG's format; {paths[0]} names its own {name}")
    return files


def read_any(path: Path, names: Mapping[str, Any], needed: Sequence[str] = NAMES) -> CircuitFile:
    """Read circuit.json, or a file in EAP-IG's format without its dead edges; raise FileError if it is wrong.

    Args:
        names: `task` and `model` of the latter, as on the command line; it doesn't say what they are
        needed: which of these must be there
    """
    raw = read_json(path)
    if not is_eap_ig(raw):
        return checked_circuit(raw, path)
    if missing := [f"--{name} {name.upper()}" for name in needed if names.get(name) is None]:
        raise FileError(f"{path}: EAP-IG's format names neither task nor model; give {' and '.join(missing)}")
    circuit = _circuit(raw, path)
    d_model = raw["cfg"].get("d_model")
    if type(d_model) is not int or not 0 < d_model <= 1_000_000:
        raise FileError(f"{path}: cfg.d_model should be the width of the model's residual stream")
    notes = () if circuit.n_edges else (f"{path}: no edge has in_graph: true, so the circuit is empty",)
    named = Config.model_construct(task=names.get("task") or "", model=names.get("model") or "")
    live = circuit.pruned()
    return CircuitFile(
        task=TaskPart(name=named.task_name, version=0, examples=0, seed=0, data_hash=""),
        model=ModelPart(name=named.model_name, family="", hash="", d_model=d_model, **asdict(circuit.graph)),
        method=MethodPart(name=EAP_IG, metric="", ablation="", dtype="", device="", threshold=None, options={}),
        graph=GraphPart.of(live, circuit.n_dead),
        edges=edges_of(live),
        notes=notes,
        metrics={},
        environment={},
        command="",
    )


def read_eap_ig(path: Path) -> Circuit:
    """Read the circuit in an EAP-IG file, and the scores of all edges of the graph; raise FileError if it is wrong."""
    return _circuit(read_json(path), path)


def _circuit(raw: dict[str, Any], path: Path) -> Circuit:
    # The file's `in_graph` of nodes is not used: it follows from the edges. Scores may be missing, as in MIB.
    for key in ("cfg", "nodes", "edges"):
        if not isinstance(raw.get(key), dict):
            raise FileError(f"{path}: is not an EAP-IG circuit: {key} should be a JSON object")
    cfg = raw["cfg"]
    for key, kind in (("n_layers", int), ("n_heads", int), ("parallel_attn_mlp", bool)):
        if type(cfg.get(key)) is not kind or (kind is int and not 0 < cfg[key] <= 1000):
            raise FileError(f"{path}: cfg.{key} should be {'a size' if kind is int else 'true or false'}")
    if cfg["n_layers"] * (cfg["n_heads"] + 1) > MAX_NODES:
        raise FileError(f"{path}: cfg: describes more than {MAX_NODES:,} nodes; no model has so many")
    of_nodes = [node.get("neurons") for node in raw["nodes"].values() if isinstance(node, dict)]
    if "neurons" in raw or any(isinstance(neurons, list) and not all(neurons) for neurons in of_nodes):
        raise FileError(f"{path}: is a circuit of single neurons, not of edges")
    g = Graph(cfg["n_layers"], cfg["n_heads"], parallel=cfg["parallel_attn_mlp"])
    kept = np.zeros_like(g.edges)
    scores = np.full(g.edges.shape, np.nan)
    for name, edge in raw["edges"].items():
        place = g.parse_edge(name)
        if place is None:
            raise FileError(f"{path}: a graph of {g.words} has no edge {name!r}")
        entry = edge if isinstance(edge, dict) else {}
        inside = entry.get("in_graph")
        score = entry.get("score", np.nan)
        huge = type(score) is int and abs(score) > LARGEST
        if type(inside) is not bool or type(score) not in (int, float) or huge:
            raise FileError(f"{path}: edge {name!r} needs in_graph (true or false) and score (a number)")
        kept[place] = inside
        scores[place] = score
    return Circuit(g, kept, None, scores)


def _in_order(g: Graph) -> Iterator[tuple[int, int]]:
    """Yield the edges in EAP-IG's order: by layer, sender, head, and q, k, v; edges into the MLP last."""
    index = g.receiver_index
    for layer in range(g.n_layers):
        heads = [index[f"a{layer}.h{h}<{c}>"] for h in range(g.n_heads) for c in QKV]
        mlp = index[f"m{layer}"]
        n_heads, n_mlp = (g.n_parents(g.receivers[r]) for r in (heads[0], mlp))
        if g.parallel:
            yield from ((s, r) for s in range(n_heads) for r in [*heads, mlp])
        else:
            yield from ((s, r) for s in range(n_heads) for r in heads)
            yield from ((s, mlp) for s in range(n_mlp))
    yield from ((s, index["logits"]) for s in range(len(g.senders)))
