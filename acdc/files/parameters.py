"""The parameters of a circuit's components, for those who change them: fine-tuning, pruning, merging."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from acdc.files.circuit import CircuitFile, in_lines
from acdc.graph.graph import QKV

if TYPE_CHECKING:
    from acdc.model.origins import Origin


def to_parameters(file: CircuitFile, family: str, origins: Mapping[str, Sequence[Origin]]) -> str:
    """Return JSON with the parameters of every head, MLP and input in the circuit.

    MLPs and inputs have whole tensors. A head has its slice of each: of a query, key or value if the circuit has an
    edge into it, of its output if the circuit has an edge from it. `shared_with` are others, also outside the circuit,
    that the slice belongs to, too.

    Args:
        family: the architecture
        origins: the parameters of receivers and senders, as `acdc.model.origins.origins` finds them
    """
    circuit = file.circuit().whole()
    g = circuit.graph
    reads = {g.receivers[r].name for r in circuit.open.any(0).nonzero()[0]}
    writes = {g.senders[s].name for s in circuit.open.any(1).nonzero()[0]}
    owners: dict[Origin, list[str]] = defaultdict(list)
    for part, found in origins.items():
        for origin in found:
            owners[origin].append(part.partition("<")[0])
    components: dict[str, list[dict[str, Any]]] = {}
    for name, kind, *_ in g.senders:
        if kind == "head":
            parts = {x: f"{name}<{x}>" for x in QKV if f"{name}<{x}>" in reads}
            parts |= {"o": name} if name in writes else {}
        else:
            parts = {"": name} if name in reads | writes else {}
        for what, part in parts.items():
            for origin in origins[part]:
                entry = {**origin._asdict(), "what": what} if what else {"name": origin.name}
                others = [owner for owner in owners[origin] if owner != name]
                components.setdefault(name, []).append(entry | ({"shared_with": others} if others else {}))
    names = "acdc" if family == "acdc" else "Hugging Face"
    return in_lines({"model": file.model.name, "family": family, "names": names, "components": components})
