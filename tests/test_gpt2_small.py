"""At GPT-2 small's size: prompts, a whole run, and the real model where its weights are in the cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from acdc.errors import ModelError
from acdc.files.circuit import read_circuit
from acdc.files.eap_ig import to_eap_ig
from acdc.model.find import find_model
from acdc.task.load import load_task
from acdc.task.tokenize import make_data
from tests.support.assets import gpt2_files, gpt2_tokenizer

LANGUAGE = ["greater-than", "ioi", "induction", "docstring", "gendered-pronoun", "subject-verb-agreement"]


@pytest.mark.parametrize("task", LANGUAGE)
def test_every_shipped_task_passes_its_checks_under_gpt2s_tokenizer(task):
    spec = load_task(task)
    data = make_data(spec, gpt2_tokenizer(), spec.defaults.examples, spec.defaults.seed)
    assert len(data.discovery.clean) == len(data.held_out.clean) == spec.defaults.examples


def test_gpt2s_tokenizer_is_read_from_vocab_and_merges():
    tokenizer = gpt2_tokenizer()
    assert tokenizer.vocab_size == 50257
    assert tokenizer.bos_id == 50256
    ids = tokenizer.encode("The war lasted from the year 1701 to 17")
    assert tokenizer.pieces(ids) == ["The", " war", " lasted", " from", " the", " year", " 17", "01", " to", " 17"]
    assert ids[7] == 486  # as in the ACDC paper's code


@pytest.fixture(scope="module")
def random_gpt2(tmp_path_factory):
    """A checkpoint of GPT-2 small's size with random weights, large enough that edges matter."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2-random")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(tie_word_embeddings=False))
    for name, p in model.named_parameters():
        if name.endswith("weight") and ".h." in name and ".ln_" not in name:
            torch.nn.init.normal_(p, std=0.03)
    model.lm_head.weight.data = 3 * model.transformer.wte.weight.data.clone()
    model.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(gpt2_files() / name, folder)
    return folder


@pytest.mark.slow(minutes=3)
def test_a_whole_run_at_the_default_size(random_gpt2, tmp_path):
    """The default 100 prompts, at a threshold that leaves a circuit. Time and memory are printed."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "acdc.cli", "run", "--task", "greater-than", "--model", random_gpt2, "--out", out]
    subprocess.run([*command, "--threshold", "0.003"], check=True)
    file = read_circuit(out / "circuit.json")
    assert file.graph.edges.total == 32_491
    assert file.graph.edges_with_direct.total == 32_923
    assert file.graph.edges.kept > 0
    raw = json.loads(to_eap_ig(file.circuit(), file.model.d_model))
    assert len(raw["edges"]) == 32_491
    cost = json.loads((out / "metrics.json").read_text())["cost"]
    said = f"{cost['seconds']:.0f} s, {cost['peak_memory_mb']:.0f} MB, {cost['evaluations']} evaluations"
    print(f"\n{file.graph.edges.kept} edges, {said}")
    assert cost["peak_memory_mb"] < 6000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "threshold", "low", "high"),
    [("greater-than", 0.0158489, 40, 80), ("greater-than", 0.1, 10, 25), ("ioi", 0.1, 15, 30), ("ioi", 0.0631, 30, 60)],
)
def test_published_sizes_on_the_real_model(tmp_path, task, threshold, low, high):
    """The ACDC paper's published sweeps have 59, 17, 22 and 43 edges (direct ones counted); prompts differ a little."""
    try:
        find_model("gpt2")
    except ModelError as error:
        pytest.skip(f"GPT-2's weights are not in the local cache: {error}")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "acdc.cli", "run", "--task", task, "--model", "gpt2", "--out", out]
    subprocess.run([*command, "--threshold", str(threshold)], check=True)
    assert low <= read_circuit(out / "circuit.json").graph.edges_with_direct.kept <= high
