"""One circuit in every format we write."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from acdc.commands.evaluate import check_graph, config_beside
from acdc.errors import UserError, unknown
from acdc.files.circuit import CircuitFile, edges_of, to_json
from acdc.files.eap_ig import to_eap_ig
from acdc.files.graphs import to_csv, to_gexf, to_graphml, to_node_link
from acdc.files.metrics import read_metrics
from acdc.files.parameters import to_parameters
from acdc.files.parts import GraphPart
from acdc.files.published import published_for
from acdc.graph.circuit import Circuit
from acdc.graph.scores import read_scores
from acdc.methods.discover import SCORES
from acdc.methods.log import read_log
from acdc.model.checkpoint import Checkpoint, open_checkpoint
from acdc.model.origins import origins
from acdc.registry import FORMATS
from acdc.report.page import render_report
from acdc.report.picture import title_of, to_dot, to_pdf, to_png, to_svg, to_tikz
from acdc.report.positions import Prompted
from acdc.report.style import DIRECTIONS, FREQUENCY, PLAIN, SCORE, PictureStyle

Graph = Callable[[Circuit], bytes | str]
GRAPHS: dict[str, Graph] = {"graphml": to_graphml, "gexf": to_gexf, "node-link": to_node_link}
Draw = Callable[[Circuit, str, PictureStyle], bytes | str]
DRAWN: dict[str, Draw] = {"dot": to_dot, "svg": to_svg, "png": to_png, "pdf": to_pdf, "tikz": to_tikz}
READ = ("metrics.json", "log.jsonl")  # of the run, for a page
WIDEST = 40  # inches


def make_look(to: str, given: dict[str, Any]) -> PictureStyle:
    """The style of a picture from the options of `acdc export`, None if not given. Raises UserError if an option
    doesn't apply to format `to`, or its value is wrong."""
    flags = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if flags and not FORMATS[to].picture:
        pictures = ", ".join(name for name, facts in FORMATS.items() if facts.picture)
        raise UserError(f"{flags[0]}: only for pictures (--to {pictures}), not for {to}")
    width = given["width"]
    size = given["font_size"]
    direction = given["direction"] or PLAIN.direction
    if width is not None and not 0 < width <= WIDEST:
        raise UserError(f"--width: is {width:g}; it must be above 0 and at most {WIDEST} inches")
    if direction not in DIRECTIONS:
        raise UserError(f"--direction: {unknown('direction', direction, DIRECTIONS)}")
    if size is not None and not 1 <= size <= 72:
        raise UserError(f"--font-size: is {size:g}; it must be 1 to 72 points")
    if size is not None and width is not None:
        raise UserError("--font-size: it sets the width; leave out one of --font-size and --width")
    legend = given["legend"] is not False
    more = {"header": not given["no_header"], "legend": legend, "title": given["title"], "font_size": size}
    return PictureStyle(width, direction, scores=bool(given["scores"]), **more)


def convert(
    file: CircuitFile, to: str, look: PictureStyle = PLAIN, folder: Path | None = None, model: str | None = None
) -> bytes | str:
    """Return the circuit as the content of a file of format `to`, one of FORMATS. Pictures and pages show the
    component classes of the task's published circuit, if it is of the same graph; pages also metrics and decisions, if
    `folder` is the run's. Raise UserError if the style shows scores and the circuit has none, a file in the folder
    can't be read, or, for parameters, the model (`model`, or else the run's) can't be found or is another one."""
    if look.scores and all(edge.score is None for edge in file.edges):
        raise UserError("--scores: this circuit has no edge scores")
    circuit = file.circuit()
    if to == "circuit":
        return to_json(file)
    if to == "csv":
        return to_csv(file)
    if to in GRAPHS:
        return GRAPHS[to](circuit)
    if to == "eap-ig":
        return to_eap_ig(_all_scored(circuit, folder).whole(), file.model.d_model)
    if to == "parameters":
        checkpoint = _model_of(file, folder, model)
        return to_parameters(file, checkpoint.family, origins(checkpoint))
    published = published_for(file.task.name, circuit.graph)
    if to == "html":
        path, log = ((folder or Path()) / name for name in READ)
        metrics = read_metrics(path) if folder and path.exists() else None
        if metrics is None or metrics.metrics != file.metrics:  # of another circuit
            return render_report(file, published=published)
        decisions = [asdict(d) for d in read_log(log)] if log.exists() else []
        return render_report(file, decisions, metrics, published=published)
    title = title_of(file) if look.title is None else look.title
    measure = FREQUENCY if file.method.name == "stability" else SCORE
    look = replace(look, published=published, measure=measure, prompted=Prompted.of(file))
    return DRAWN[to](circuit, title, look)


def _model_of(file: CircuitFile, folder: Path | None, name: str | None) -> Checkpoint:
    """The circuit's model, without weights: that of a name, or of the config of its run, if it is in the folder."""
    if name is None:
        of_run = config_beside(folder / "circuit.json") if folder else None
        name = of_run.model if of_run and of_run.model_name == file.model.name else file.model.name
    checkpoint = open_checkpoint(name)
    check_graph(f"--model {name}", file, checkpoint)
    family = file.model.family
    if family not in (checkpoint.family, ""):  # EAP-IG's format doesn't say it
        raise UserError(f"--model {name}: its family is {checkpoint.family}, that of the circuit's model is {family}")
    return checkpoint


def _all_scored(circuit: Circuit, folder: Path | None) -> Circuit:
    """The circuit with the scores of all edges, if the folder of its run has them. Those of another method, such as a
    filter's, don't count; raise FileError if they can't be read."""
    path = (folder or Path()) / SCORES
    if folder is None or circuit.scores is None or not path.exists():
        return circuit
    scores = read_scores(path, circuit.graph, circuit.spans).edges
    same = np.array_equal(scores[circuit.kept], circuit.scores[circuit.kept])
    return replace(circuit, scores=scores) if same else circuit


def strongest(file: CircuitFile, n: int, folder: Path) -> CircuitFile:
    """Return the circuit of the n edges with the highest scores of a run, without dead edges and unmeasured: after
    elimination, the nested circuit of that size. `folder` is the run's.

    Raises UserError if the run has no scores of its edges, or too few edges have one.
    """
    path = folder / SCORES
    if not path.exists():
        why = "it has the scores of all edges, and acdc with a threshold has none"
        raise UserError(f"--edges: {path} is missing; {why}")
    scores = read_scores(path, file.model.graph, file.spans)
    magnitude = bool(file.method.options.get("abs"))
    n_scored = int((scores.importance(magnitude) > 0).sum())
    if n > n_scored:
        raise UserError(f"--edges: is {n}, but {n_scored} {file.unit} have a score above 0")
    chosen = scores.circuit(scores.top(n, magnitude), file.graph.edges_with_direct is not None)
    circuit = chosen.pruned()
    note = f"the {n} strongest {file.unit} of a run with {(file.graph.edge_spans or file.graph.edges).kept}"
    graph = GraphPart.of(circuit, chosen.n_dead)
    return file.model_copy(update={"graph": graph, "edges": edges_of(circuit), "metrics": {}, "notes": (note,)})
