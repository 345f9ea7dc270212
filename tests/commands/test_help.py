"""Help, version, shell completion, and the lists of tasks, models and methods."""

from __future__ import annotations

import re
import shutil

import pytest
from typer.main import get_command

from acdc import cli
from acdc.model.find import BUNDLED
from acdc.registry import METHODS
from acdc.setup.config import Config
from tests.support import ROOT

COMMANDS = get_command(cli.app).commands


def sections(text):
    """The sections of a help text: title → its lines."""
    parts = re.split(r"^(\S.*):\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_all_ways_to_ask_for_help(acdc):
    asked = [acdc(*words) for words in ((), ("-h",), ("--help",), ("help",))]
    assert {(each.code, each.err) for each in asked} == {(0, "")}
    assert len({each.out for each in asked}) == 1
    listed = re.findall(r"^  (\w+)  ", sections(asked[0].out)["Commands"], re.MULTILINE)
    assert listed == list(COMMANDS)
    of_run = [acdc(*words) for words in (("help", "run"), ("run", "-h"), ("run", "--help"))]
    assert len({each.out for each in of_run}) == 1 and "Usage: acdc run" in of_run[0].out
    wrong = acdc("help", "rnu")
    assert wrong.code == 2 and "Did you mean 'run'" in wrong.err and wrong.err.count("\n") == 1


def test_the_version(acdc):
    stated = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert acdc("--version").out == f"acdc {stated[1]}\n"


COMPLETIONS = {
    "acdc st": ["stability"],
    "acdc run --faith": ["--faithfulness"],
    "acdc run --task greater": ["greater-than", "greater-than-digits"],
    "acdc run --model ti": ["tiny"],
    "acdc stability --metric p": ["prob-diff"],
    "acdc run --order pap": ["paper"],
    "acdc evaluate --ablation z": ["zero"],
    "acdc tasks io": ["ioi"],
    "acdc models or": ["or-gate"],
    "acdc methods diff": ["diffmask"],
    "acdc help ev": ["evaluate"],
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_a_shell_completes_commands_options_and_names(acdc, monkeypatch, line):
    monkeypatch.setenv("_ACDC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert acdc().out.split() == COMPLETIONS[line]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_plain_and_groups_options_by_what_they_are_for(acdc, monkeypatch, name):
    monkeypatch.setenv("TERM", "dumb")
    text = acdc(name, "--help").out
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 80
    of_options = sections(text).pop("Options")
    assert re.findall(r"--\w+", of_options) == ["--help"]


def test_the_options_of_a_run_and_their_defaults(acdc):
    shown = sections(acdc("run", "--help").out)
    for title, flags in {
        "Task and model": ("--task", "--model", "--revision", "--examples", "--seed"),
        "Edges to keep": ("--threshold", "--faithfulness", "--edges", "--greedy"),
        "Computation": ("--device", "--dtype", "--batch", "--memory"),
        "Files and output": ("--config", "--out", "--force", "--json"),
    }.items():
        assert set(flags) <= set(re.findall(r"^  (?:-\w, )?(--\w+)", shown[title], re.MULTILINE)), title
    defaults = {}
    for text in shown.values():
        for entry in re.split(r"^  (?=-)", text, flags=re.MULTILINE):
            if found := re.search(r"(--[\w-]+).*\[default: (.*?)\]", " ".join(entry.split())):
                defaults[found[1]] = found[2]
    words = {("direct", True): "direct", ("abs", False): "signed"}
    for key, field in Config.model_fields.items():
        if field.default is not None and not field.is_required():
            assert defaults[f"--{key}"] == words.get((key, field.default), str(field.default))
    for key in ("threshold", "metric", "ablation", "examples", "seed"):
        assert defaults[f"--{key}"] == "the task's"
    assert defaults["--steps"] == "5"  # as Mueller et al. 2025 use EAP-IG


@pytest.mark.parametrize("command", ["tasks", "models", "methods"])
def test_lists_are_tables_of_one_line_each_and_names_have_details(acdc, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    listed = acdc(command)
    assert listed.code == 0
    head, *rows = listed.out.splitlines()
    assert head.startswith(command.removesuffix("s")) and max(map(len, [head, *rows])) <= 80
    for row in rows:
        if "smollm2" in row:  # it takes seconds to load, and may not be installed
            continue
        name = row.split()[0]
        details = acdc(command, name)
        assert details.code == 0 and name in details.out
    monkeypatch.setenv("COLUMNS", "500")
    assert "…" not in acdc(command).out


def test_a_name_has_everything(acdc, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    task = acdc("tasks", "greater-than").out
    assert re.search(r'^clean +"The \w+ lasted from the year 1\d\d\d to 1\d"$', task, re.MULTILINE)
    assert re.search(r'^corrupted +"The \w+ lasted from the year 1\d01 to 1\d"$', task, re.MULTILINE)
    assert "metric kl, threshold 0.01585, examples 100, seed 0, ablation corrupted" in task  # Conmy et al. 2023, app. G
    assert re.search(r"^for tiny +threshold 0.01$", task, re.MULTILINE)
    for name, method in METHODS.items():
        shown = dict(re.split("  +", line, maxsplit=1) for line in acdc("methods", name).out.splitlines())
        stated = {word.split()[0] for key in ("options", "defaults") for word in shown[key].split(", ")}
        assert stated == set(method.options)
        assert ("kl" in shown["metrics"].split(", ")) == (name not in ("eap", "hisp", "relp"))


def test_models_of_a_directory_says_whether_it_can_be_run(acdc, tmp_path):
    shutil.copytree(BUNDLED / "tiny", tmp_path / "mine")
    good = acdc("models", "./mine")
    assert good.code == 0 and re.search("^can be run +yes: its logits", good.out, re.MULTILINE)
    config = tmp_path / "mine" / "config.json"
    config.write_text(config.read_text().replace('"gpt2"', '"mamba"'))
    bad = acdc("models", "./mine")
    assert (bad.code, bad.out) == (2, "")
    assert re.fullmatch(r"acdc: \./mine can't be run: .*model_type 'mamba' is not supported.*\n", bad.err)
    assert "can't be run: config.json: not found" in acdc("models", ".").err
