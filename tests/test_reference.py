"""The reference in docs/ is what the code says, and its schemas refuse no file that the code takes."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from acdc.commands.check import read_checks
from acdc.errors import UserError
from acdc.files import parts
from acdc.files.circuit import read_circuit
from acdc.files.published import load_published
from acdc.setup.config import resolve
from acdc.sweep.file import read_sweep
from acdc.task import words
from acdc.task.load import checked, read_included
from acdc.task.schema import Task
from tests.support import reference

pytest.importorskip("pydantic", "2.11", reason="what is committed was made with the pinned one; older ones differ")

from tests.support import ROOT

SCHEMAS = {file.name: reference.schema(file) for file in reference.FILES}
SHIPPED = {
    "task": ["tasks/*.yaml"],
    "circuit": ["configs/golden/*.json"],
    "config": ["configs/greater-than.yaml"],
    "sweep": ["configs/sweep-*.yaml"],
    "checks": ["configs/regression.yaml", "configs/paper/*.yaml"],
    "published": ["tasks/circuits/*.yaml"],
}
PATHS = [(name, path) for name, globs in SHIPPED.items() for glob in globs for path in sorted(ROOT.glob(glob))]
READ = {
    "task": lambda path: checked(json.loads(path.read_text()), str(path)),
    "circuit": read_circuit,
    "config": lambda path: resolve({}, path, None),
    "sweep": read_sweep,
    "checks": read_checks,
    "published": lambda path: load_published(str(path)),
}
BESIDE = {
    "$schema",
    "$comment",
    "$defs",
    "title",
    "description",
    "default",
    "then",
    "else",
}  # ask for nothing themselves
TYPES = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}


def is_a(value, kind):
    if kind in TYPES:
        return isinstance(value, TYPES[kind])
    return isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)


def fits(value, schema, root):
    """Whether a value fits a schema; only what ours say is understood, and anything else is a KeyError."""

    def fit(inner, it=value):
        return fits(it, inner, root)

    def of(kind, good):
        return lambda asked: not is_a(value, kind) or good(asked)

    if isinstance(schema, bool):
        return schema
    known = schema.get("properties", {}).keys()
    says = {
        "$ref": lambda name: fit(root["$defs"][name.removeprefix("#/$defs/")]),
        "anyOf": lambda forms: any(map(fit, forms)),
        "oneOf": lambda forms: sum(map(fit, forms)) == 1,
        "not": lambda form: not fit(form),
        "if": lambda form: fit(schema["then"] if fit(form) else schema["else"]),
        "type": lambda kinds: any(is_a(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)),
        "enum": lambda names: value in names,
        "const": lambda one: value == one and type(value) is type(one),
        "minimum": of("number", lambda low: value >= low),
        "maximum": of("number", lambda high: value <= high),
        "exclusiveMaximum": of("number", lambda high: value < high),
        "minLength": of("string", lambda n: len(value) >= n),
        "maxLength": of("string", lambda n: len(value) <= n),
        "pattern": of("string", lambda pattern: re.search(pattern, value)),
        "minItems": of("array", lambda n: len(value) >= n),
        "maxItems": of("array", lambda n: len(value) <= n),
        "items": of("array", lambda form: all(fit(form, it) for it in value)),
        "prefixItems": of("array", lambda forms: all(map(fit, forms, value))),
        "minProperties": of("object", lambda n: len(value) >= n),
        "maxProperties": of("object", lambda n: len(value) <= n),
        "required": of("object", lambda keys: all(key in value for key in keys)),
        "properties": of("object", lambda forms: all(fit(forms[key], value[key]) for key in known & value.keys())),
        "propertyNames": of("object", lambda form: all(fit(form, str(key)) for key in value)),
        "additionalProperties": of("object", lambda form: all(fit(form, value[key]) for key in value.keys() - known)),
    }
    return all(says[key](asked) for key, asked in schema.items() if key not in BESIDE)


def content(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def test_what_is_committed_is_what_the_code_says():
    made = reference.files()
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: renew it with `make docs`"
    assert {*(ROOT / "docs" / "schema").iterdir(), ROOT / "docs" / "reference.md"} == set(made)


def test_every_pattern_of_shipped_files_finds_some():
    assert [glob for globs in SHIPPED.values() for glob in globs if not list(ROOT.glob(glob))] == []


@pytest.mark.parametrize(("name", "path"), PATHS, ids=lambda x: x.stem if isinstance(x, Path) else x)
def test_shipped_files_fit_their_schemas(name, path):
    schema = SCHEMAS[name]
    assert fits(content(path), schema, schema)
    assert not fits({**content(path), "more": 1}, schema, schema)


OF_SPANS = ("spans", "span", "edge_spans")  # keys of circuits by span only


def test_a_circuit_has_exactly_the_keys_of_its_schema():
    definitions = SCHEMAS["circuit"]["$defs"]

    def compare(part, definition):
        missing = {"features"} if by_span else {"features", *OF_SPANS}
        keys = dict.fromkeys(key for key in definition["properties"] if key not in missing)
        assert list(part) == list(keys)
        for key in keys:
            form = definition["properties"][key]
            if "$ref" in form:
                compare(part[key], definitions[form["$ref"].removeprefix("#/$defs/")])

    paths = list((ROOT / "configs" / "golden").glob("*.json"))
    assert paths
    for path in paths:
        circuit = content(path)
        by_span = "spans" in circuit
        compare(circuit, definitions["CircuitFile"])
        for edge in circuit["edges"]:
            compare(edge, definitions["Edge"])


def changed(value, at=()):
    """Where a file can be changed: the way to every key and to the first entries of lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*at, key)
        yield from changed(inner, (*at, key))


CASES = [
    *(("task", f"tasks/{name}.yaml") for name in ("greater-than", "induction", "hypernymy", "or-gate", "docstring")),
    ("circuit", "configs/golden/or-gate.json"),
    ("config", "configs/greater-than.yaml"),
    ("sweep", "configs/sweep-tiny.yaml"),
    ("sweep", "configs/sweep-greater-than.yaml"),
    ("checks", "configs/paper/docstring.yaml"),
    ("published", "tasks/circuits/or-gate.yaml"),
]


@pytest.mark.parametrize(("name", "file"), CASES)
def test_what_a_schema_refuses_the_code_refuses(name, file, tmp_path):
    schema, path, refused = SCHEMAS[name], tmp_path / Path(file).name, 0
    whole = read_included(ROOT / file) if name == "task" else content(ROOT / file)
    for way in changed(whole):
        for new in ("delete", None, -1, 0, 1, 1.5, "x", [], {}, True):
            mistaken = copy.deepcopy(whole)
            part = mistaken
            for key in way[:-1]:
                part = part[key]
            if new == "delete":
                del part[way[-1]]
            else:
                part[way[-1]] = new
            if fits(mistaken, schema, schema) or (name, new) == ("sweep", None):  # null takes a key away
                continue
            if way[-1] in ("format_version", "next") and new == 1:  # for a Literal 1 and True are the same
                continue
            refused += 1
            path.write_text(json.dumps(mistaken), encoding="utf-8")
            with pytest.raises((UserError, ValidationError)):
                READ[name](path)
    assert refused > 20


def test_the_tables_have_the_keys_of_the_models():
    sections = re.split(r"^(?=##)", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), flags=re.M)
    files, found = {file.title: file for file in reference.FILES}, 0
    for section in sections:
        title = re.match(r"##+ ([^:\n]*)", section)
        if title and section.startswith("## "):
            model = root = files[title[1]].model
        elif title:
            places = (sys.modules[root.__module__], parts, words)
            model = next((of for place in places if (of := getattr(place, title[1], None))), None)
        if "| key |" in section:
            assert re.findall(r"^\| `(\w+)` \|", section, re.M) == list(model.model_fields)
            found += 1
    assert found == sum(len(schema["$defs"]) for schema in SCHEMAS.values())


def test_links_within_the_reference_lead_to_headings():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    anchors = [reference.anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.M)]
    assert len(set(anchors)) == len(anchors)
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert links and links <= set(anchors)


def test_a_key_without_a_description_stops_the_generation():
    class Undescribed(Task):
        """A task.

        Args:
            nam: misspelt
        """

    Undescribed.__module__ = "acdc.somewhere"
    with pytest.raises(LookupError, match="nam"):
        reference.schema(reference.File("x", "x", Undescribed, "x"))
