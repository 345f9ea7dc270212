"""`scores.safetensors`: the scores of all edges that a method gave, in the circuit or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from acdc.errors import FileError
from acdc.graph import Graph
from acdc.io.files import read_bytes, write_atomic
from acdc.scores import Scores


def write_scores(path: Path, scores: Scores) -> None:
    """Write tensors `edges` Float[sender receiver] and, for a method that scores nodes, `nodes` Float[sender].

    Raises:
        FileError: it can't be written.
    """
    tensors = {"edges": scores.edges} | ({} if scores.nodes is None else {"nodes": scores.nodes})
    write_atomic(path, save({name: np.ascontiguousarray(x) for name, x in tensors.items()}))


def read_scores(path: Path, graph: Graph) -> Scores:
    """Read scores of a graph.

    Raises:
        FileError: it can't be read, or belongs to another graph.
    """
    try:
        tensors = load(read_bytes(path))
    except (SafetensorError, LookupError, TypeError, ValueError) as error:  # the latter of types that NumPy hasn't
        raise FileError(f"{path}: is no file of scores ({error}); remove it") from None
    edges, nodes = tensors.get("edges"), tensors.get("nodes")
    if (
        edges is None
        or edges.shape != graph.edges.shape
        or edges.dtype.kind != "f"
        or (nodes is not None and nodes.shape != edges.shape[:1])
    ):
        raise FileError(f"{path}: holds no scores of a graph of {graph.words}")
    scores = Scores(graph, edges, nodes)
    if wrong := scores.unsound():
        raise FileError(f"{path}: the score of {wrong} is not finite; remove the file")
    return scores
