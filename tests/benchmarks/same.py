"""Whether a run on another device kept the edges that the CPU kept.

`python -m tests.benchmarks.same RUN/circuit.json PICTURE.svg`, where the picture draws the CPU's circuit. The exit code
is 1 if an edge is in one of them only.
"""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path

from acdc.files.circuit import read_circuit


def drawn(picture: Path) -> set[str]:
    """The names of the edges in a picture that `acdc run` has drawn."""
    return {unescape(name) for name in re.findall(r'<g class="edge" id="([^"]+)"', picture.read_text(encoding="utf-8"))}


def compare(run: Path, picture: Path) -> tuple[str, bool]:
    """What differs, as text, and whether nothing does."""
    file = read_circuit(run)
    found, expected = set(file.circuit().edge_names()), drawn(picture)
    lines = [f"{len(found & expected)} of the CPU's {len(expected)} edges, and {len(found - expected)} others"]
    changes = {edge.label: edge.change for edge in file.edges}
    for name in sorted(found ^ expected):
        where = f"only here, change {changes[name]:.6g}" if name in found else "only on the CPU"
        lines.append(f"{name}: {where}")
    return "\n".join(lines), found == expected


def main() -> None:
    text, same = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    print(text)
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
