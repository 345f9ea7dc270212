"""The same config gives the same bytes everywhere: folder, locale, time zone, home and hash seed are varied at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.runs import COMPARED

WHEEL = {"acdc": "acdc", "tasks": "acdc/data/tasks", "configs": "acdc/data/configs"}  # as in pyproject.toml
RUN = ("--task", "ioi", "--model", "tiny", "--examples", "8", "--dtype", "float64", "--device", "cpu")
RUNS = {"acdc": ("--threshold", "0.05"), "eap-ig": ("--edges", "30")}
PLACES = {
    "acdc": {
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONHASHSEED": "1",
        "TZ": "Pacific/Kiritimati",
        "COLUMNS": "20",
    },
    "eap-ig": {
        "LC_ALL": "tr_TR.UTF-8",
        "LANG": "tr_TR.UTF-8",
        "PYTHONHASHSEED": "2",
        "TZ": "America/St_Johns",
        "NO_COLOR": "1",
    },
}
MAIN = """
import sys
from pathlib import Path
from acdc import cli
assert Path(sys.argv.pop(1)) in Path(cli.__file__).parents, cli.__file__
cli.main()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as a wheel installs it, outside the checkout."""
    packed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    site = tmp_path_factory.mktemp("site packages")
    for source, target in WHEEL.items():
        assert f'"{source}" = "{target}"' in packed or f'packages = ["{source}"]' in packed
        shutil.copytree(ROOT / source, site / target, ignore=shutil.ignore_patterns("__pycache__"))
    return site


def contents(runs: Path) -> dict[str, bytes]:
    (folder,) = runs.iterdir()
    names = [name for name in (*COMPARED, "scores.safetensors") if (folder / name).exists()]
    return {name: (folder / name).read_bytes() for name in names} | {"name": folder.name.encode()}


@pytest.mark.parametrize("method", RUNS)
def test_the_same_bytes_elsewhere(acdc, installed, tmp_path, method):
    """From a wheel, in another folder, locale, time zone and home, with another hash seed, on two threads, not one.

    Two threads give the same edges and numbers everywhere, and the same bytes where the library below PyTorch sums in
    the same order. MKL did wherever it was tried, but doesn't promise it; if it didn't, one thread must."""
    command = ("run", *RUN, "--method", method, *RUNS[method])
    here = acdc(*command)
    assert here.code == 0, here.err
    mine = contents(tmp_path / "runs")
    other = elsewhere(tmp_path / "ein anderer Ort, ß", installed, method, command, threads=2)
    if other != mine:
        assert_alike(mine["circuit.json"], other["circuit.json"])
        other = elsewhere(tmp_path / "noch einer", installed, method, command, threads=1)
    assert len(mine) >= 5 and mine.keys() == other.keys()
    assert [name for name in mine if mine[name] != other[name]] == []


def elsewhere(folder: Path, installed: Path, method: str, command: tuple[str, ...], threads: int) -> dict[str, bytes]:
    """The files of a run in another folder and environment."""
    home = folder / "home"
    fonts = home / ".config" / "fontconfig"
    fonts.mkdir(parents=True)
    (fonts / "fonts.conf").write_text(
        "<fontconfig><match><edit name='family'><string>Serif</string></edit></match></fontconfig>"
    )
    (folder / "matplotlibrc").write_text("text.usetex: true\nfont.family: serif\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(installed),
        "PYTHONUTF8": "0",
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "passive",  # waiting threads yield their core
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        **PLACES[method],
    }
    done = subprocess.run(
        [sys.executable, "-c", MAIN, str(installed), *command],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return contents(folder / "runs")


def assert_alike(mine: bytes, other: bytes) -> None:
    """Assert the same edges, and numbers that differ only by rounding."""
    a, b = json.loads(mine), json.loads(other)
    assert [edge["name"] for edge in a["edges"]] == [edge["name"] for edge in b["edges"]]
    assert a["metrics"] == pytest.approx(b["metrics"], abs=1e-9)
    assert [edge["score"] for edge in a["edges"]] == pytest.approx([edge["score"] for edge in b["edges"]], abs=1e-9)
