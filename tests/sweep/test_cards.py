"""Which GPU each process of a sweep gets, and how many share one; the GPUs are made up."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml

from acdc.errors import UserError
from acdc.setup.memory import SPARE, expected
from acdc.sweep import executors, plan
from acdc.sweep.plan import make_plan, overview
from acdc.sweep.slurm import Cluster
from acdc.sweep.worker import Worker

GIVEN = dict.fromkeys(("executor", "workers", "threads", "memory", "retry", "plots"))
RUNS = {"base": {"task": "or-gate", "model": "or-gate"}, "grid": {"seed": list(range(12))}}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A function that plans 12 runs for two cards with `room` for so many runs, or GB if they are bounded."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(plan, "pick_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(plan.os, "sched_getaffinity", lambda _: range(8), raising=False)
    needed = []
    monkeypatch.setattr(plan, "expected", lambda *a, **k: needed.append(expected(*a, **k)) or needed[-1])

    def planned(room, content=RUNS, **given):
        each = lambda: needed[-1] / SPARE if needed else 1e9  # noqa: E731
        monkeypatch.setattr(plan, "default_memory", lambda device: room[device.index] * each())
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump(content))
        return make_plan(path, tmp_path / "out", GIVEN | given, lambda _: True, lambda: ("or-gate", None))[0]

    return planned


@pytest.mark.parametrize(
    ("room", "given", "cards"),
    [
        ((1.5, 1.5), {}, ["0", "1"]),
        ((0.1, 0.1), {}, ["0", "1"]),  # prompts in parts, or too little memory: one each
        ((2.0, 2.9), {}, ["0", "1", "0", "1"]),
        ((3.5, 1.2), {}, ["0", "1"]),  # the smallest one decides
        ((90, 90), {}, ["0", "1"] * 4),  # no more than cores
        ((2.0, 2.0), {"workers": 3}, ["0", "1", "0"]),
        ((1.0, 1.0), {"workers": 5}, ["0", "1", "0", "1", "0"]),
    ],
)
def test_as_many_runs_share_a_card_as_fit(sweep, room, given, cards):
    found = sweep(room, **given)
    assert found.executor.cards == cards
    assert found.executor.threads == max(1, 8 // len(cards))
    assert f"on {len(cards)} × {found.executor.threads} threads, 2 cards" in overview(found)


def test_a_bound_on_memory_says_how_many_fit(sweep):
    assert sweep((35, 29), RUNS | {"memory": "10GB"}).executor.cards == ["0", "1"] * 2
    assert sweep((35, 35), memory=20e9).executor.cards == ["0", "1"]


def test_only_visible_cards_are_dealt_out_and_none_to_the_cpu(sweep, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-a1b2")
    assert sweep((1, 1)).executor.cards == ["5", "GPU-a1b2"]
    on_cpu = {**RUNS, "base": RUNS["base"] | {"device": "cpu"}}
    assert sweep((1, 1), on_cpu).executor.cards == []
    named = {**RUNS, "base": RUNS["base"] | {"device": "cuda:1"}}
    with pytest.raises(UserError, match=r"s\.yaml: device cuda:1: .* use device cuda, and CUDA_VISIBLE_DEVICES=1"):
        sweep((1, 1), named)


def test_every_process_sees_its_card_and_plans_with_its_share(sweep, tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "unit = json.loads(Path(sys.argv[1]).read_text())\n"
        "seen = [os.environ['CUDA_VISIBLE_DEVICES'], unit['share']]\n"
        f"Path({str(tmp_path)!r}, f'seen-{{os.getpid()}}.json').write_text(json.dumps(seen))\n"
    )
    monkeypatch.setattr(executors, "COMMAND", (sys.executable, str(script)))
    found = sweep((2.0, 2.0), workers=3)
    found.executor._start(found.left())
    for process in found.executor._team.values():
        process.process.wait(20)
    found.executor._stop(True, lambda _: None)
    assert sorted(json.loads(path.read_text()) for path in tmp_path.glob("seen-*.json")) == [
        ["0", 0.5],
        ["0", 0.5],
        ["1", 0.5],
    ]


def test_a_machine_without_gpus_plans_jobs_that_have_them(sweep, monkeypatch):
    monkeypatch.setattr(Cluster, "check", lambda _: None)
    content = {"base": {"task": "ioi", "model": "tiny", "examples": 10}, "grid": {"seed": [0]}, "executor": "slurm"}

    def seconds(gpus, **base):
        return sum(sweep((1, 1), {**content, "base": content["base"] | base, "slurm": {"gpus": gpus}}).seconds.values())

    assert seconds(1, device="cuda") == seconds(1) < seconds(0) == seconds(1, device="cpu")
    with pytest.raises(UserError, match=r"device is cuda, but slurm\.gpus is 0; give the jobs gpus: 1"):
        seconds(0, device="cuda")


def test_a_card_without_memory_left_says_what_helps(tmp_path, monkeypatch):
    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Worker, "_make", refuse)
    Worker().attempt(tmp_path, None, lambda _: None)
    message = json.loads((tmp_path / "failure.json").read_text())["message"]
    assert message.startswith("OutOfMemoryError: CUDA out of memory.; if it needs") and "fewer --workers" in message
