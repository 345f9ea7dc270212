"""The plots of sweeps and comparisons: the same bytes everywhere, whatever matplotlib's settings and the labels are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from acdc.files.table import OPTIONS
from acdc.registry import METHODS
from acdc.report.curves import COLOURS, draw
from acdc.report.panels import Line, Panel, Point, of_rows
from tests.support import ROOT

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


def apart(a: str, b: str) -> float:
    """How far apart two colours are in CIELAB."""

    def lab(colour: str) -> np.ndarray:
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        xyz = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]] @ linear  # white is 1
        x, y, z = np.cbrt(xyz)
        return np.array([116 * y, 500 * (x - y), 200 * (y - z)])

    return float(np.linalg.norm(lab(a) - lab(b)))


def test_every_method_has_a_colour_and_a_mark_of_its_own():
    css = (ROOT / "acdc" / "report" / "web" / "page.css").read_text()
    of_page = re.findall(r"--c\d+: (#[0-9a-f]+)", css.replace("#000;", "#000000;"))
    assert len(of_page) == 2 * len(COLOURS)
    for colours in (COLOURS, of_page[: len(COLOURS)], of_page[len(COLOURS) :]):
        assert len(colours) > len(METHODS)  # and elimination
        assert min(apart(a, b) for a, b in combinations(colours, 2)) > 18
    lines = tuple(Line(name, POINTS) for name in METHODS)
    svg = draw([Panel("pareto", "pareto", "a", "edges", "kl", lines)])["pareto.svg"].decode()
    marks = re.findall(r'<use xlink:href="(#\w+)"[^>]*style="([^"]*stroke: (?!#000000)[^"]*)"', svg)
    assert len(set(marks)) == len(METHODS)


def test_logarithmic_axes_say_so():
    svg = draw(PANELS)
    says = {name: svg[f"{name}.svg"].count(b"(log scale)") for name in ("pareto", "thresholds", "roc")}
    assert says == {"pareto": 2, "thresholds": 2, "roc": 0}


def test_titles_say_the_metric_where_it_differs():
    base = {"state": "done", "task": "ioi", "model": "tiny", "kept": 3, "value": 0.1, "value_low": None,
            "value_high": None, "judged_on": "held_out", "full": 0.0}  # fmt: skip
    blank = dict.fromkeys([*OPTIONS, "threshold", "false_positive_rate", "true_positive_rate"])
    rows = [blank | base | {"metric": metric} for metric in ("kl", "logit-diff")]
    assert [panel.title for panel in of_rows(rows)] == ["ioi in tiny, kl", "ioi in tiny, logit-diff"]
    assert [panel.title for panel in of_rows(rows[:1])] == ["ioi in tiny"]


def test_there_is_an_svg_a_pdf_and_a_png_per_picture():
    files = draw(PANELS)
    assert list(files) == [f"{kind}.{end}" for kind in ("pareto", "thresholds", "roc") for end in ("svg", "pdf", "png")]
    for name, data in files.items():
        if name.endswith(".svg"):
            assert ET.fromstring(data).tag.endswith("svg")
        else:
            assert data.startswith(b"\x89PNG" if name.endswith(".png") else b"%PDF")
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
    for folder in (tmp_path, tmp_path / "matplotlib"):
        (folder / "matplotlibrc").write_bytes(settings)
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "20", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    assert drawn(tmp_path, MPLBACKEND=backend, **environment) == first and first[1] == ""


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
