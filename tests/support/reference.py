"""`make docs` generates docs/reference.md and docs/schema/ from the schemas of the files and their docstrings."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from acdc.commands.check import Checks
from acdc.files.circuit import CircuitFile
from acdc.files.published import PublishedFile
from acdc.graph.graph import INPUTS
from acdc.registry import ABLATIONS, FORMATS, METHODS, METRICS, NAMES, ORDERS
from acdc.setup.config import Config
from acdc.sweep.file import OPTIONS as SWEEP_OPTIONS
from acdc.sweep.file import AxisRange, Sweep
from acdc.task.schema import Task
from tests.support import ROOT

DOCS = ROOT / "docs"
COMMENT = "Generated from the code by `make docs`; edits here are overwritten."
Schema = dict[str, Any]


class File(NamedTuple):
    """One kind of file.

    Args:
        name: name of its schema file
        title: title of its section
        model: the schema of its content
        intro: its purpose, added to the model's docstring
        more: models that the code uses later, which pydantic can't see from `model`
    """

    name: str
    title: str
    model: type[BaseModel]
    intro: str
    more: tuple[type[BaseModel], ...] = ()


FILES = (
    File(
        "task",
        "Task file",
        Task,
        "`tasks/*.yaml`, or your own for `acdc run --task mine.yaml`: the README has an example, and "
        "[own-data.md](own-data.md) one with prompts in a JSONL or CSV file. `include` starts from another task: "
        "mappings are merged, null removes a key, anything else replaces. Texts that look like numbers to YAML need "
        "quotes.",
    ),
    File(
        "circuit",
        "circuit.json",
        CircuitFile,
        "Written by `acdc run`; read by `acdc evaluate`, `export`, `check` and `diff`. One edge per line; the same "
        "values give the same bytes.",
    ),
    File(
        "config",
        "Config file",
        Config,
        "For `acdc run --config mine.yaml`; a run's directory has one with every option. Keys are options of `acdc "
        "run`; all are optional. The command line wins over this file, this file over the task's defaults.",
    ),
    File(
        "sweep",
        "Sweep file",
        Sweep,
        "For `acdc sweep mine.yaml`: see [sweeps.md](sweeps.md). `include` merges as in task files.",
        (AxisRange,),
    ),
    File("checks", "List of checks", Checks, "For `acdc check mine.yaml`: see [checks.md](checks.md)."),
    File(
        "published",
        "Published circuit",
        PublishedFile,
        "`tasks/circuits/*.yaml`, or your own for `acdc check circuit.json --against mine.yaml`.",
    ),
)


# ---------------------------------------------------------------- schemas

TEXT: Schema = {"type": "string"}
INCLUDE = {"description": "another task: its name, or a YAML file relative to this one, which wins"}
MAPPING: Schema = {"type": "object", "additionalProperties": True}


def also(*forms: Schema) -> Callable[[Schema], Schema]:
    """Return the schema change of a validator that also accepts other forms."""
    return lambda inner: {"anyOf": [*forms, inner]}


def only(**more: Any) -> Callable[[Schema], Schema]:
    """Return the schema change of a validator with further conditions."""
    return lambda inner: inner | more


def one_of(*keys: str) -> Callable[[Schema], Schema]:
    """Return the schema change of a validator that wants exactly one of some keys; null counts as missing."""
    return only(oneOf=[{"required": [key], "properties": {key: {"not": {"type": "null"}}}} for key in keys])


unsaid = only()  # conditions that a JSON schema can't express

# Pydantic can't see what validator functions check. A function missing here stops the generation.
VALIDATORS: dict[str, Callable[[Schema], Schema]] = {
    "one_or_many": also(TEXT),
    "as_answers": also(TEXT),
    "one_line": unsaid,
    "measure": unsaid,
    "known_inputs": only(enum=[list(names) for names in INPUTS]),
    "ModelPart._possible": unsaid,
    "as_prompt": also(TEXT),
    "as_span": unsaid,
    "span_name": unsaid,
    "Prompt._apart": unsaid,
    "Strict._known_keys": unsaid,
    "NumberRange._size": unsaid,
    "Table._rectangle": unsaid,
    "Source._slot_names": unsaid,
    "Source._one_source": one_of("template", "templates", "rows", "file", "generator"),
    "Corrupt._one_way": only(minProperties=1, maxProperties=1),
    "Answers._one_way": one_of("correct", "compare", "next"),
    "by_key": unsaid,
    "CircuitFile._consistent": unsaid,
    "as_words": unsaid,
    "as_slot": unsaid,
    "as_positions": also({"type": "integer"}, {"$ref": "#/$defs/NumberRange"}),
    "Config._filter": only(pattern=f"^({'|'.join(name for name in METHODS if name != 'acdc')}):"),
    "Compare._few": unsaid,
    "Config._features": only(pattern=r"^.+:(all|[0-9]+)$"),
    "Config._positions": unsaid,
    "Config._device": only(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$"),
    "AxisRange._one": one_of("log", "linear"),
    "Slurm._names": unsaid,
    "Sweep._size": only(pattern=r"^\s*\d+(\.\d+)?\s*[MmGg][Ii]?[Bb]?\s*$"),
    "Entry._one": one_of("run", "circuit"),
}

OPTIONS = {"propertyNames": {"enum": list(SWEEP_OPTIONS)}}
VALUE: Schema = {"title": "value", "type": ["string", "number", "boolean"]}
VALUES = {"anyOf": [VALUE, {"type": "array", "items": VALUE, "minItems": 1}, {"$ref": "#/$defs/AxisRange"}]}
GRID = {**OPTIONS, "title": "grid", "additionalProperties": VALUES, "minProperties": 1}

# Conditions checked when a file is read: model, key, the part of its schema to narrow, what to add to that part.
READERS: tuple[tuple[str, str, Schema, Schema], ...] = (
    ("Defaults", "metric", TEXT, {"enum": list(METRICS)}),
    ("Override", "metric", TEXT, {"enum": list(METRICS)}),
    ("Task", "metrics", TEXT, {"enum": list(METRICS)}),
    *(("Config", key, TEXT, {"enum": list(names)}) for key, names in {**NAMES, "method": METHODS}.items()),
    ("Entry", "run", MAPPING, {"propertyNames": {"enum": list(Config.model_fields)}}),
    ("Sweep", "base", MAPPING, OPTIONS),
    ("Sweep", "exclude", MAPPING, OPTIONS),
    ("Sweep", "grid", MAPPING, GRID),
)


def asked(schema: Any) -> Callable[[Schema], Schema]:
    """Return the schema change for a validator of acdc; pydantic handles its own."""
    function = schema["function"]["function"]
    ours = getattr(function, "__module__", "").startswith("acdc.")
    return VALIDATORS[function.__qualname__] if ours else unsaid


class Generator(GenerateJsonSchema):
    """Pydantic's generator, with key descriptions from docstrings and conditions from validators."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def function_before_schema(self, schema: Any) -> Schema:
        return asked(schema)(super().function_before_schema(schema))

    def function_after_schema(self, schema: Any) -> Schema:
        return asked(schema)(super().function_after_schema(schema))

    def model_schema(self, schema: Any) -> Schema:
        found, model = super().model_schema(schema), schema["cls"]
        found["description"], keys = docstring(model)
        if keys.keys() != model.model_fields.keys():
            odd = sorted(keys.keys() ^ model.model_fields.keys())
            raise LookupError(f"{model.__module__}.{model.__name__}: {', '.join(odd)}: in its docstring or keys only")
        for key, text in keys.items():
            found["properties"][key]["description"] = text
        return found


def docstring(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """Return a model's description, and those of its keys, from its docstring and those of its bases."""
    keys: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if base.__module__.startswith("acdc."):
            prose, _, arguments = inspect.cleandoc(base.__doc__ or "").partition("\nArgs:\n")
            for names, text in re.findall(r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", arguments, re.M):
                keys |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in prose.strip().split("\n\n")), keys


def schema(file: File) -> Schema:
    """Return the JSON Schema of one kind of file."""
    models: Any = [(model, "validation") for model in (file.model, *file.more)]
    definitions = finish(models_json_schema(models, schema_generator=Generator)[1]["$defs"])
    root = definitions[file.model.__name__]
    if file.model is Config:
        del root["required"]  # missing keys come from the command line, the task or built-in defaults
    content: Schema = {"$ref": f"#/$defs/{file.model.__name__}"}
    keys = {key: {"description": value["description"]} for key, value in root["properties"].items()}
    keys |= {"include": INCLUDE} if file.model is Task else {}
    if "include" in keys:  # with include any key may be missing, at any depth, and null removes one
        whole = {"properties": keys, "additionalProperties": False}
        content = {"if": {"required": ["include"]}, "then": whole, "else": content}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": COMMENT,
        "title": f"acdc: {file.title}",
        "description": root["description"],
        "type": "object",
        **content,
        "$defs": definitions,
    }


def finish(definitions: Schema) -> Schema:
    """Return the schemas of models with the conditions in `READERS`."""
    for model, key, part, more in READERS:
        if model in definitions:
            properties = definitions[model]["properties"]
            properties[key] = narrowed(properties[key], part, more)
    return definitions


def narrowed(node: Any, part: Schema, more: Schema) -> Any:
    """Return a schema with `more` added wherever it contains `part`."""
    if isinstance(node, list):
        return [narrowed(inner, part, more) for inner in node]
    if not isinstance(node, dict):
        return node
    return node | more if part.items() <= node.items() else {k: narrowed(v, part, more) for k, v in node.items()}


# ---------------------------------------------------------------- the reference


def reference() -> str:
    """Return the reference in Markdown."""
    contents = " · ".join(f"[{file.title}](#{anchor(file.title)})" for file in FILES)
    head = (
        f"{COMMENT} It lists the keys of files; a key without a default is **needed** or optional (–). An editor that "
        "supports JSON Schema checks a YAML file while you write it, if its first line is "
        "`# yaml-language-server: $schema=…/task.schema.json`. A schema covers single keys; rules across keys are "
        "checked when `acdc` reads the file, before a model is loaded."
    )
    return "\n\n".join(["# Reference", fill(head), contents, *(section(file) for file in FILES)]) + "\n"


def fill(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def section(file: File) -> str:
    """Return the section of one kind of file: a table for its model and for every model that it uses."""
    definitions = schema(file)["$defs"]
    places = uses(definitions, file.model.__name__)
    titles = {name: f"{name}: {', '.join(f'`{path}`' for path in paths)}" for name, paths in places.items()}
    links = {name: f"[{name}](#{anchor(title)})" for name, title in titles.items()}
    root, where = definitions[file.model.__name__], f"[{file.name}.schema.json](schema/{file.name}.schema.json)"
    blocks = [f"## {file.title}", fill(f"{root['description']} {file.intro} Schema: {where}."), table(root, links)]
    for name, title in titles.items():
        prose = definitions[name]["description"].split("\n\n")
        blocks += [f"### {title}", *map(fill, prose), table(definitions[name], links)]
    if file.model is Config:
        blocks += ["### Methods, ablations, orders, formats", *names()]
    return "\n\n".join(blocks)


def uses(definitions: Schema, root: str) -> dict[str, list[str]]:
    """Return for every model below the root the keys that use it; nearest models first."""

    def refs(node: Schema, path: str) -> Iterator[tuple[str, str]]:
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2], path
        for inner in (*node.get("anyOf", ()), *node.get("oneOf", ()), node.get("items")):
            yield from refs(inner, path) if isinstance(inner, dict) else ()
        if isinstance(inner := node.get("additionalProperties"), dict):
            yield from refs(inner, f"{path}.NAME")

    found: dict[str, list[str]] = {}
    queue = deque([(root, "")])
    while queue:
        name, at = queue.popleft()
        for key, node in definitions[name]["properties"].items():
            for used, path in refs(node, f"{at}{key}"):
                if used not in found:
                    queue.append((used, f"{path}."))
                if path not in found.setdefault(used, []):
                    found[used].append(path)
    return found


def table(definition: Schema, links: dict[str, str]) -> str:
    """Return the table of the keys of one model."""
    needed = definition.get("required", ())
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    for key, node in definition["properties"].items():
        default = "**needed**" if key in needed else said(node.get("default"))
        cells = (f"`{key}`", words(node, links), default, node["description"])
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def said(default: Any) -> str:
    """Return a default for a table."""
    return "–" if default in (None, "", []) or isinstance(default, dict) else code(default)


def code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def words(node: Schema, links: dict[str, str], s: str = "") -> str:
    """Return a schema in words; `s` makes it plural."""
    if "$ref" in node:
        return links[node["$ref"].rpartition("/")[2]]
    if "title" in node:
        return node["title"] + s
    if forms := node.get("anyOf") or node.get("oneOf"):
        bounds = {k: v for k, v in node.items() if k.startswith(("min", "max", "excl"))}
        optional = "default" in node and node["default"] is None  # null means the same as a missing key
        forms = [form for form in forms if not (optional and form == {"type": "null"})]
        return " or ".join(dict.fromkeys(words(bounds | form, links, s) for form in forms))
    if "const" in node:
        return code(node["const"])
    if "enum" in node:
        known = [code(name) for name in node["enum"]]
        return "names out of " * bool(s) + ("one of " * (not s) + ", ".join(known) if known[2:] else " or ".join(known))
    if node["type"] == "array":
        return a_list(node, links, s)
    if node["type"] == "object":
        return a_mapping(node, links, s)
    kind = {"string": f"text{s}", "integer": f"whole number{s}", "number": f"number{s}", "boolean": "true or false"}
    return kind.get(node["type"], node["type"]) + bounded(node)


def a_list(node: Schema, links: dict[str, str], s: str) -> str:
    if "prefixItems" in node:
        return f"list{s} of {len(node['prefixItems'])} {words(node['prefixItems'][0], links, 's')}"
    if "anyOf" in node["items"]:
        return f"list{s}, each {words(node['items'], links)}"
    return f"list{s} of {words(node['items'], links, 's')}" + bounded(node)


def a_mapping(node: Schema, links: dict[str, str], s: str) -> str:
    if "propertyNames" in node:
        return f"mapping{s} of options"
    return f"mapping{s} of names to {words(node['additionalProperties'], links, 's')}" + bounded(node)


def bounded(node: Schema) -> str:
    """Return the bounds of a number or a size in words."""
    low, high, below = node.get("minimum"), node.get("maximum"), node.get("exclusiveMaximum")
    if any(node.get(key) for key in ("minLength", "minItems", "minProperties")):
        return ", not empty"
    if low is not None and high is not None:
        return f" from {low:,} to {high:,}"
    return (f" ≥ {low:,}" if low is not None else "") + (f" and < {below}" if below is not None else "")


def names() -> Iterator[str]:
    """Yield tables of methods, ablations and orders."""
    rows = ["| method | what it does | its options | default threshold |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        options = ", ".join(f"`{option}`" for option in method.options)
        rows.append(f"| `{name}` | {method.what} | {options} | {method.bound} |")
    yield "\n".join(rows)
    for kind, known in (("ablation", ABLATIONS), ("order", ORDERS)):
        yield "\n".join([f"| {kind} | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in known.items())])
    rows = ["| `acdc export --to` | writes |", "|---|---|"]
    yield "\n".join([*rows, *(f"| `{name}` | {of.what} |" for name, of in FORMATS.items())])
    yield fill(
        "A node of a graph has the attributes `label`, `type` (input, head, mlp or logits), `layer` and a place, `x` "
        "and `y`, an edge `label` (its name), `input` (q, k, v or empty), `score` and `weight` (its magnitude). Direct "
        "edges don't join nodes: they are attributes of the graph. A head's q, k and v are parallel edges; to see each "
        'in Gephi, choose "Don\'t merge" as the merge strategy when it imports the file.'
    )


def anchor(title: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def files() -> dict[Path, str]:
    """Return all generated files: path → content."""
    schemas = {f"schema/{f.name}.schema.json": schema(f) for f in FILES}
    out = {
        DOCS / name: json.dumps(s, indent=1, ensure_ascii=False, sort_keys=True) + "\n" for name, s in schemas.items()
    }
    return out | {DOCS / "reference.md": reference()}


def main() -> None:
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
