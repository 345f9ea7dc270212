"""Optional real assets, brought by `make assets`: skipped with a reason where absent, never absent in CI."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("ACDC_ASSETS") or Path(__file__).parent.parent / ".assets")


def gpt2_tokenizer() -> Path:
    """The folder of GPT-2's vocab.json and merges.txt."""
    folder = FOLDER / "gpt2-tokenizer"
    if not (folder / "vocab.json").is_file():
        if os.environ.get("ACDC_CI"):
            pytest.fail(f"{folder} is missing in CI; `make assets` brings it")
        pytest.skip(f"{folder} is missing; `make assets` brings GPT-2's tokenizer")
    return folder
