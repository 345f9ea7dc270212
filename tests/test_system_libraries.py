"""acdc needs nothing of the system but glibc, libgcc and libstdc++; its other shared libraries and its fonts come with
Python or with wheels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from acdc.registry import FORMATS

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps of Linux")

SWEEP = """
base: {task: or-gate, model: or-gate}
grid: {threshold: [0.01, 0.5]}
"""
COMPARE = ("--model", "tiny", "--examples", "6", "--tasks", "gendered-pronoun", "--methods", "eap-ig,random")
COMMANDS = (
    ("run", "--task", "greater-than", "--model", "tiny", "--out", "run"),
    *(("export", "run/circuit.json", "--to", to) for to in FORMATS),
    ("compare", *COMPARE, "--sizes", "40,20", "--out", "compare"),
    ("sweep", "two.yaml", "--workers", "1", "--out", "sweep"),
)
# Imported by every Python process that finds it, workers of a sweep, too. At exit it writes what the process opened.
SITE = """
import atexit, json, os, sys
from pathlib import Path
opened, started = set(), set()
def hook(event, args):
    if event == "open":
        opened.add(os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else "")
    elif event == "subprocess.Popen":
        started.add(os.fsdecode(args[0]))
def write():
    with open("/proc/self/maps") as file:
        fields = [line.split(maxsplit=5) for line in file]
    mapped = {field[5].strip() for field in fields if len(field) == 6 and field[5].startswith("/")}
    seen = {"mapped": sorted(mapped), "opened": sorted(opened), "started": sorted(started)}
    (Path(__file__).parent / f"{os.getpid()}.json").write_text(json.dumps(seen))
def write_and_exit(code, leave=os._exit):  # workers skip what is registered by atexit
    write()
    leave(code)
os._exit = write_and_exit
atexit.register(write)
sys.addaudithook(hook)
"""
MAIN = """
import json, os, sys
from acdc import cli
for number, command in enumerate(json.loads(sys.argv[1])):
    stderr = os.open(f"{number}.stderr", os.O_CREAT | os.O_WRONLY)
    os.dup2(stderr, 2)
    sys.argv = ["acdc", *command]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, open(f"{number}.stderr").read()
"""
# Extension modules of Python itself, with the libraries that they link.
STANDARD = (
    *("bz2", "ctypes", "curses", "dbm.gnu", "dbm.ndbm", "decimal", "hashlib", "lzma", "pyexpat", "readline", "socket"),
    *("sqlite3", "ssl", "uuid", "zlib"),
)
BARE = f"""
import importlib
for name in {STANDARD}:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
"""
ALLOWED = re.compile(
    r"(ld-linux.*|libc|libm|libdl|libpthread|librt|libutil|libresolv|libnss_\w+|libgcc_s|libstdc\+\+)\.so[.\d]*"
    r"|lib(cuda|nvidia-\S+)\.so[.\d]*"  # the driver of a GPU, where there is one
)
FONT = re.compile(r"\.(ttf|otf|ttc|pfb|pfa|afm)$|fontconfig|/etc/fonts", re.IGNORECASE)

SAID = re.compile(r"memory: about \S+ GB|gendered-pronoun: \S+ took \S+ s")


class Seen(NamedTuple):
    """What the processes of some commands did."""

    processes: int
    mapped: set[str]
    opened: set[str]
    started: set[str]
    stderr: list[str]


def watched(folder: Path, *arguments: str) -> Seen:
    """Run Python in an empty home folder, and note what it and the Python processes it starts map, open and start."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(file.read_text()) for file in site.glob("*.json")]
    sets = [{name for report in reports for name in report[kind]} for kind in ("mapped", "opened", "started")]
    numbers = range(len(list(folder.glob("*.stderr"))))
    stderr = [line for number in numbers for line in (folder / f"{number}.stderr").read_text().splitlines()]
    return Seen(len(reports), *sets, stderr)


def of_the_system(paths: Iterable[str]) -> list[str]:
    """Paths that lie neither in Python nor in its packages, nor in the checkout."""
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {sys.prefix, sys.base_prefix} - {"/usr", "/usr/local"}
    roots |= {str(Path(__file__).parents[1])}
    real = [os.path.realpath(root) + os.sep for root in roots]
    return sorted(path for path in paths if not os.path.realpath(path).startswith(tuple(real)))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("home")
    # Matplotlib lists the fonts of the system once for every user, which isn't using them.
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], env={"HOME": str(folder)}, check=True)
    (folder / "two.yaml").write_text(SWEEP, encoding="utf-8")
    return watched(folder, "-c", MAIN, json.dumps(COMMANDS))


def test_libraries_of_the_system_are_those_of_the_compiler_and_of_python(seen: Seen, tmp_path: Path) -> None:
    assert seen.processes >= 2  # a worker of the sweep, too
    libraries = {path for path in of_the_system(seen.mapped) if re.search(r"\.so[.\d]*$", path)}
    assert any(Path(path).name.startswith("libc.so") for path in libraries)
    bare = watched(tmp_path, "-c", BARE).mapped
    assert sorted(path for path in libraries - bare if not ALLOWED.fullmatch(Path(path).name)) == []


def test_fonts_of_the_system_are_not_read(seen: Seen) -> None:
    assert any(path.endswith("greater-than.yaml") for path in seen.opened)
    assert [path for path in of_the_system(seen.mapped | seen.opened) if FONT.search(path)] == []


def test_programs_of_the_system_are_not_started(seen: Seen) -> None:
    assert seen.started == {sys.executable}


def test_stderr_has_what_the_commands_say_and_nothing_else(seen: Seen) -> None:
    assert [line for line in seen.stderr if not SAID.fullmatch(line)] == []
