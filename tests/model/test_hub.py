"""Models of the hub, from a server that answers as the hub does: what is fetched, what is kept, what is said."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.support import ROOT
from tests.support.checkpoints import checkpoint
from tests.support.hub import Hub, commit

FIND = """
import sys
from acdc.errors import UserError
from acdc.model.find import find_model
try:
    print(find_model(sys.argv[1]))
except UserError as error:
    sys.exit(str(error))
"""
ACDC = "from acdc.cli import main; main()"
NEEDED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two revisions of a checkpoint, with files that are not needed."""
    out = {}
    for seed, ref in enumerate(("main", "step1000")):
        out[ref] = tmp_path_factory.mktemp(ref)
        checkpoint(out[ref], seed)
        (out[ref] / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        for name in ("consolidated.safetensors", "pytorch_model.bin", "onnx/model.safetensors", "onnx/config.json",
                     "model.fp16.safetensors", "model-00001-of-00002.safetensors", "README.md"):  # fmt: skip
            (out[ref] / name).parent.mkdir(exist_ok=True)
            (out[ref] / name).write_bytes(b"not needed")
    return out


@pytest.fixture
def hub(folders):
    with Hub() as hub:
        hub.repositories["org/model"] = dict(folders)
        yield hub


@pytest.fixture
def start(tmp_path, hub):
    """Run Python with a cache of its own; returns code, stdout and stderr."""

    def run(*arguments, endpoint=hub.address, **environment):
        environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")} | environment
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def find(start):
    """Find a model; returns its folder, or the message of the error, which is one line."""

    def run(name, **environment):
        code, out, err = start("-c", FIND, name, **environment)
        assert "Traceback" not in err, err
        if code == 0:
            return out.strip()
        *bars, message = err.splitlines()
        assert message.startswith(f"--model {name}: ") and not [b for b in bars if b and "Fetching" not in b], err
        return message.removeprefix(f"--model {name}: ")

    return run


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_only_what_is_needed_is_fetched_and_only_once(find, hub):
    found = find("org/model")
    assert hub.files() == NEEDED
    assert sorted(os.listdir(found)) == NEEDED
    hub.requests.clear()
    assert find("org/model") == found
    assert find("org/model", HF_HUB_OFFLINE="1") == found
    assert hub.requests == []


TASK = """
name: task
version: 1
source: these tests
description: the first letter again
defaults: {metric: kl, threshold: 0.01, examples: 1}
metrics: [kl]
data:
  template: "{x} {y} {z}"
  slots: {x: [a, b, c], y: [a, b, c], z: [a, b, c]}
corrupt: {redraw: [x]}
answers: {correct: " {x}"}
"""


def test_a_revision_has_weights_of_its_own(start, find, hub, folders, tmp_path):
    main, step = (digest(folders[ref] / "model.safetensors") for ref in ("main", "step1000"))
    assert main != step
    assert digest(Path(find("org/model")) / "model.safetensors") == main
    code, out, err = start("-c", ACDC, "models", "org/model@step1000")
    assert code == 0, err
    assert f"SHA-256 begins with {step}" in out
    (tmp_path / "task.yaml").write_text(TASK)
    run = ("run", "--task", "task.yaml", "--model", "org/model", "--method", "random", "--edges", "3", "--out", "run")
    code, _, err = start("-c", ACDC, *run, "--revision", "step1000")
    assert code == 0, err
    model = json.loads((tmp_path / "run" / "circuit.json").read_text())["model"]
    assert (model["name"], model["hash"]) == ("org/model@step1000", step)
    code, out, _ = start("-c", ACDC, "models", HF_HUB_OFFLINE="1")
    assert code == 0
    listed = [line.split()[0] for line in out.splitlines() if "Hugging Face cache" in line]
    assert listed == ["org/model", "org/model@step1000"]


def test_shards_are_fetched_where_there_is_no_whole_file(find, hub, folders, tmp_path):
    sharded = shutil.copytree(folders["main"], tmp_path / "sharded")
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {name: shards[i % 2] for i, name in enumerate(tensors)}
    for shard in shards:
        save_file({n: tensors[n] for n, of in index.items() if of == shard}, sharded / shard, {"format": "pt"})
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    hub.repositories["org/sharded"] = {"main": sharded}
    found = find("org/sharded")
    assert hub.files() == sorted([*shards, *NEEDED[:1], "model.safetensors.index.json", *NEEDED[2:]])
    os.unlink(os.path.join(found, shards[1]))
    assert f"a part of it, without {shards[1]}" in find("org/sharded", HF_HUB_OFFLINE="1")
    assert find("org/sharded") == found
    assert os.path.exists(os.path.join(found, shards[1]))


def test_an_adapter_is_fetched_without_the_model_beside_it(find, hub, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    needed = ["adapter_config.json", "adapter_model.safetensors"]
    for name in (*needed, "adapter_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"{}")
    hub.repositories["org/adapter"] = {"main": folder}
    found = find("org/adapter")
    assert sorted(os.listdir(found)) == needed
    assert find("org/adapter", HF_HUB_OFFLINE="1") == found
    (folder / needed[1]).unlink()
    hub.repositories["org/half"] = {"main": folder}
    assert find("org/half") == "the repository has no adapter_model.safetensors"


TOKENIZER = """
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained("org/model")
"""


def test_a_cache_with_the_tokenizer_alone_gets_the_rest(start, find, hub):
    """As transformers' own loading of a tokenizer leaves the cache."""
    code, _, err = start("-c", TOKENIZER)
    assert code == 0, err
    message = find("org/model", HF_HUB_OFFLINE="1")
    assert "the Hugging Face cache has only a part of it, without model.safetensors" in message
    assert "HF_HUB_OFFLINE" in message
    hub.requests.clear()
    found = find("org/model")
    assert hub.files() == ["model.safetensors"]
    assert set(NEEDED) <= set(os.listdir(found))


def test_a_download_that_ends_early_is_not_taken_for_a_whole(find, hub):
    hub.refusals[f"/org/model/resolve/{commit('main')}/tokenizer_config.json"] = (403, {})
    assert "the hub doesn't give it (403 Forbidden" in find("org/model")
    assert "model.safetensors" not in hub.files()
    hub.refusals.clear()
    assert set(os.listdir(find("org/model"))) == set(NEEDED)


def test_without_gpt2_a_run_takes_the_bundled_model_and_says_so(start, hub, folders, tmp_path):
    """The cache has GPT-2's tokenizer, and nothing can be fetched."""
    hub.repositories["gpt2"] = {"main": folders["main"]}
    code, _, err = start("-c", TOKENIZER.replace("org/model", "gpt2"))
    assert code == 0, err
    run = ("run", "--task", "greater-than", "--examples", "4", "--threshold", "1", "--out", "run")
    code, _, err = start("-c", ACDC, *run, HF_HUB_OFFLINE="1")
    assert code == 0, err
    assert "note: gpt2 is neither in the Hugging Face cache nor reachable; this is the bundled model tiny" in err
    assert json.loads((tmp_path / "run" / "circuit.json").read_text())["model"]["name"] == "tiny"


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/model is restricted"}
HOW = "the repository is gated: ask for access on the hub's page of org/model, then run `hf auth login`"
INVALID = {"X-Error-Message": "Invalid credentials in Authorization header"}
NOT_HERE = "it is neither a local directory nor in the Hugging Face cache, and the hub doesn't give it"
REFUSALS = {
    "gated": ("/api/models/org/model", 403, GATED, HOW),
    "gated, without a token": ("/api/models/org/model", 401, GATED, HOW),
    "gated files only": ("/org/model/resolve", 403, GATED, HOW),
    "private": (
        "/api/models/org/model",
        401,
        {"X-Error-Code": "RepoNotFound"},
        "the hub has no such model, or it is pr",
    ),
    "a token that is not valid": (
        "/api/models/org/model",
        401,
        INVALID,
        f"{NOT_HERE} (Client error '401 Unauthorized'",
    ),
    "out of order": ("/api/models/org/model", 400, {}, f"{NOT_HERE} (Bad request"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_told_apart(find, hub, case):
    start, status, headers, expected = REFUSALS[case]
    hub.refusals[start] = (status, headers)
    assert find("org/model").startswith(expected)


def test_what_the_hub_does_not_have(find, hub, folders, tmp_path):
    assert find("org/model@step7") == "the repository has no branch, tag or commit 'step7'"
    assert find("org/model@step 1000") == "the repository has no branch, tag or commit 'step 1000'"
    assert find("org/other") == "the hub has no such model, or it is private: then run `hf auth login`"
    assert "Did you mean 'tiny'?" in find("tinny")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        lacking = shutil.copytree(folders["main"], tmp_path / name)
        (lacking / name).unlink()
        hub.repositories["org/lacking"] = {"main": lacking}
        assert find("org/lacking") == f"the repository has no {name}"
    assert hub.files() == []


def test_a_hub_that_is_out_of_reach(find):
    message = find("org/model", endpoint="http://127.0.0.1:1")
    assert message.startswith(f"{NOT_HERE} ([Errno 111] Connection refused)")
    assert "Known:" not in message


@pytest.mark.parametrize("name", ["-a/b", "org/mo del", "a--b/c", "org/model@", "@main", "org/"])
def test_a_name_that_the_hub_could_not_have(find, hub, name):
    assert find(name).startswith("not a name of the hub")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["tiny@main", "smollm2@main", "here@main"])
def test_a_model_of_this_machine_has_no_revisions(find, tmp_path, name):
    (tmp_path / "here").mkdir()
    assert find(name).startswith("only Hugging Face ids have revisions")


@pytest.mark.parametrize("given", [(), ("--model", "org/model@main")])
def test_a_revision_needs_the_name_of_a_model(call, given):
    code, _, err = call("run", "--task", "ioi", "--revision", "main", *given)
    assert code == 2
    assert err == "acdc: --revision: give --model, too, as a Hugging Face id without @\n"
