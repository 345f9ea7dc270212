"""How much memory a run takes is known before: by hand on a small model, and measured on a larger one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

from acdc.model.config import ModelConfig
from acdc.model.find import BUNDLED
from acdc.patching.activations import TABLE_BYTES, prepare
from acdc.report.run import taken
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from acdc.setup.memory import LOADING, PROCESS, Sizes, default_memory, expected, prompts_at_once
from tests.support.random_models import random_model, random_prompts

GPT2 = ModelConfig(12, 12, 768, 64, 3072, 1024, 50257, 50257)


def config(**given):
    return resolve({"task": "ioi", "model": "tiny", "device": "cpu", **given}, None, None)[0]


def of(model, prompts=3, positions=5, live=4, rows=3, itemsize=4, paired=True):
    return Sizes(model, itemsize, prompts, positions, live, rows, paired)


def test_weights_of_gpt2():
    """124,439,808 parameters; scales and shifts of 25 norms are folded away, and the head is not tied."""
    assert of(GPT2).weights == 4 * (124_439_808 - 25 * 2 * 768 + 50257 * 768 + 50257)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [{}, {"d_mlp": 0}, {"split_position": True}, {"n_heads": 3}, {"rotary": 4}])
def test_sizes_are_those_of_the_tensors(sizes, dtype):
    model = random_model(0, dtype, **sizes)
    prompts = random_prompts(0, model, batch=6)
    tokens = torch.as_tensor(prompts.clean)
    run, residual = model.run(tokens, torch.as_tensor(prompts.pad))
    estimate = of(model.config, 6, tokens.shape[1], 3, itemsize=dtype.itemsize)
    assert estimate.weights == sum(x.nbytes for x in model.weights.values())
    assert estimate.activations(6) == sum(getattr(run, f.name).nbytes for f in fields(run))
    assert estimate.residual(6) == residual.nbytes
    senders = len(model.config.graph().senders)
    written = torch.cat([x for _, x in model.written_by(run, senders, lambda _, x: x)])
    assert estimate.table(6) == written[:, :, -3:].numel() * dtype.itemsize
    assert estimate.stream(6) == residual[0, :, -3:].numel() * dtype.itemsize


def test_what_is_bounded_stays_bounded():
    few, many = (of(GPT2, prompts=n, positions=15, live=13, rows=n) for n in (100, 1000))
    assert many.cache(1000) == 10 * few.cache(100)
    search = [sizes.working_set("acdc", sizes.prompts) for sizes in (few, many)]
    assert search[1] < 6 * search[0]  # not 10: batches and differences are bounded
    assert many.table(1000) == few.table(100) == TABLE_BYTES
    bounded = ("eap", "eap-ig", "relp", "information-flow-routes", "edge-patching", "causal-mediation", "edge-pruning")
    for method in (*bounded, "diffmask"):
        assert many.working_set(method, 1000) == few.working_set(method, 100) < 3e9


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
@pytest.mark.parametrize("sizes", [{}, {"d_mlp": 0}, {"split_position": True}, {"n_heads": 3}])
def test_the_runs_are_what_they_are_said_to_be(sizes, ablation):
    model = random_model(0, torch.float32, **sizes)
    runs = prepare(model, random_prompts(0, model, batch=40), ablation)
    there = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors(runs)}
    said = of(model.config, prompts=40, rows=40, paired=ablation == "corrupted").cache(40)
    assert said <= sum(there.values()) <= 1.05 * said


def tensors(runs):
    each = [runs.residual, *(getattr(runs.clean, f.name) for f in fields(runs.clean))]
    return [*each, *(getattr(runs.ablated, f.name) for f in fields(runs.ablated))]


def test_the_largest_moment_counts():
    prompts = random_prompts(0, random_model(0), batch=50, n_pos=8)
    at = {
        m: expected(config(method=m, threshold=0.1), GPT2, prompts)
        for m in ("acdc", "eap-ig", "edge-patching", "random")
    }
    assert at["random"] == min(at.values()) >= int(PROCESS + LOADING * of(GPT2).weights)
    assert expected(config(prefilter="eap-ig:0.1"), GPT2, prompts) == max(at["acdc"], at["eap-ig"])
    every_logit = config(threshold=0.1).model_copy(update={"metric": "l2"})  # of all candidates: 240 MB and more
    assert expected(every_logit, GPT2, prompts) == at["acdc"]
    assert expected(config(), GPT2, prompts, halves=1) <= at["acdc"]
    assert expected(config(), GPT2, prompts, device="cuda") == at["acdc"] - PROCESS


def test_memory_decides_how_many_prompts_are_held():
    prompts = random_prompts(0, random_model(0), batch=2000, n_pos=64)
    few = [prompts_at_once(config(), GPT2, prompts, gigabytes * 1e9) for gigabytes in (0.5, 4, 8, 12, 1000)]
    assert few[0] == 1 and few[-1] is None
    assert few[:-1] == sorted(set(few[:-1])) and few[-2] < 2000
    for part, gigabytes in zip(few[1:-1], (4, 8, 12), strict=True):  # as many as fit, and not one more
        needed = [expected(config(part=n), GPT2, prompts) for n in (part, part + 1)]
        assert needed[0] <= 0.8 * gigabytes * 1e9 < needed[1]


def test_by_default_half_of_the_memory_whatever_is_free(monkeypatch):
    """The config, and so the run's folder, must not depend on what other processes use."""
    for free in (9e12, 1e9):
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: SimpleNamespace(total=10e12, available=free))
        assert default_memory(torch.device("cpu")) == 5e12


def test_a_run_says_what_it_expects_and_what_it_took(call, tmp_path):
    run = ("run", "--task", "or-gate", "--model", "or-gate", "--out", "run")
    code, _, err = call(*run)
    assert code == 0 and err.count("\n") == 1
    cost = json.loads((tmp_path / "run" / "metrics.json").read_text())["cost"]
    assert err == f"memory: about {cost['expected_memory_mb'] / 1e3:.1f} GB\n"
    said = f"memory: {cost['peak_memory_mb'] / 1e3:.1f} GB taken (expected: {cost['expected_memory_mb'] / 1e3:.1f})"
    assert taken([tmp_path / "run"]) == said  # which is printed of a CUDA device
    assert ", more than --memory allows" in call(*run[:-1], "other", "--memory", "12MB")[2]
    given, task, _ = resolve({"task": "ioi", "model": "tiny", "device": "cpu"}, None, None)
    assert load(given, task).config.part is None
    assert load(given, task, memory=2e7).config.part == 1


# VmHWM, not getrusage's ru_maxrss: a child's ru_maxrss starts at the memory of the process that started it.
WATCHED = """
import pathlib, re, runpy
try:
    runpy.run_module("acdc.cli", run_name="__main__")
finally:
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path("peak").write_text(str(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory counts other things elsewhere")
def test_what_was_expected_is_what_it_takes(tmp_path):
    """A run of some size in a process of its own, to 40 %."""
    from transformers import GPT2Config, GPT2LMHeadModel

    vocabulary = json.loads((BUNDLED / "tiny" / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=6, n_head=6, n_embd=384, n_positions=64, vocab_size=vocabulary))
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / "tiny" / name, tmp_path / "model")
    run = "run --task greater-than --examples 200 --metric prob-diff --prefilter eap:0.003 --threshold 0.000001"
    command = [sys.executable, "-c", WATCHED, *run.split(), "--model", "model", "--out", "run"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    cost = json.loads((tmp_path / "run" / "metrics.json").read_text())["cost"]
    peak = int((tmp_path / "peak").read_text()) / 1e6
    assert peak / 1.4 < cost["expected_memory_mb"] < 1.4 * peak
