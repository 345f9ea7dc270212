"""What tests of pages and pictures share: a file to show, a path's points, the mouse."""

from __future__ import annotations

import numpy as np

from acdc.files.circuit import CircuitFile, edges_of
from acdc.files.parts import GraphPart, MethodPart, ModelPart, TaskPart
from acdc.graph.circuit import Circuit
from acdc.report.layout import Point

EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)> &amp; "\' מבחן 🙂 ${a} $title'


def file_of(circuit: Circuit, name: str = "ioi") -> CircuitFile:
    g = circuit.graph
    changes = {n: 0.5 for n in circuit.edge_names()}
    edges = tuple(e.model_copy(update={"change": changes.get(e.name)}) for e in edges_of(circuit))
    return CircuitFile(
        format_version=2 if circuit.spans else 1,
        spans=circuit.spans,
        task=TaskPart(name=name, version=1, examples=10, seed=0, data_hash=name),
        model=ModelPart(
            name=name, family="gpt2", hash=name, n_layers=g.n_layers, n_heads=g.n_heads, d_model=768, mlp=g.mlp,
            inputs=g.inputs, parallel=g.parallel,
        ),
        method=MethodPart(
            name="acdc", metric="kl", ablation="corrupted", dtype="float32", device="cpu", threshold=0.01, options={}
        ),
        graph=GraphPart.of(circuit),
        metrics={},
        edges=edges,
        environment={"acdc": name},
        command=f"acdc run --task {name}",
        notes=(f"{name}\u2028",),
    )  # fmt: skip


def points(path: list[Point]) -> np.ndarray:
    """Float[point xy]: on the curves of a path."""
    t = np.linspace(0, 1, 11)[:, None]
    found = []
    for i in range(0, len(path) - 1, 3):
        a, b, c, d = np.array(path[i : i + 4])
        found.append((1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d)
    return np.concatenate(found)


def lit(page) -> set[str]:
    return set(page.evaluate("[...document.querySelectorAll('.edge.lit')].map(e => e.__data__.name)"))


def hover(page, edge: str) -> str:
    """Point at the middle of an edge; what is said of it."""
    x, y = page.evaluate(
        """name => { const path = [...document.querySelectorAll('path.hit')].find(p => p.dataset.edge === name);
        const p = path.getPointAtLength(path.getTotalLength() * .5), m = path.getScreenCTM();
        path.parentNode.append(path);
        return [p.x * m.a + m.e, p.y * m.d + m.f] }""",
        edge,
    )
    page.mouse.move(x, y)
    return page.locator("#tip").inner_text()
