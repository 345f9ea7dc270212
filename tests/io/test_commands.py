"""Commands in files and messages: they run when pasted into a shell, whatever the names of files are."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from acdc.model.find import BUNDLED
from tests.support.checkpoints import checkpoint
from tests.support.tasks import TASK

NAMES = ("`touch TOUCHED`;$(touch TOUCHED)", "a  b", '-t it\'s "x"', "sub folder/~é*?[a]b")


def pasted(command, folder):
    """The exit code and stderr of a command line in bash."""
    shell = f'acdc() {{ {sys.executable} -m acdc.start "$@"; }}; {command}'
    done = subprocess.run(["bash", "-c", shell], cwd=folder, capture_output=True, check=False)
    assert not (folder / "TOUCHED").exists()
    return done.returncode, done.stderr.decode(errors="replace")


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_the_recorded_command_makes_the_same_run(acdc, tmp_path, name):
    model, task = tmp_path / "m" / name, tmp_path / f"{name}.yaml"
    for path in (model, task):
        path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint(model)
    task.write_text(TASK.replace("name: mine", f"name: {json.dumps(task.stem)}"))
    result = acdc("run", "--task", f"{name}.yaml", "--model", f"m/{name}", "--out", "first")
    assert result.code == 0, result.err
    first = (tmp_path / "first" / "circuit.json").read_bytes()
    code, err = pasted(json.loads(first)["command"] + " --out again", tmp_path)
    assert code == 0, err
    assert (tmp_path / "again" / "circuit.json").read_bytes() == first


def test_the_command_in_a_warning_runs_too(acdc, tmp_path):
    """A random model can't do the task."""
    name = NAMES[0]
    checkpoint(tmp_path / "m" / name)
    (tmp_path / f"{name}.yaml").write_text(TASK.replace("name: mine", f"name: {json.dumps(name)}"))
    result = acdc("run", "--task", f"{name}.yaml", "--model", f"m/{name}", "--out", "first")
    command = re.findall(r"not be meaningful \((acdc tasks .*)\)$", result.err, re.MULTILINE)[0]
    assert pasted(command, tmp_path) == (0, "")


def test_a_hint_is_quoted(acdc, tmp_path):
    (hint,) = re.findall("(acdc tasks .*)$", acdc("tasks", "--model", "`touch TOUCHED`; x").err)
    assert pasted(hint, tmp_path)[0] == 2


@pytest.mark.slow
def test_commands_of_reruns_run_in_their_folder(acdc, tmp_path):
    """Those of `acdc stability` name the config.yaml beside them, or one above."""
    task = ["--task", "or-gate", "--model", "or-gate"]
    result = acdc(
        "stability", *task, "--seeds", "0", "--resamples", "1", "--orders", "1", "--out", "`touch TOUCHED`; s"
    )
    assert result.code == 0, result.err
    files = [*tmp_path.glob("*/*/circuit.json"), *tmp_path.glob("*/core.json")]
    commands = {path: json.loads(path.read_text())["command"] for path in files}
    stability = {path: command for path, command in commands.items() if "stability" in command}
    assert len(stability) == 3 and len(commands) == 4
    for path, command in stability.items():
        code, err = pasted(f"{command} --out new", path.parent)
        assert code == 0, err
    core = next(path for path in files if path.name == "core.json")
    assert (core.parent / "new" / "core.json").read_bytes() == core.read_bytes()


@pytest.mark.slow
def test_commands_of_a_comparison_run(acdc, tmp_path):
    (tmp_path / "m ;x").symlink_to(BUNDLED / "or-gate")
    command = ["compare", "--tasks", "or-gate", "--model", "./m ;x", "--methods", "acdc", "--sizes", "1", "--no-plots"]
    result = acdc(*command, "--out", "c d")
    assert result.code == 0, result.err
    path = next(iter(sorted(tmp_path.glob("c d/**/threshold-*/circuit.json"))))
    code, err = pasted(json.loads(path.read_text())["command"] + " --out again", tmp_path)
    assert code == 0, err
    assert (tmp_path / "again" / "circuit.json").read_bytes() == path.read_bytes()


def test_names_that_are_not_utf_8(acdc, tmp_path):
    (tmp_path / "\udcff.yaml").write_text("base: {task: or-gate, model: or-gate}\ngrid: {seed: [0]}\n")
    result = acdc("sweep", "\udcff.yaml", "--no-plots")
    assert result.code == 0 and r"files     sweeps/\udcff/" in result.out, result.err
    assert (tmp_path / "sweeps/\udcff/report.html").read_text().count(r"\udcff")
