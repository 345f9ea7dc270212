"""Every model family: Hugging Face's logits, and an engine that decides as the naive algorithm does.

`pytest tests/model/test_families.py -s -k table` prints what was measured.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from acdc.model.load import load_model
from tests.support.checkpoints import FAMILIES, float64_gemma_norm, float64_norm, of_family
from tests.support.equivalence import compare
from tests.support.random_models import random_prompts

COLUMNS = ("family", "float32", "bound", "float64", "bound", "engine = oracle", "smallest margin")
BOUNDS = {"float32": 1e-4, "float64": 1e-9}
NEO = 1e-5  # Hugging Face computes GPT-Neo's attention scores in float32 whatever the dtype
NOTE = """Logits: largest difference to Hugging Face's. GPT-Neo in float64: its attention scores are float32 there.
Engine: kept edges of those tested, ablation by corrupted, zero and mean activations; every one as the naive algorithm
decides. Margin: the least distance of a tested edge from the threshold."""
THRESHOLD = 0.02
# Families of which only the reading is new, and those whose engine they have.
FOLDED = {"phi3": "llama", "granite": "llama", "starcoder2": "llama", "olmo3": "olmo2"}


@pytest.fixture(scope="module")
def table():
    """Rows of cells; printed when all families are done."""
    rows = [list(COLUMNS)]
    yield rows
    width = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(COLUMNS))]
    print("", *("  ".join(map(str.ljust, row, width)).rstrip() for row in rows), NOTE, sep="\n")


@pytest.fixture
def exact_norms(monkeypatch):
    for kind in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Granite", "Olmo2", "Olmo3"):
        of = f"transformers.models.{kind.lower()}.modeling_{kind.lower()}.{kind}RMSNorm"
        monkeypatch.setattr(f"{of}.forward", float64_norm)
    for kind in ("Gemma2", "Gemma3"):
        of = f"transformers.models.{kind.lower()}.modeling_{kind.lower()}.{kind}RMSNorm"
        monkeypatch.setattr(f"{of}.forward", float64_gemma_norm)
    # Attention computed step by step has its softmax in float32.
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype=None: x.softmax(dim))


def difference(theirs, folder, dtype):
    """The largest difference between our logits and Hugging Face's, and its logits' size; a row is left-padded."""
    theirs, ours = theirs.to(getattr(torch, dtype)), load_model(str(folder), "cpu", dtype).transformer
    tokens = torch.randint(0, 23, (3, 12), generator=torch.Generator().manual_seed(1))
    pad = torch.tensor([0, 0, 4])
    real = torch.arange(12) >= pad[:, None]
    with torch.inference_mode():
        expected = theirs(
            tokens, attention_mask=real.long(), position_ids=(real.long().cumsum(1) - 1).clamp(min=0)
        ).logits
        found = ours.logits(ours.normalise(ours.run(tokens, pad)[1][-1]))
    assert expected[real].std() > 0.1, "logits that are all alike compare nothing"
    return float((found - expected)[real].abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_parity_table(tmp_path, exact_norms, table, name):
    row = [name]
    table.append(row)
    theirs, bounds = of_family(name, tmp_path), BOUNDS | ({"float64": NEO} if "neo," in name else {})
    found = {dtype: difference(theirs, tmp_path, dtype) for dtype in bounds}
    for dtype, bound in bounds.items():
        row += [f"{found[dtype]:.0e}", f"{bound:.0e}"]
    assert all(found[dtype] < bound for dtype, bound in bounds.items()), row
    if name.startswith(tuple(FOLDED)):
        row.append(f"as {FOLDED[name.split(',')[0]]}")
        return
    row.append("NO")
    model = load_model(str(tmp_path), "cpu", "float64").transformer
    prompts = random_prompts(0, model, batch=2, n_pos=6, first=2, pad=True)
    kept, margin = [], np.inf
    for ablation in ("corrupted", "zero", "mean"):
        circuit = compare(model, prompts, "kl", ablation, THRESHOLD, True, 7)
        scores = np.concatenate([circuit.scores.ravel(), circuit.direct_scores])
        scores = scores[~np.isnan(scores)]
        kept.append(f"{circuit.n_edges + circuit.n_direct}/{len(scores)}")
        margin = min(margin, np.abs(scores - THRESHOLD).min())
        assert 0 < circuit.n_edges < len(scores), "a circuit of all edges or of none shows little"
    row[-1:] = ["yes, " + " ".join(kept), f"{margin:.0e}"]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo, windows"])  # transformers does for GPT-NeoX's rotation
def test_a_family_without_head_dim_does_not_read_it(tmp_path, name):
    theirs = of_family(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"head_dim": 2}))
    assert difference(theirs, tmp_path, "float32") < BOUNDS["float32"]
