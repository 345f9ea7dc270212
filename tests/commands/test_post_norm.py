"""A run of a model that normalises the heads of a layer together, as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.checkpoints import of_family
from tests.support.tasks import TASK


@pytest.mark.parametrize("search", [("--threshold", "0.01"), ("--faithfulness", "0.8")])
def test_a_circuit_of_gemma(acdc, tmp_path, search):
    of_family("gemma2, soft caps", tmp_path / "model")
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}  # Gemma's own would change how text is split
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(kind))
    (tmp_path / "mine.yaml").write_text(TASK)
    options = ("--task", "mine.yaml", "--model", "./model", "--dtype", "float64")
    result = acdc("run", *options, *search, "--out", "out")
    assert result.code == 0, result.err
    circuit = json.loads(Path("out/circuit.json").read_text())
    assert circuit["model"]["family"] == "gemma2" and 0 < len(circuit["edges"]) < 110
    again = acdc("evaluate", "out", "--json")
    assert again.code == 0, again.err
    refused = acdc("explain", "out/circuit.json")
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "--model model: normalises the sum of a layer's heads" in refused.err
