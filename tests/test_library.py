"""The package from Python: the README's lines as they stand there, the command line's circuits and its messages."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from inspect import signature
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import acdc
from acdc import cli, library
from acdc.commands import evaluate as evaluation
from acdc.files.circuit import CircuitFile, read_circuit
from acdc.graph.circuit import Circuit
from acdc.io.files import to_json
from acdc.model.load import Model
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
    assert used == {*acdc.__all__} - {"UserError"}
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
    assert python(f"import sys, acdc; print({heavy}, acdc.UserError.__name__, dir(acdc) == acdc.__all__)") == (
        "[] UserError True\n"
    )
    assert python(f"import sys, acdc.cli; print({heavy})") == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        acdc.evaluat  # noqa: B018


def test_the_module_evaluate_does_not_take_the_place_of_the_function():
    code = "import acdc.commands.run, acdc.commands.evaluate, acdc.evaluation; print(acdc.evaluate.__module__)"
    assert python(code) == "acdc.library\n"


def test_options_are_those_of_the_command_line(tmp_path, call, tiny):
    circuit = acdc.discover(tiny, "ioi", **EAP)
    assert not list(tmp_path.iterdir()) and not circuit._inputs._parts  # neither files nor activations are left
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
    "another method's": (lambda m, t: acdc.discover(m, t, steps=5), "--steps: method acdc has no steps; it has"),
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
    model = acdc.load_model("or-gate", torch.device("cpu"), torch.float64)
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
    known = {*library.OPTIONS, *library.OF_MODEL, "task", "model", "out", "force", "memory"}
    assert flags - {"json", "config", "revision"} == known  # a revision is a part of the model's name


def test_nothing_is_said_of_a_model_that_can_do_the_task(tiny, task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acdc.discover(tiny, task, examples=50)
