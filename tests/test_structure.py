"""The structure of the package, read from its syntax trees: what there is, who imports whom, how long modules are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.support import ROOT

# A room is a folder or a top-level module of acdc/. Each imports only what stands before it.
ORDER = [
    "errors", "registry", "io", "task", "graph", "model", "patching", "setup", "methods", "evaluation", "files",
    "report", "commands", "sweep", "library", "cli", "start", "__init__",
]  # fmt: skip
WITHOUT_CODE = ("bundled",)
FLOORS = 13
ARROWS = 96
LINES = 400  # of a module
MEDIAN = 200
ALL_LINES = 22_050  # of the package; a feature that needs more says what it pays for them
PAIRS = 10  # assignments `a, b = x, y`


class Import(NamedTuple):
    """One import of the package's own code."""

    file: Path  # relative to the checkout
    line: int
    importer: str  # the module
    imported: str
    at_import: bool  # outside functions and `if TYPE_CHECKING`

    def __str__(self) -> str:
        return f"{self.file}:{self.line} → {self.imported}"


@cache
def modules() -> dict[str, Path]:
    """Modules by name, packages as `acdc.io.__init__`."""
    paths = [path.relative_to(ROOT) for path in sorted((ROOT / "acdc").rglob("*.py"))]
    return {".".join(path.with_suffix("").parts): path for path in paths}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def n_lines(path: Path) -> int:
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


def statements(node: ast.AST, at_import: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements, and whether each is executed when its module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        lazy |= isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from statements(child, at_import and not lazy)


def module_of(name: str) -> str:
    """The module that `from … import` or `import …` of a dotted name reads."""
    if name in modules():
        return name
    if f"{name}.__init__" in modules():
        return f"{name}.__init__"
    return module_of(name.rpartition(".")[0])


@cache
def imports() -> tuple[Import, ...]:
    out = []
    for importer, file in modules().items():
        for node, at_import in statements(tree(file)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                assert not node.level, f"{file}:{node.lineno}: a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            own = {module_of(name) for name in names if name.split(".")[0] == "acdc"}
            out += [Import(file, node.lineno, importer, imported, at_import) for imported in sorted(own)]
    return tuple(out)


def imports_torch(path: Path) -> bool:
    """Whether a module itself imports torch when it is imported."""
    found = [node for node, at_import in statements(tree(path)) if at_import]
    names = [node.module or "" for node in found if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in found if isinstance(node, ast.Import) for alias in node.names]
    return any(name.split(".")[0] in ("torch", "safetensors", "transformers") for name in names)


def room(module: str) -> str:
    return module.split(".")[1]


def arrows() -> dict[str, set[str]]:
    """The other rooms that each room imports."""
    out: dict[str, set[str]] = {room(name): set() for name in modules()}
    for each in imports():
        if room(each.importer) != room(each.imported):
            out[room(each.importer)].add(room(each.imported))
    return out


def upwards() -> list[Import]:
    """Imports of a room that stands later in the order."""
    return [each for each in imports() if ORDER.index(room(each.imported)) > ORDER.index(room(each.importer))]


def too_long() -> dict[str, int]:
    lengths = {path: n_lines(path) for path in modules().values()}
    out = {f"{path} is too long": n for path, n in lengths.items() if n > LINES}
    if median(lengths.values()) > MEDIAN:
        out["the median module is too long"] = int(median(lengths.values()))
    if sum(lengths.values()) > ALL_LINES:
        out["acdc/ is too long"] = sum(lengths.values())
    return out


def is_pair(node: ast.AST) -> bool:
    """`a, b = x, y`, except for swaps: the same names on both sides."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    values = sorted(map(ast.unparse, node.value.elts))
    targets = [target for target in node.targets if isinstance(target, ast.Tuple)]
    return any(sorted(map(ast.unparse, target.elts)) != values for target in targets)


# ---------------------------------------------------------------- the package


def test_the_entries_of_the_package() -> None:
    entries = {path.name.removesuffix(".py") for path in (ROOT / "acdc").iterdir()} - {"__pycache__"}
    assert entries == {*ORDER, *WITHOUT_CODE}
    assert len(entries) == 19
    assert {room(name) for name in modules()} == set(ORDER)


def test_rooms_import_only_what_stands_before_them() -> None:
    found = [str(each) for each in upwards()]
    assert not found, "\n".join(found)


def test_modules_import_each_other_in_no_circle() -> None:
    below: dict[str, set[str]] = {name: set() for name in modules()}
    for each in imports():
        below[each.importer].add(each.imported)
    order = list(TopologicalSorter(below).static_order())  # raises CycleError
    assert len(order) > 80


def test_rooms_import_each_other_in_no_circle_on_few_floors_by_few_arrows() -> None:
    n_arrows = sum(len(others) for others in arrows().values())
    assert 50 < n_arrows <= ARROWS, n_arrows
    below = arrows()
    floors: dict[str, int] = {}
    for name in TopologicalSorter(below).static_order():  # raises CycleError
        floors[name] = 1 + max((floors[other] for other in below[name]), default=0)
    assert max(floors.values()) <= FLOORS, floors


def test_files_and_configs_are_read_without_torch() -> None:
    below: dict[str, set[str]] = {name: set() for name in modules()}
    for each in imports():
        if each.at_import:
            below[each.importer].add(each.imported)
    order = list(TopologicalSorter(below).static_order())
    for name in order:
        below[name] = below[name].union(*(below[other] for other in below[name]))
    heavy = {name for name, path in modules().items() if imports_torch(path)}
    assert "acdc.patching.engine" in heavy
    light = [
        name
        for name in order
        if room(name) in ("errors", "registry", "io", "task", "files", "cli", "start", "__init__")
    ]
    light.append("acdc.setup.config")
    assert len(light) > 25
    found = {name: sorted(heavy & {name, *below[name]}) for name in light}
    assert {name: others for name, others in found.items() if others} == {}


def test_modules_are_short() -> None:
    assert too_long() == {}


def test_one_statement_a_line() -> None:
    found = [f"{path}:{node.lineno}" for path in modules().values() for node in ast.walk(tree(path)) if is_pair(node)]
    assert len(found) <= PAIRS, f"{len(found)} assignments of a tuple to a tuple:\n" + "\n".join(found)


# ---------------------------------------------------------------- the tests


def test_no_test_imports_another_test() -> None:
    """What tests share stands in tests/support."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node, _ in statements(tree(path.relative_to(ROOT))):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            parts = {part for name in names if name.startswith("tests.") for part in name.split(".")}
            if any(part.startswith("test_") for part in parts):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
