"""The same config gives the same bytes, wherever and by whomever it is run: everything is varied at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_run import COMPARED

ROOT = Path(__file__).parent.parent
WHEEL = {"acdc": "acdc", "tasks": "acdc/tasks", "configs": "acdc/configs"}  # as pyproject.toml packs it
RUN = ("--task", "ioi", "--model", "tiny", "--examples", "8", "--dtype", "float64", "--device", "cpu")
RUNS = {"acdc": ("--threshold", "0.05"), "eap-ig": ("--edges", "30")}
PLACES = {
    "acdc": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati"},
    "eap-ig": {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "2", "TZ": "America/St_Johns"},
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
    """The package as a wheel installs it, far from the checkout."""
    packed = (
        (ROOT / "pyproject.toml")
        .read_text()
        .split("[tool.hatch.build.targets.wheel]")[1]
        .split("[tool.hatch.build.targets.sdist]")[0]
    )
    assert 'packages = ["acdc"]' in packed and packed.count("= ") == len(WHEEL)
    site = tmp_path_factory.mktemp("site packages")
    for source, target in WHEEL.items():
        assert source == "acdc" or f'"{source}" = "{target}"' in packed
        shutil.copytree(ROOT / source, site / target, ignore=shutil.ignore_patterns("__pycache__"))
    return site


def contents(runs: Path) -> dict[str, bytes]:
    (folder,) = runs.iterdir()
    names = [name for name in (*COMPARED, "scores.safetensors") if (folder / name).exists()]
    return {name: (folder / name).read_bytes() for name in names} | {"name": folder.name.encode()}


@pytest.mark.parametrize("method", RUNS)
def test_the_same_bytes_elsewhere(acdc, installed, tmp_path, method):
    """On two threads instead of one, from a wheel, in another folder, locale, time zone and home, with other hashes."""
    command = ("run", *RUN, "--method", method, *RUNS[method])
    here = acdc(*command)
    assert here.code == 0, here.err
    elsewhere, home = tmp_path / "ein anderer Ort, ß", tmp_path / "home"
    for folder in (elsewhere, home):
        folder.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(installed),
        "PYTHONUTF8": "0",
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        **PLACES[method],
    }
    done = subprocess.run(
        [sys.executable, "-c", MAIN, str(installed), *command],
        cwd=elsewhere,
        env=environment,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    mine, other = contents(tmp_path / "runs"), contents(elsewhere / "runs")
    assert len(mine) >= 5 and mine.keys() == other.keys()
    assert [name for name in mine if mine[name] != other[name]] == []
