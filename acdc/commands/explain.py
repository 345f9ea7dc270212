"""`acdc explain`: circuit.json → model and prompts → why its heads attend where they do."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from acdc.commands.evaluate import open_circuit
from acdc.errors import FileError, TaskError, UserError, plural, unknown
from acdc.evaluation.signals import Part, Prompt, Signals, into_scores, signals
from acdc.graph.circuit import Circuit
from acdc.graph.graph import AT
from acdc.io.progress import Show
from acdc.setup.inputs import Inputs
from acdc.task.tokenize import make_data


def explain(circuit: Path, given: dict[str, Any], edge: str | None, memory: float | None, progress: Show) -> Signals:
    """Explain an edge of a circuit into a query or key, or all of them; what is given is said in `open_circuit`. Raise
    UserError if the edge isn't such a one."""
    opened = open_circuit(circuit, given, memory)
    inputs = opened.inputs
    if inputs.model.transformer.config.post_norm:
        why = "normalises the sum of a layer's heads, so that what a head reads, and its scores, are no sums over edges"
        raise UserError(f"--model {inputs.config.model_name}: {why}; acdc explain needs a model without such norms")
    live = opened.circuit.pruned()
    found = signals(inputs, live, _chosen(live, edge, opened.where), progress)
    return Signals(
        task=inputs.task.name,
        model=inputs.config.model_name,
        model_hash=inputs.model.hash,
        data_hash=inputs.config.data_hash or "",
        **inputs.config.model_dump(include={"metric", "ablation", "dtype", "examples", "seed"}),
        half=inputs.evaluation_split,
        head_norm=inputs.model.transformer.config.head_norm,
        edges=tuple(sorted(found, key=lambda signal: -signal.effect.value)),
        prompts=_prompts(inputs),
        notes=(*opened.file.notes, *opened.other),
    )


def _chosen(circuit: Circuit, edge: str | None, where: str) -> list[Part]:
    """The edges to explain; an edge's name without a span stands for it at all spans."""
    every = {circuit.graph.part_name(part, circuit.spans): part for part in into_scores(circuit)}
    if not every:
        raise FileError(f"{where}: no edge of the circuit goes into a head's query or key, so there is none to explain")
    if edge is None:
        return list(every.values())
    if chosen := [part for name, part in every.items() if edge in (name, name.split(AT)[0])]:
        return chosen
    if edge in (*circuit.labels(), *circuit.edge_names()):
        some = f"{plural(len(every), 'edge')} of the circuit do, such as {next(iter(every))}"
        raise UserError(f"--edge {edge}: goes into no head's query or key, which say where it attends; {some}")
    raise UserError(f"--edge: {unknown('edge', edge, every)}")


def _prompts(inputs: Inputs) -> tuple[Prompt, ...]:
    """The prompts as texts, with the names of their spans if the task has any."""
    data = inputs.data
    if not data.spans:
        with suppress(TaskError):  # prompts of several lengths, without spans
            config = inputs.config
            data = make_data(inputs.task, inputs.model.tokenizer, config.examples, config.seed, positions=True)
    split = getattr(data, inputs.evaluation_split)
    out = []
    for i, pad in enumerate(split.pad.tolist()):
        tokens = inputs.model.tokenizer.pieces(split.clean[i, pad:].tolist())
        spans = map(str, range(len(tokens))) if split.spans is None else (data.spans[j] for j in split.spans[i, pad:])
        out.append(Prompt(tuple(tokens), tuple(spans)))
    return tuple(out)
