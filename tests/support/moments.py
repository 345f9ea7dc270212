"""Every step at which a command that writes files can be killed, counted; and a program that kills runs at them.

`python -m tests.support.moments FOLDER` kills runs of every method with SIGKILL, starts each again, and prints one JSON
object a line: what was killed, at which step, and what was wrong afterwards. It loads torch and the models once and
forks for every run, so a kill costs only the part of the run before it. Steps are counted, not timed, so the kills are
the same every time.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from acdc.commands import compare, compare_plan, stability
from acdc.commands import run as runner
from acdc.errors import InUse
from acdc.io.files import open_own
from acdc.methods import masks
from acdc.methods.discover import CHECKPOINT, LOG, SCORES
from acdc.registry import METHODS
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support.runs import of_work

KILLS = 50  # of single runs; comparisons and stability add some
MEASURED = ("cost.json", "compare.json", "table.csv")  # their contents differ between runs
# A task for every method, on a model that takes no time.
TASK = """
name: reverse
version: 1
source: a test's
description: The first of three tokens, said last.
defaults: {metric: logit-diff, threshold: 0.001, examples: 3, seed: 0, model: tracr-reverse}
metrics: [logit-diff]
data:
  rows:
    - {clean: "BOS 1 2 3", corrupted: "BOS 3 2 1", correct: "1", wrong: "3"}
    - {clean: "BOS 2 1 3", corrupted: "BOS 3 1 2", correct: "2", wrong: "3"}
    - {clean: "BOS 3 1 2", corrupted: "BOS 2 1 3", correct: "3", wrong: "2"}
  splits: same
"""
Step = tuple[str, str]  # what happens, and to which file


class Moments:
    """Calls `act` at every step of writing below a folder.

    Args:
        act: called with the number of the step, from 1, and the step; it may kill the process or raise
    """

    def __init__(self, folder: Path, act: Callable[[int, Step], None] = lambda number, step: None) -> None:
        self.folder = folder.resolve()
        self.act = act
        self.number = 0

    def at(self, what: str, path: Path | None = None) -> None:
        self.number += 1
        self.act(self.number, (what, "" if path is None else str(path.resolve().relative_to(self.folder))))

    def inside(self, path: Path) -> bool:
        return self.folder in path.resolve().parents

    @contextmanager
    def watched(self) -> Iterator[None]:
        opened, unlinked, replaced = Path.open, Path.unlink, os.replace

        def open_(path, mode="r", *args, **options):
            file = opened(path, mode, *args, **options)
            return Halved(file, path, self) if set(mode) & set("xwa+") and self.inside(path) else file

        def own(path, mode):
            return Halved(open_own(path, mode), path, self) if self.inside(path) else open_own(path, mode)

        def unlink(path, missing_ok=False):
            if not (self.inside(path) and path.exists()):
                return unlinked(path, missing_ok)
            self.at("removing", path)
            unlinked(path)
            self.at("removed", path)

        def replace(path, to):
            if not self.inside(Path(to)):
                return replaced(path, to)
            self.at("renaming", Path(path))
            replaced(path, to)
            self.at("renamed", Path(to))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "open", open_)
            patch.setattr("acdc.methods.log.open_own", own)
            patch.setattr(Path, "unlink", unlink)
            patch.setattr(os, "replace", replace)
            yield


class Halved:
    """A file that writes its data in two halves, each a step."""

    def __init__(self, file: Any, path: Path, moments: Moments) -> None:
        self._file, self._path, self._at = file, path, moments.at
        self._at("opened", path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Halved:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        half = len(data) // 2
        while data[half - 1 : half] in ("\n", "}", b"\n", b"}"):  # the first half must not end with a whole line
            half -= 1
        self._file.write(data[:half])
        self._file.flush()
        self._at("half", self._path)
        self._file.write(data[half:])
        self._file.flush()
        self._at("whole", self._path)
        return len(data)

    def truncate(self) -> None:
        self._at("cutting", self._path)
        self._file.truncate()
        self._at("cut", self._path)


def named(steps: list[Step]) -> list[str]:
    """Steps as text; temporary files go by their final names."""
    out, name = list[str](), ""
    for i, (what, path) in reversed(list(enumerate(steps))):
        if what == "renaming" and i + 1 < len(steps):
            name = steps[i + 1][1]
        out.append(f"{what} {name if path.endswith('.tmp') else path}".strip())
    return out[::-1]


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by name, without what was measured with a clock."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, data = str(path.relative_to(folder)), path.read_bytes()
        if path.name == "metrics.json":
            content = json.loads(data)
            assert content.pop("cost")["seconds"] >= 0
            data = json.dumps(content).encode()
        measured = path.name in MEASURED or (path.with_name("compare.json").exists() and name == "report.html")
        found[name] = b"" if measured else data
    return found


def secured(log: bytes) -> tuple[bytes, int]:
    """The part of a log that can't get lost, everything but the last batch, and its number of batches."""
    lines = [line for line in log.split(b"\n")[:-1] if line]
    last = json.loads(lines[-1])["batch"] if lines else 1
    return b"".join(line + b"\n" for line in lines if json.loads(line)["batch"] != last), last - 1


def saved_updates(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, "pt") as f:
        return int(f.metadata()["updates"])


Job = Callable[[Path, Callable[[object], None]], object]


def forked(job: Job, out: Path, kill_at: int = 0) -> tuple[int, list[Step]]:
    """Run a job in its own process, killed at a step; return its exit code and its steps."""
    seen = out.parent / f"{out.name}.steps"
    code = ended(begun(job, out, seen, kill_at))
    return code, [tuple(json.loads(line)) for line in seen.read_text().splitlines()]


def begun(job: Job, out: Path, seen: Path, kill_at: int = 0) -> int:
    """Start a process that does a job and writes its steps to a file, and return its id. It exits with 3 if the folder
    is in use."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with seen.open("w") as f:

                def act(number: int, step: Step) -> None:
                    f.write(json.dumps(step) + "\n")
                    f.flush()
                    if number == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)

                moments = Moments(out, act)
                with moments.watched():
                    moments.at("start")
                    job(out, lambda p: moments.at("progress") if of_work(p) else None)
                    moments.at("end")
            code = 0
        except InUse:
            code = 3
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass
class Case:
    """A job to be killed, with the steps and files of a whole run."""

    name: str
    job: Job
    folder: Path
    before: Path | None = None  # what the folder holds at the start

    def __post_init__(self) -> None:
        code, steps = self.run("whole")
        assert code == 0, self.name
        self.steps, self.files = named(steps), contents(self.folder / "whole")
        self.batches = self.steps.count(f"whole {LOG}")

    def run(self, name: str, kill_at: int = 0) -> tuple[int, list[Step]]:
        out = self.folder / name
        self.folder.mkdir(exist_ok=True)
        if not out.exists() and self.before:
            shutil.copytree(self.before, out)
        return forked(self.job, out, kill_at)

    def killed(self, number: int) -> list[str]:
        """Kill the job at a step, start it again, and return what is wrong."""
        wrong, moment, out = [], self.steps[number - 1], self.folder / str(number)

        def expect(right: bool, what: str) -> None:
            if not right:
                wrong.append(what)

        code, steps = self.run(out.name, number)
        expect(code == -signal.SIGKILL and len(steps) == number, f"exit code {code} after {len(steps)} steps")
        left = [path.stat().st_size for path in out.rglob(".acdc-*.tmp")] if out.exists() else []
        log = (out / LOG).read_bytes() if (out / LOG).exists() else b""
        if moment.startswith(("half", "whole", "renaming")) and not moment.endswith(LOG):
            expect(len(left) == 1 and left[0] > 0, f"temporary files of {left} bytes")
        expect((moment == f"half {LOG}") == bool(log and not log.endswith(b"\n")), "a log with or without a torn end")
        if self.before:  # --force uses none of it
            log = b""
        kept, batches = secured(log)
        expect(self.files.get(LOG, b"").startswith(kept), "decisions on disk that are not those of a whole run")
        finished, known = (out / "circuit.json").exists() and not self.before, (out / SCORES).exists()
        updates = saved_updates(out / CHECKPOINT)

        code, steps = self.run(out.name)
        expect(code == 0, "the second start fails")
        now = contents(out)
        expect(now.keys() == self.files.keys(), f"files {sorted(now)}")
        expect(not [k for k in now if now[k] != self.files.get(k)], "other bytes")
        if self.batches:  # decisions on disk are not taken again
            again = named(steps).count(f"whole {LOG}")
            expect(again == (0 if finished else self.batches - batches), f"{again} batches decided after {batches}")
        elif f"opened {CHECKPOINT}" in self.steps:  # nor are updates made again
            again = named(steps).count("progress")
            total = self.steps.count("progress")
            expect(again == (0 if finished or known else total - updates), f"{again} updates made after {updates}")
        return wrong


def killed_again_and_again(case: Case, rng: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Kill one run at random steps until it ends. Its log never loses what was safe on disk.

    Yields: the step of each kill, and what is wrong.
    """
    name, kept = "again", b""
    while True:
        at = rng.choice(
            (2, 4, *(rng.randrange(1, len(case.steps)) for _ in range(2)))
        )  # often before it writes anything new
        code, steps = case.run(name, at)
        log = case.folder / name / LOG
        now, words, wrong = log.read_bytes() if log.exists() else b"", named(steps), []
        if not now.startswith(kept):
            wrong.append("decisions that were on disk are lost")
        for i, word in enumerate(words[:-2]):
            if word == f"cut {LOG}" and words[i + 1] != f"opened {LOG}":
                wrong.append("the log was cut before there was anything to put there")
        kept, _ = secured(now)
        if code == 0:
            if contents(case.folder / name) != case.files:
                wrong.append("other bytes")
            yield "the end", wrong
            return
        yield words[-1], wrong


def together(case: Case, processes: int) -> list[str]:
    """Start the same run in several processes at once, and return what is wrong."""
    out = case.folder / "together"
    started = [begun(case.job, out, case.folder / f"together-{i}.steps") for i in range(processes)]
    codes = [ended(pid) for pid in started]
    wrong = [] if 0 in codes and set(codes) <= {0, 3} else [f"exit codes {codes}"]
    return wrong + (["other bytes"] if contents(out) != case.files else [])


def chosen(cases: list[Case], total: int, rng: random.Random) -> list[tuple[Case, int]]:
    """Steps to kill at: one of every kind for every file, one of every case, and random ones."""
    every = [(case, i) for case in cases for i in range(1, len(case.steps) + 1)]
    kinds = dict.fromkeys(case.steps[i - 1] for case, i in every)
    out = [rng.choice([(c, i) for c, i in every if c.steps[i - 1] == kind]) for kind in kinds]
    out += [(c, rng.randrange(1, len(c.steps) + 1)) for c in cases if c not in [c for c, _ in out]]
    rest = [one for one in every if one not in out]
    return out + rng.sample(rest, max(0, total - len(out)))


def of_run(task: str, force: bool = False, **given: Any) -> Job:
    """A run whose inputs are loaded once."""
    config, checked, _ = resolve({"task": task, "dtype": "float64", "device": "cpu", **given}, None, None)
    inputs = load(config, checked)
    return lambda out, show: runner.run(inputs, out, force, progress=show)


def of_comparison(task: str) -> Job:
    def job(out: Path, show: Callable[[object], None]) -> object:
        methods = "eap-ig,diffmask,eap-ig:0.5+acdc"
        wanted = {"tasks": task, "methods": methods, "sizes": "8", "greedy": False, "reference": None, "updates": 2}
        plan, _ = compare_plan.make_plan({"device": "cpu"}, {**wanted, "out": out}, None)
        return compare.compare(plan, None, False, show, lambda _: None)

    return job


def of_stability(out: Path, show: Callable[[object], None]) -> object:
    given = {"task": "or-gate", "device": "cpu"}
    plan, _ = stability.make_plan(given, None, {"seeds": 0, "resamples": 0, "orders": 2}, 0.9, out, None)
    return stability.stability(plan, None, show, lambda _: None)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    masks.SAVED_EVERY, compare.THRESHOLDS = 1, 2
    tempfile.tempdir = str(folder / "temporary")
    Path(tempfile.tempdir).mkdir()
    (folder / "reverse.yaml").write_text(TASK)
    task, l2 = str(folder / "reverse.yaml"), "tracr-reverse"
    of_run(l2)(folder / "warm", lambda _: None)  # imports and caches that all forks share
    jobs = {
        "acdc": of_run(l2, batch=4),
        "acdc in parts": of_run(l2, batch=4, part=4),
        "acdc --prefilter": of_run(task, batch=4, prefilter="eap:0.5"),
        "acdc --faithfulness": of_run(l2, faithfulness=0.9),
        "acdc --edges": of_run(l2, edges=8, part=4),
    }
    for method in sorted(set(METHODS) - {"acdc"}):
        options = {"updates": 3} if "updates" in METHODS[method].options else {}
        jobs[method] = of_run(task, method=method, edges=8, **options)
    cases = [Case(name, job, folder / name.replace(" ", "-")) for name, job in jobs.items()]
    rng = random.Random(0)
    kills = chosen(cases, KILLS, rng)
    whole = cases[0].folder / "whole"
    forced = Case("forced", of_run(l2, True, batch=4, threshold=0.1), folder / "forced", whole)
    compared = Case("compare", of_comparison(task), folder / "compare")
    repeated = Case("stability", of_stability, folder / "stability")
    for case, kind in (
        (forced, "removed .*"),
        (compared, f"renamed .*/{SCORES}"),  # after its cost is recorded
        (compared, "half .*/cost.json"),
        (repeated, "half .*/circuit.json"),
    ):
        some = [i for i, step in enumerate(case.steps, 1) if re.fullmatch(kind, step)]
        kills += [(case, i) for i in rng.sample(some, 2)]

    def report(case: Case, moment: str, wrong: list[str]) -> None:
        print(json.dumps({"case": case.name, "moment": moment, "wrong": wrong}), flush=True)

    for case, i in kills:
        report(case, case.steps[i - 1], case.killed(i))
    for moment, wrong in killed_again_and_again(cases[0], rng):
        report(cases[0], moment, wrong)
    print(json.dumps({"case": "together", "moment": "", "wrong": together(cases[0], 6)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
