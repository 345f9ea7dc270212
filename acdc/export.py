"""One circuit in every format we write."""

from __future__ import annotations

from acdc.formats.circuit_file import CircuitFile
from acdc.formats.eap_ig import to_eap_ig
from acdc.formats.graph_formats import to_graphml, to_node_link
from acdc.report.page import render_report
from acdc.report.picture import to_dot, to_png, to_svg

FORMATS = {  # name → ending of the file
    "graphml": ".graphml",
    "node-link": ".node-link.json",
    "dot": ".dot",
    "svg": ".svg",
    "png": ".png",
    "html": ".html",
    "eap-ig": ".eap-ig.json",
}


def convert(file: CircuitFile, to: str) -> bytes | str:
    """The circuit as the content of a file of format `to`, one of FORMATS."""
    circuit, title = file.circuit(), f"{file.task.name} in {file.model.name}"
    if to == "graphml":
        return to_graphml(circuit)
    if to == "node-link":
        return to_node_link(circuit)
    if to == "eap-ig":
        return to_eap_ig(circuit, file.model.d_model)
    if to == "html":
        return render_report(file, to_svg(circuit, title), [])
    if to == "png":
        return to_png(circuit, title)
    return to_dot(circuit, title) if to == "dot" else to_svg(circuit, title)
