"""The package from Python: the README's lines as they stand there, the command line's circuits and its messages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import acdc
from acdc import cli
from acdc.commands import evaluate as evaluation
from acdc.files.circuit import CircuitFile, read_circuit
from acdc.graph.circuit import Circuit
from acdc.io.files import to_json
from acdc.library import circuits
from acdc.model.load import Model
from acdc.registry import METHODS
from acdc.task.schema import Task
from tests.support import ROOT
from tests.support.checkpoints import checkpoint
from tests.support.docs import blocks
from tests.support.tasks import TASK

EAP = {"method": "eap", "metric": "logit-diff", "edges": 20, "examples": 30, "seed": 3}


@pytest.fixture(scope="module")
def tiny() -> Model:
    return acdc.load_model("tiny")


@pytest.fixture(scope="module")
def task() -> Task:
    return acdc.load_task("greater-than")


@pytest.fixture(scope="module")
def few(tiny, task) -> CircuitFile:
    return acdc.discover(tiny, task, examples=5, threshold=0.5)


@pytest.fixture
def mine(tmp_path, call):
    """An empty folder, and in it a random model and a task of our own, with names that are no HTML."""
    checkpoint(tmp_path / "<script>model")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "<script>mine.yaml").write_text(TASK.replace("name: mine", "name: <script>mine"))
    return "./<script>model", "tasks/<script>mine.yaml"


def python(code: str, folder: Path | None = None) -> str:
    """What a new process prints."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_lines_of_the_readme_run_and_give_the_circuit_of_the_command_line(tmp_path, call):
    (code,) = blocks("python", ROOT / "README.md")
    used = set(re.findall(r"acdc\.(\w+)\(", code))
    assert used == {"discover", "evaluate", "load_model", "load_task", "save"}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {name for name in acdc.__all__ if f"acdc.{name}" not in text} == set()
    (tmp_path / "empty").mkdir()
    printed = python(code, tmp_path / "empty")
    assert re.search(r"faithfulness ↑ +0\.\d+ \[0\.\d+, 0\.\d+\]", printed)
    assert [p.name for p in (tmp_path / "empty").iterdir()] == ["greater-than.json"]
    call("run", "--task", "greater-than", "--model", "tiny", "--threshold", "0.01", "--out", "run")
    circuit = tmp_path / "run" / "circuit.json"
    assert (tmp_path / "empty" / "greater-than.json").read_bytes() == circuit.read_bytes()
    assert call("evaluate", circuit)[1] in printed


def test_importing_the_package_is_cheap():
    heavy = "[name for name in ('torch', 'numpy', 'pydantic', 'tqdm', 'jinja2', 'matplotlib') if name in sys.modules]"
    names = "dir(acdc) == sorted([*acdc.__all__, '__version__'])"
    assert python(f"import sys, acdc; print({heavy}, acdc.UserError.__name__, {names})") == "[] UserError True\n"
    assert python(f"import sys, acdc.cli; print({heavy})") == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        acdc.evaluat  # noqa: B018


def test_no_module_takes_the_place_of_a_function():
    imports = "import acdc.commands.run, acdc.commands.evaluate, acdc.evaluation, acdc.methods.acdc, acdc.task"
    names = f"import acdc; a = acdc.methods(); {imports}; print(acdc.evaluate.__module__, a == acdc.methods(), *a)"
    assert python(names).split() == ["acdc.library.circuits", "True", *METHODS]


def test_tasks_methods_and_the_version_are_listed():
    assert acdc.methods()["acdc"] == METHODS["acdc"].what
    assert [*acdc.tasks()] == sorted(path.stem for path in (ROOT / "tasks").glob("*.yaml"))
    assert acdc.tasks()["ioi"] == acdc.load_task("ioi").description
    assert acdc.__version__ == version("acdc-circuits")


def test_options_are_those_of_the_command_line(tmp_path, call, tiny):
    circuit = acdc.discover(tiny, "ioi", **EAP)
    assert not list(tmp_path.iterdir())  # no files are left
    flags = [part for key, value in EAP.items() for part in (f"--{key}", value)]
    code, printed, _ = call("run", "--task", "ioi", "--model", "tiny", *flags, "--out", "run")
    assert code == 0
    acdc.save(circuit, "saved.json")
    assert Path("saved.json").read_bytes() == Path("run/circuit.json").read_bytes()
    assert str(circuit) == repr(circuit) == printed.split("\n\nfiles")[0]
    other = acdc.discover("tiny", "ioi", **EAP)
    assert circuit == other == read_circuit(Path("saved.json"))
    assert circuit != acdc.discover(tiny, "ioi", **EAP | {"edges": 21})


def test_out_is_the_directory_of_a_run_that_the_command_line_goes_on_with(call, tiny, task):
    circuit = acdc.discover(tiny, task, out="run", memory="4GB")
    assert circuit == read_circuit(Path("run/circuit.json"))
    files = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    options = ["--task", "greater-than", "--model", "tiny", "--device", tiny.transformer.device.type]
    assert call("run", *options, "--out", "run")[0] == 0
    assert files == {path.name: path.read_bytes() for path in Path("run").iterdir()}
    with pytest.raises(acdc.UserError, match="another config"):
        acdc.discover(tiny, task, out="run", threshold=0.3)
    assert acdc.discover(tiny, task, out="run", threshold=0.3, force=True).method.threshold == 0.3


def test_a_task_of_ones_own(mine, call):
    model, task = acdc.load_model(mine[0]), acdc.load_task(mine[1])
    with pytest.warns(UserWarning, match="^<script>model can't do <script>mine") as warned:
        circuit = acdc.discover(model, task)
    assert [w.filename for w in warned] == [__file__] and str(circuit).endswith(circuit.notes[-1])
    call("run", "--task", mine[1], "--model", mine[0], "--out", "run")
    acdc.save(circuit, "saved.json")
    assert Path("saved.json").read_bytes() == Path("run/circuit.json").read_bytes()
    result = acdc.evaluate(circuit)
    assert result == acdc.evaluate("run/circuit.json") == acdc.evaluate("saved.json", model, task)
    assert result == acdc.evaluate(read_circuit(Path("saved.json")), *mine)
    with pytest.raises(acdc.UserError, match="for a file of your own"):
        acdc.evaluate("saved.json", model)
    Path(mine[1]).unlink()
    assert acdc.evaluate(circuit) == result
    again = acdc.evaluate(circuit, seed=1)
    assert again != result and "--seed 1: other prompts" in str(again)


def test_evaluation_is_that_of_the_command_line_with_the_model_that_is_loaded(call, tiny, task, monkeypatch):
    circuit = acdc.discover(tiny, task, out="run")
    _, printed, _ = call("evaluate", "run/circuit.json", "--minimality", "3", "--json")
    monkeypatch.setattr(evaluation, "open_checkpoint", None)
    monkeypatch.setattr("acdc.setup.inputs.load_model", None)
    for result in (acdc.evaluate(circuit, minimality=3), acdc.evaluate("run/circuit.json", tiny, minimality=3)):
        assert to_json(result) == printed


def test_a_model_in_float64_stays_so(task):
    model = acdc.load_model("tiny", dtype="float64", device="cpu")
    circuit = acdc.discover(model, task, examples=5)
    assert circuit.method.dtype == acdc.evaluate(circuit, minimality=0).dtype == "float64"
    assert acdc.evaluate(circuit, acdc.load_model("tiny"), minimality=0).dtype == "float32"


@pytest.mark.filterwarnings("ignore:.*can't do")
def test_a_circuit_shows_itself_and_nothing_in_it_is_markup(mine):
    circuit = acdc.discover(*mine)
    shown = circuit._repr_html_()
    page = ElementTree.fromstring(f"<html>{shown}</html>")
    assert [part.tag for part in page] == ["{http://www.w3.org/2000/svg}svg", "pre"]
    assert not [tag for tag in page.iter() if "script" in str(tag.tag)]
    for part in page:  # title and counts stand in both, the metrics in the table
        assert "<script>mine in <script>model" in "".join(part.itertext())
        assert f"{circuit.graph.edges.kept} of {circuit.graph.edges.total}" in "".join(part.itertext())
    assert page[1].text == str(circuit) and f"{circuit.metrics['held_out.circuit.kl']:.4f}" in str(circuit)


def test_the_arrays_show_themselves_too(tiny, task):
    circuit = acdc.discover(tiny, task).circuit()
    for shown in (circuit, Circuit.empty(circuit.graph)):
        picture = ElementTree.fromstring(shown._repr_html_())
        assert picture.tag.endswith("svg") and picture.get("style")
        edges = [e for e in picture.iter("{http://www.w3.org/2000/svg}g") if "->" in e.get("id", "")]
        assert {e.get("id").removeprefix("a_") for e in edges} == set(shown.edge_names())


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_if_it_is_asked_for(capfd, monkeypatch, tiny, task, shown):
    monkeypatch.setattr("acdc.io.progress.LINE_EVERY", 0.0)
    circuit = acdc.discover(tiny, task, examples=5, progress=shown)
    acdc.evaluate(circuit, progress=shown)
    out, err = capfd.readouterr()
    assert not out and ("search, " in err) == ("random circuits, " in err) == shown


MISTAKES = {
    "unknown option": (
        lambda m, t: acdc.discover(m, t, treshold=0.1),
        "unknown option 'treshold'. Did you mean 'thres",
    ),
    "the model's": (
        lambda m, t: acdc.discover(m, t, dtype="float64"),
        "--dtype: the model has one already; give it to",
    ),
    "unknown method": (lambda m, t: acdc.discover(m, t, method="eep"), "--method: unknown method 'eep'. Did you mean"),
    "another method's": (lambda m, t: acdc.discover(m, t, steps=5), "--steps: does not apply to acdc, which has"),
    "no number": (
        lambda m, t: acdc.discover(m, t, threshold="low"),
        "--threshold: should be a valid number",
    ),
    "no threshold": (
        lambda m, t: acdc.discover(m, t, threshold=-1),
        "--threshold: should be greater than or equal to 0, got -1",
    ),
    "too many": (lambda m, t: acdc.discover(m, t, **EAP | {"edges": 4000}), "--edges: 4000 of 479 residual edges"),
    "no size": (lambda m, t: acdc.discover(m, t, memory="much"), "--memory: 'much' is not a size; write it as 4GB"),
    "no size to judge in": (lambda m, t: acdc.evaluate("golden.json", memory="1"), "--memory: '1' is not a size"),
    "unknown model": (lambda m, t: acdc.discover("tyny", t), "Did you mean 'tiny'"),
    "unknown task": (lambda m, t: acdc.discover(m, "iio"), "unknown task 'iio'. Did you mean 'ioi'"),
    "unknown dtype": (lambda m, t: acdc.load_model("tiny", dtype="float46"), "--dtype: unknown dtype 'float46'. Did"),
    "unknown device": (lambda m, t: acdc.load_model("tiny", device="gpu"), "--device gpu"),
    "no circuit": (lambda m, t: acdc.evaluate("none.json"), "none.json"),
    "fewer than none": (lambda m, t: acdc.evaluate("golden.json", minimality=-1), "--minimality: is -1; it must be 0"),
    "another model": (
        lambda m, t: acdc.evaluate("golden.json", "or-gate"),
        "golden.json: the circuit's graph has",
    ),
    "no such folder": (
        lambda m, t: acdc.save(read_circuit(Path("golden.json")), "none/c.json"),
        "none/c.json: can't be",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(call, tiny, task, few, name):
    mistake, says = MISTAKES[name]
    acdc.save(few, "golden.json")
    with pytest.raises(acdc.UserError) as error:
        mistake(tiny, task)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in Path().iterdir()] == ["golden.json"]


WRONG = (None, 1.5, [], {}, b"x", object())
PLACES = {
    "load_model": acdc.load_model,
    "load_model's device": lambda x: acdc.load_model("or-gate", device=x),
    "load_model's dtype": lambda x: acdc.load_model("or-gate", dtype=x),
    "load_task": acdc.load_task,
    "discover's model": lambda x: acdc.discover(x, "or-gate"),
    "discover's task": lambda x: acdc.discover("or-gate", x),
    "evaluate": acdc.evaluate,
    "save": lambda x: acdc.save(x, "c.json"),
    "save's path": lambda x: acdc.save(CircuitFile.model_construct(), x),
    "evaluate's minimality": lambda x: acdc.evaluate("c.json", minimality=x),
    "discover's force": lambda x: acdc.discover("or-gate", "or-gate", force=x),
    **{
        f"{name}'s {key}": lambda x, call=call, key=key: call(**{key: [] if x is None else x})  # None is the default
        for name, call, keys in (
            ("discover", lambda **given: acdc.discover("or-gate", "or-gate", **given), ("out", "memory", "examples")),
            ("evaluate", lambda **given: acdc.evaluate("c.json", **given), ("model", "task", "examples", "seed")),
        )
        for key in keys
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_an_argument_of_another_type_is_one_line(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    for value in WRONG:
        with pytest.raises(acdc.UserError) as error:
            PLACES[place](value)
        message = str(error.value)
        assert "\n" not in message and message.startswith((f"{place.split(chr(39))[0]}: ", "--")), message
    assert not list(tmp_path.iterdir())


def test_the_message_names_argument_types_and_value():
    with pytest.raises(acdc.UserError, match=r"^discover: task should be Task or str, got \['ioi'\]$"):
        acdc.discover("tiny", ["ioi"])
    with pytest.raises(acdc.UserError, match=r"^evaluate: examples should be int or None, got '5'$"):
        acdc.evaluate("c.json", examples="5")


def test_dtypes_and_devices_of_torch_are_understood():
    model = acdc.load_model("or-gate", device=torch.device("cpu"), dtype=torch.float64)
    assert model.transformer.dtype == torch.float64
    with pytest.raises(acdc.UserError, match="--dtype: float16 can't tell apart changes"):
        acdc.load_model("tiny", dtype=torch.float16)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x" * 300 + ".yaml", "./a\0", "", "/", "/dev/null"])
def test_a_name_that_no_file_can_have_is_one_line(few, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: acdc.save(few, name),
        lambda: acdc.load_task(name),
        lambda: acdc.load_model(name),
        lambda: acdc.evaluate(name),
        lambda: acdc.discover("or-gate", "or-gate", out=name),
    ):
        with pytest.raises(acdc.UserError):
            call()
    assert not list(tmp_path.iterdir())


def test_every_option_of_the_command_is_one_of_the_library():
    flags = {name.rstrip("_") for name in signature(cli.run).parameters}
    known = {*circuits.OPTIONS, *circuits.OF_MODEL, "task", "model", "out", "force", "memory"}
    shown = {"json", "quiet", "verbose"}
    assert flags - shown - {"config", "revision"} == known  # a revision is a part of the model's name


def test_nothing_is_said_of_a_model_that_can_do_the_task(tiny, task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acdc.discover(tiny, task, examples=50)


# ---------------------------------------------------------------- modules of transformers, rows, circuits in files


@pytest.fixture
def module(tmp_path):
    """A random GPT-2 of transformers with its tokenizer, and their directory."""
    checkpoint(tmp_path / "saved")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    return model, transformers.AutoTokenizer.from_pretrained(tmp_path / "saved"), tmp_path / "saved"


ROWS = [
    {"clean": f"{x} {z} b", "corrupted": f"{y} {z} b", "correct": f" {x}", "wrong": f" {y}"}
    for x, y, z in (("a", "b", "c"), ("b", "a", "c"), ("c", "a", "b"), ("a", "c", "a"))
]


@pytest.mark.filterwarnings("ignore:.*may not be able|.*can't do")
def test_a_module_of_transformers_gives_the_circuit_of_its_directory_and_stays_as_it_is(module):
    given, tokenizer, folder = module
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    task = acdc.load_task(ROWS, name="mine")
    model = acdc.load_model(given, tokenizer, dtype="float64", device="cpu")
    assert model.name == str(folder) and model.verification.difference < 1e-9
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.state_dict().items())
    found = acdc.discover(model, task, threshold=0.001)
    saved = acdc.discover(acdc.load_model(folder, dtype="float64", device="cpu"), task, threshold=0.001)
    assert found.edges == saved.edges and found.edges
    assert (found.model.name, found.model.family) == ("saved", "gpt2")
    assert found.model.hash != saved.model.hash  # one of tensors, one of a file
    assert "saved was a module in memory; model.hash is of its tensors, not of files" in found.notes
    assert acdc.load_model(given, tokenizer).hash == found.model.hash
    given.transformer.wte.weight.data += 1  # as training does
    assert acdc.discover(model, task, threshold=0.001) == found
    assert acdc.load_model(given, tokenizer, name="later").hash != found.model.hash
    half = acdc.load_model(given.to(torch.bfloat16), tokenizer)
    assert (half.transformer.dtype, given.dtype) == (torch.float32, torch.bfloat16)


class HookedTransformer(torch.nn.Module):
    """As TransformerLens's: it has a `cfg`."""

    cfg = None


def test_what_is_no_such_module_is_one_line(module):
    given, tokenizer, _ = module
    for call, says in (
        (lambda: acdc.load_model(given), "give its tokenizer, too, a fast one of transformers, got None"),
        (lambda: acdc.load_model(given.transformer, tokenizer), "GPT2Model has no language-model head; load it with"),
        (
            lambda: acdc.load_model(torch.nn.Linear(1, 1), tokenizer),
            "Linear: has no config with a model_type, as modules of",
        ),
        (
            lambda: acdc.load_model(HookedTransformer(), tokenizer),
            "is TransformerLens's; give a module as transformers loads",
        ),
        (lambda: acdc.load_model("tiny", tokenizer), "load_model: tokenizer and name are for a module"),
    ):
        with pytest.raises(acdc.UserError) as error:
            call()
        assert says in str(error.value) and "\n" not in str(error.value)
    given.config.model_type = "glm4"
    with pytest.raises(acdc.UserError, match="model_type 'glm4' is not supported: it rotates"):
        acdc.load_model(given, tokenizer)


class Frame:
    """What of a pandas DataFrame is used."""

    columns = ("clean", "corrupted", "correct", "wrong")

    def __init__(self, rows):
        self.rows = rows

    def to_dict(self, orient):
        assert orient == "records"
        return [{name: row.get(name, float("nan")) for name in self.columns} for row in self.rows]


def test_rows_are_the_task_of_a_file_with_these_rows(tmp_path):
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, version: 1, source: x, description: y, metrics: [kl, logit-diff, prob-diff, nll, l2],"
        " data: {file: mine.jsonl, padding: left}, defaults: {metric: kl, threshold: 0.01, examples: 2}}"
    )
    task, of_file = acdc.load_task(ROWS, name="mine"), acdc.load_task(tmp_path / "mine.yaml")
    told = {"source": True, "description": True, "data": {"file"}}
    assert task.model_dump(exclude=told) == of_file.model_dump(exclude=told)
    assert acdc.load_task(Frame(ROWS), name="mine") == task
    (row,) = acdc.load_task(Frame([{"clean": "a", "corrupted": "b"}])).data.rows
    assert row.correct is None  # an empty cell
    only = acdc.load_task([{"clean": "a", "corrupted": "b"}], data={"bos": True}, defaults={"threshold": 0.5})
    assert (only.metrics, only.data.splits) == (("kl", "l2"), "same")
    assert (only.data.bos, only.defaults.threshold, only.defaults.metric) == (True, 0.5, "kl")


@pytest.mark.parametrize(
    ("rows", "keys", "says"),
    [
        ([{"clean": "a", "corupted": "b"}], {}, "load_task: row 1: unknown key 'corupted'. Did you mean 'corrupted'"),
        ([{"clean": "a"}, {"clean": 3}], {}, "load_task: row 2: clean: "),
        (["a"], {}, "load_task: row 1: "),
        (ROWS, {"metric": "kl"}, "rows: unknown key 'metric'"),
        ("ioi", {"version": 2}, "load_task: version: is for rows; 'ioi' states its own"),
    ],
)
def test_wrong_rows_are_named(rows, keys, says):
    with pytest.raises(acdc.UserError) as error:
        acdc.load_task(rows, **keys)
    assert says in str(error.value)


def test_circuits_are_read_from_files_and_directories(call, few, tiny, task):
    acdc.save(few, "circuit.json")
    read = acdc.load_circuit("circuit.json")
    assert read == few and "held out kl ↓" in str(read)
    assert acdc.load_circuit(".") == few
    assert acdc.evaluate(read, tiny, task, minimality=0) == acdc.evaluate(few, minimality=0)
    call("export", "circuit.json", "--to", "eap-ig", "-o", "eap.json")
    theirs = acdc.load_circuit("eap.json", "greater-than", "tiny")
    assert [edge.name for edge in theirs.edges] == few.circuit().edge_names()
    assert "unknown (EAP-IG file)" in str(theirs) and theirs._repr_html_()
    same = acdc.evaluate(theirs, tiny, examples=5, minimality=0).measured.circuit
    assert same == pytest.approx(acdc.evaluate(few, minimality=0).measured.circuit, rel=1e-5)
    with pytest.raises(acdc.UserError, match="give --task TASK and --model MODEL"):
        acdc.load_circuit("eap.json")


# ---------------------------------------------------------------- comparisons


def test_comparisons_and_reruns_are_those_of_the_command_line(call):
    model = acdc.load_model("or-gate", device="cpu")
    found = acdc.compare(model, "or-gate", methods=["edge-patching", "random"], sizes=[2, 4], out="compare")
    options = ("--model", "or-gate", "--methods", "edge-patching,random", "--sizes", "2,4", "--out", "compare")
    assert call("compare", "--tasks", "or-gate", *options, "--no-plots", "--json")[1] == to_json(found)
    assert repr(found).startswith("or-gate in or-gate: l2")
    repeated = acdc.stability(model, "or-gate", seeds=0, resamples=1, orders=1, out="again")
    options = ("--seeds", 0, "--resamples", 1, "--orders", 1, "--out", "again")
    assert call("stability", "--task", "or-gate", "--model", "or-gate", *options, "--json")[1] == to_json(repeated)
    assert repr(repeated).startswith("base run")
    for wrong in (
        lambda: acdc.compare(model, "or-gate", sises=[2]),
        lambda: acdc.stability(model, "or-gate", prefilter="eap:0.5"),
    ):
        with pytest.raises(acdc.UserError, match="unknown option"):
            wrong()


def test_results_are_tables_and_curves_in_a_notebook(few):
    for result, parts in (
        (acdc.evaluate(few, minimality=0), ["table", "details"]),
        (acdc.compare("or-gate", "or-gate", methods=["random"], sizes=[2]), ["img", "img", "details"]),
    ):
        page = ElementTree.fromstring(f"<html>{result._repr_html_()}</html>")
        assert [part.tag for part in page] == parts
        assert page[-1][-1].text == repr(result)
