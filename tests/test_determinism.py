"""The same config gives the same bytes, wherever and by whomever it is run: everything is varied at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    packed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    site = tmp_path_factory.mktemp("site packages")
    for source, target in WHEEL.items():
        assert f'"{source}" = "{target}"' in packed or f'packages = ["{source}"]' in packed
        shutil.copytree(ROOT / source, site / target, ignore=shutil.ignore_patterns("__pycache__"))
    return site


def indifferent_threads() -> str:
    """2 where the library below PyTorch gives a matrix product the same bits on two threads as on one, else 1.

    MKL does on the machines that this was tried on, and promises it on none.
    """
    draw = torch.Generator().manual_seed(0)
    same = True
    for rows, shared, columns in ((20, 12_288, 12), (100, 128, 512), (1_000, 512, 128), (100, 128, 500)):
        a, b = (torch.randn(n, shared, generator=draw, dtype=torch.float64) for n in (rows, columns))
        one = a @ b.T
        torch.set_num_threads(2)
        same &= torch.equal(a @ b.T, one)
        torch.set_num_threads(1)
    return "2" if same else "1"


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
        "OMP_WAIT_POLICY": "passive",  # a thread that waits leaves its core to another process
        "OMP_NUM_THREADS": (threads := indifferent_threads()),
        "MKL_NUM_THREADS": threads,
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
