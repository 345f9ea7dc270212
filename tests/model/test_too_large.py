"""What is larger than it says, or than memory, is refused by its header: with the numbers, and before it is read."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from acdc.errors import ModelError
from acdc.model import load
from acdc.model.checkpoint import Checkpoint, open_checkpoint
from acdc.model.load import load_model, pick_device
from acdc.setup.config import resolve
from acdc.setup.inputs import load as load_inputs
from tests.support.gguf import TOKENS, write

gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs gguf")


@gguf
@pytest.mark.parametrize("header", [b"", b"GGUF", b"GGUF" + b"\x03\0\0\0" + b"\xff" * 16])
def test_a_sparse_file_without_a_header_is_refused_at_once(tmp_path: Path, header: bytes) -> None:
    importlib.import_module("gguf")  # takes longer than the test
    path = tmp_path / "m.gguf"
    path.write_bytes(header)
    os.truncate(path, 20_000_000_000)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"m\.gguf"):
        load_model(str(path))
    assert time.monotonic() - started < 1


@gguf
def test_a_file_with_more_than_its_tensors_is_refused_at_once(tmp_path: Path) -> None:
    import transformers

    sizes = {"vocab_size": len(TOKENS), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 96}
    path = write(tmp_path / "m.gguf", "gpt2", transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)))
    open_checkpoint(str(path))
    os.truncate(path, 20_000_000_000)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"holds 19,999,\d+,\d+ bytes behind its tensors"):
        load_model(str(path))
    assert time.monotonic() - started < 1


def test_a_model_larger_than_memory_is_one_message_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four layers of 257 billion weights, of 4 bytes each; nothing is hashed, and no prompt is drawn."""
    monkeypatch.setattr(Checkpoint, "hash", lambda _: pytest.fail("hashed"))
    tiny = open_checkpoint("tiny")
    huge = replace(tiny, sizes=replace(tiny.sizes, d_mlp=1_000_000_000))
    says = r"--model tiny: its 1,028,0[\d,]+ weights take 4,112\.\d GB in float32, and \d[\d,.]* GB of memory are"
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "examples": 100_000}, None, None)
    started = time.monotonic()
    for refused in (lambda: load_model(huge, "cpu"), lambda: load_inputs(config, task, of=huge)):
        with pytest.raises(ModelError, match=says):
            refused()
    assert time.monotonic() - started < 5


def test_a_device_that_is_not_there_is_one_short_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError) as error:
        pick_device("mps")
    assert str(error.value).startswith("--device mps: not on this machine") and len(str(error.value)) < 100
