"""What is on disk after a kill, on a full disk, or beside a second process: nothing is lost, and the same command then
ends with the same bytes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from acdc.commands import run as runner
from acdc.errors import FileError, InUse
from acdc.io.folder import locked
from acdc.methods.discover import CHECKPOINT, LOG, SCORES
from acdc.methods.log import Journal
from acdc.patching import offload as parts
from acdc.registry import METHODS
from tests.support import ROOT, moments
from tests.support.moments import Moments, contents, named
from tests.support.runs import Killed, inputs, killer, of_work, scoring

HOW = ("", " in parts", " --prefilter", " --faithfulness", " --edges")
COMMAND = ("run", "--task", "tracr-reverse", "--model", "tracr-reverse", "--device", "cpu")


class Whole(NamedTuple):
    """An undisturbed run: its files, and its steps in order."""

    files: dict[str, bytes]
    steps: list[str]

    def number(self, step: str) -> int:
        """Return the number of the last step of a kind, from 1."""
        return len(self.steps) - self.steps[::-1].index(step)


def recorded(loaded, out):
    steps = []
    with Moments(out, lambda _, step: steps.append(step)).watched():
        runner.run(loaded, out)
    return Whole(contents(out), named(steps))


@pytest.fixture(scope="module")
def loaded():
    return inputs()


@pytest.fixture(scope="module")
def whole(loaded, tmp_path_factory):
    return recorded(loaded, tmp_path_factory.mktemp("whole") / "run")


def failing(out, number, code=errno.ENOSPC):
    """Let every write below a folder fail from this step on."""

    def act(now, step):
        if now >= number and step[0] in ("opened", "half", "renaming"):
            raise OSError(code, os.strerror(code))

    return Moments(out, act).watched()


def said_last(result):
    """Return the message that a command ends with. Notes may come before it, a traceback may not."""
    assert "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("acdc: ")
    return last


def check_unbroken(out, files):
    """Check that every file is that of a whole run, and the log the beginning of its log."""
    left = contents(out) if out.exists() else {}
    log = left.pop(LOG, b"")
    assert files.get(LOG, b"").startswith(log)
    assert left == {name: files[name] for name in left}  # and no temporary file


# ---------------------------------------------------------------- killed


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.support.moments", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.slow
def test_runs_killed_at_any_moment_end_with_the_same_bytes_and_decide_nothing_twice(killed):
    kills, said = killed
    assert [kill for kill in kills if kill["wrong"]] == [], said
    assert len(kills) >= moments.KILLS
    assert {kill["case"] for kill in kills} >= {"forced", "compare", "stability", "together"}
    assert {kill["case"] for kill in kills} >= {*METHODS, *(f"acdc{how}" for how in HOW)}
    at = {kill["moment"] for kill in kills}
    assert at >= {"start", "end", "progress", f"half {LOG}", f"whole {LOG}", f"removing {CHECKPOINT}"}
    for name in set(runner.FILES) - {LOG}:
        assert at >= {f"{step} {name}" for step in ("opened", "half", "whole", "renaming", "renamed")}, name


def test_a_log_is_not_cut_before_there_is_something_to_put_there(loaded, tmp_path):
    with pytest.raises(Killed):
        runner.run(loaded, tmp_path, progress=killer(5))
    path = tmp_path / LOG
    path.write_bytes(path.read_bytes() + b'{"batch": ')
    before = path.read_bytes()
    for _ in range(3):
        with pytest.raises(Killed):
            runner.run(loaded, tmp_path, progress=killer(1))
        assert path.read_bytes() == before
    journal = Journal(path)
    journal.write([d for d in Journal(path).decisions if d.batch == 1])
    assert len(path.read_bytes().splitlines()) == len(journal.decisions)  # without the torn line and the last batch


# ---------------------------------------------------------------- a disk that is full or can't be written


@pytest.mark.parametrize(
    "step",
    ["opened config.yaml", f"opened {LOG}"]
    + [f"half {name}" for name in ("config.yaml", LOG, "metrics.json", "circuit.svg", "report.html", "circuit.json")]
    + ["renaming circuit.json"],
)
def test_a_full_disk_is_one_message_and_nothing_is_lost(loaded, whole, tmp_path, step):
    out = tmp_path / "run"
    with failing(out, whole.number(step)), pytest.raises(FileError) as caught:
        runner.run(loaded, out)
    name = step.split()[1]
    assert str(caught.value) == f"{out / name}: can't be written (No space left on device)"
    if step == f"half {LOG}":
        log = (out / LOG).read_bytes()
        assert not log.endswith(b"\n") and log.count(b"\n") > 5
    check_unbroken(out, whole.files)
    runner.run(loaded, out)
    assert contents(out) == whole.files


def test_a_full_disk_costs_no_update_of_a_training(tmp_path):
    whole = recorded(scoring("diffmask"), tmp_path / "whole")
    for name in (CHECKPOINT, SCORES):
        out = tmp_path / name
        with failing(out, whole.number(f"half {name}")), pytest.raises(FileError, match=f"{name}: can't be written"):
            runner.run(scoring("diffmask"), out)
        assert (out / CHECKPOINT).exists() == (name == SCORES)
        calls = []
        runner.run(scoring("diffmask"), out, progress=calls.append)
        assert contents(out) == whole.files
        assert len([p for p in calls if of_work(p)]) == (3 if name == CHECKPOINT else 0)


@pytest.mark.parametrize(
    ("code", "step"),
    [(errno.ENOSPC, "half"), (errno.EDQUOT, "renaming"), (errno.EROFS, "opened"), (errno.EACCES, "opened")],
)
def test_what_the_disk_refuses_ends_a_command_with_exit_code_2(acdc, tmp_path, code, step):
    out = tmp_path / "run"

    def act(_, at):
        if at[0] == step:
            raise OSError(code, os.strerror(code))

    with Moments(out, act).watched():
        result = acdc(*COMMAND, "--out", out)
    assert result.code == 2 and result.out == ""
    assert said_last(result) == f"acdc: {out / 'config.yaml'}: can't be written ({os.strerror(code)})"
    assert not out.exists()


@pytest.mark.parametrize("good", [0, 3, 30])  # first files of parts, then of the engine's state
def test_a_full_folder_for_temporary_files_is_one_message(tmp_path, monkeypatch, good):
    written = []

    def full(tensors, path):
        written.append(path)
        if len(written) > good:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    save_file = parts.save_file
    with monkeypatch.context() as patch:
        patch.setattr(parts, "save_file", full)
        with pytest.raises(FileError, match=r"No space left on device.*TMPDIR.*--memory") as caught:
            runner.run(inputs(part=4), tmp_path / "run")
    assert str(caught.value).startswith(f"{written[-1]}: ")
    runner.run(inputs(part=4), tmp_path / "run")
    runner.run(inputs(part=4), tmp_path / "whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_no_folder_for_temporary_files_is_one_message(acdc, monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    with monkeypatch.context() as patch:  # pytest needs temporary files too
        patch.setattr("tempfile.gettempdir", none)
        result = acdc("run", "--task", "greater-than", "--model", "tiny", "--examples", 2, "--memory", "1MB")
    assert result.code == 2 and result.out == ""
    assert result.err.splitlines()[-1].startswith("acdc: No usable temporary directory found in ['/tmp'")


def test_a_result_that_cannot_be_written_is_still_shown(acdc, loaded, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    _, out = runner.run(loaded, tmp_path / "run")
    monkeypatch.setattr(os, "replace", full)
    result = acdc("evaluate", out / "circuit.json", "--device", "cpu", "-o", tmp_path / "x.json")
    assert result.code == 2 and "faithfulness" in result.out
    assert result.err.splitlines()[-1] == f"acdc: {tmp_path / 'x.json'}: can't be written (No space left on device)"


@pytest.fixture
def disk(tmp_path):
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no command to mount a small disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "acdc-test", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk can't be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up(acdc, disk, tmp_path):
    page = os.sysconf("SC_PAGE_SIZE")
    assert acdc(*COMMAND, "--out", tmp_path / "whole").code == 0
    whole, room, failed = contents(tmp_path / "whole"), 0, []
    for name in ("config.yaml", LOG, "metrics.json", "circuit.svg", "report.html", "circuit.json"):
        room += -(-(tmp_path / "whole" / name).stat().st_size // page)
        with (disk / "filler").open("wb") as f:  # leaves one page too few for this file
            f.write(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - (room - 1) * page))
        result = acdc(*COMMAND, "--out", disk / "run")
        assert result.code == 2 and result.out == "", name
        assert said_last(result).endswith(": can't be written (No space left on device)")
        failed.append(said_last(result).split(": ")[1])
        check_unbroken(disk / "run", whole)
        (disk / "filler").unlink()
        assert acdc(*COMMAND, "--out", disk / "run").code == 0
        assert contents(disk / "run") == whole
        shutil.rmtree(disk / "run")
    assert len(set(failed)) >= 4, failed


@pytest.mark.slow
def test_a_full_disk_for_temporary_files(acdc, disk, tmp_path, monkeypatch):
    (tmp_path / "parts.yaml").write_text("{task: ioi, model: tiny, device: cpu, examples: 40, part: 8}")
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    result = acdc("run", "--config", tmp_path / "parts.yaml", "--out", tmp_path / "run")
    assert result.code == 2 and result.out == ""
    message = said_last(result)
    assert message.startswith(f"acdc: {disk}/acdc-") and "No space left on device" in message
    assert "set TMPDIR to a folder that has more" in message


@pytest.mark.slow
def test_a_disk_that_can_only_be_read(acdc, disk, tmp_path):
    assert acdc(*COMMAND, "--out", disk / "whole").code == 0
    shutil.copytree(disk / "whole", disk / "begun")
    (disk / "begun" / "circuit.json").unlink()
    before = contents(disk / "begun")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    circuit = disk / "whole" / "circuit.json"
    for arguments in (
        (*COMMAND, "--out", disk / "begun"),
        (*COMMAND, "--out", disk / "new"),
        ("export", circuit, "--to", "graphml"),
        ("check", circuit, "--against", circuit, "--junit", disk / "junit.xml"),
        ("evaluate", circuit, "--device", "cpu", "-o", disk / "evaluation.json"),
    ):
        result = acdc(*arguments)
        assert result.code == 2, arguments
        assert "Read-only file system" in said_last(result), arguments
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert contents(disk / "begun") == before
    assert acdc(*COMMAND, "--out", disk / "begun").code == 0
    assert contents(disk / "begun") == contents(disk / "whole")


# ---------------------------------------------------------------- clocks


def test_a_clock_that_jumps_changes_nothing(loaded, whole, tmp_path, monkeypatch):
    now = [4e9]

    def clock():  # runs backwards
        now[0] -= 1e6
        return now[0]

    with pytest.raises(Killed):
        runner.run(loaded, tmp_path, progress=killer(6))
    for path, at in zip(sorted(tmp_path.iterdir()), (5e9, 0, 3e9), strict=False):
        os.utime(path, (at, at))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", clock)
        patch.setattr(time, "time_ns", lambda: int(clock() * 1e9))
        runner.run(loaded, tmp_path)
    assert contents(tmp_path) == whole.files  # which checks the seconds too


# ---------------------------------------------------------------- several processes


def test_a_directory_is_never_locked_twice_at_once(tmp_path, monkeypatch):
    release, second = FileLock.release, ExitStack()

    def let_go(lock, *args, **options):
        release(lock, *args, **options)
        monkeypatch.setattr(FileLock, "release", release)
        second.enter_context(locked(tmp_path))  # at once, before the first does anything else

    monkeypatch.setattr(FileLock, "release", let_go)
    with locked(tmp_path):
        pass
    with second, pytest.raises(InUse, match="another acdc process"), locked(tmp_path):
        pytest.fail("two processes hold the lock")
    with locked(tmp_path):
        pass


def test_the_lock_file_of_a_killed_process_blocks_nobody(loaded, whole, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".acdc-0123456789ab.tmp").write_text("half of a circ")
    runner.run(loaded, tmp_path)
    assert contents(tmp_path) == whole.files
