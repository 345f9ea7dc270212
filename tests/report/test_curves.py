"""The plots of sweeps and comparisons: the same bytes everywhere, whatever matplotlib's settings and the labels are."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from acdc.report.curves import draw
from acdc.report.panels import Line, Panel, Point

POINTS = (Point(0, 0.9, 0.8, 1.0, 0), Point(20, 0.5, None, None, 1), Point(300, 0.1, 0.0, 0.2, 2))
LINES = (Line("eap-ig", POINTS), Line("random", tuple(replace(p, y=p.y - 5) for p in POINTS)))
PANELS = [
    Panel("pareto", "pareto", "a", "edges", "kl", LINES, (0.0,)),
    Panel("pareto", "pareto", "b", "edges", "kl", LINES[:1], (0.0, 1.0), (-0.5, 1.5)),
    Panel("thresholds", "thresholds", "a", "threshold", "edges", LINES[:1]),
    Panel("roc", "roc", "a", "false", "true", (Line("eap-ig", (Point(0, 0, None, None, -1),), "AUC 0.50"), LINES[1])),
]
DRAW = """
import hashlib
from acdc.report.curves import draw
from tests.report.test_curves import PANELS
print(*(hashlib.sha256(data).hexdigest() for data in draw(PANELS).values()))
"""


def test_there_is_an_svg_and_a_png_per_picture():
    files = draw(PANELS)
    assert list(files) == [f"{kind}.{end}" for kind in ("pareto", "thresholds", "roc") for end in ("svg", "png")]
    for name, data in files.items():
        if name.endswith(".svg"):
            assert ET.fromstring(data).tag.endswith("svg")
        else:
            assert data.startswith(b"\x89PNG")
    assert b"eap-ig, AUC 0.50" in files["roc.svg"] and b"random" in files["roc.svg"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize(
    ("settings", "backend"),
    [
        (b"text.usetex: true\naxes.facecolor: red\nsavefig.dpi: 7\nlines.linewidth: 9\nbackend: TkAgg\n", ""),
        (b"text.usetex: maybe\nno key\nbackend: none\n", "module://matplotlib_inline.backend_inline"),
        (b"\xff\xfe\0", "none"),
    ],
)
def test_settings_of_matplotlib_change_nothing(tmp_path, first, settings, backend):
    """Those of the folder, the home, and of a notebook that starts a command."""
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "matplotlibrc").write_bytes(settings)
    assert drawn(tmp_path, XDG_CONFIG_HOME=str(tmp_path), COLUMNS="20", LC_ALL="C", TZ="Asia/Tokyo") == first
    (tmp_path / "matplotlibrc").write_bytes(settings)
    assert drawn(tmp_path, MPLBACKEND=backend) == first and first[1] == ""


def drawn(folder: Path, **environment: str) -> tuple[str, str]:
    """Hashes of files, and what stands on stderr."""
    command = [sys.executable, "-c", DRAW]
    env = os.environ | environment
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_labels_are_plain_text(recwarn):
    for label in ("$\\frac", "a $b$ _c", "_hidden", "מבחן 🙂 \u2028", "<script>&amp;"):
        panel = replace(PANELS[0], title=label, x=label, y=label, lines=(Line(label, POINTS), LINES[1]))
        files = draw([panel])
        assert ET.fromstring(files["pareto.svg"]) is not None
    assert not recwarn.list
