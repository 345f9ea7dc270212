"""What the benchmarks count and compare; no times."""

from __future__ import annotations

from dataclasses import replace
from html import escape

import torch

from acdc.files.circuit import read_circuit
from acdc.methods.acdc import Options
from acdc.report.picture import to_svg
from tests.benchmarks.measure import ours
from tests.benchmarks.models import LLAMA, QUICK, make
from tests.benchmarks.record import Launches, Watch
from tests.benchmarks.same import compare, drawn
from tests.support import ROOT

GOLDEN = ROOT / "configs" / "golden" / "ioi.json"


def test_operations_that_compute_are_counted_and_views_are_not():
    x = torch.ones(4, 6)
    with torch.inference_mode(), Launches() as launches:
        y = x.T[1:3].unsqueeze(0).expand(2, -1, -1)  # views
        assert launches.count == 0
        (y + 1).sum()
        torch.nn.functional.linear(x, x)  # a product, in inference mode one composite operation
        torch.empty(3)
    assert launches.count == 3


def test_llamas_shapes_are_those_of_the_models():
    """Llama 3.2 1B: 16 layers of 32 heads; 3.1 8B: 32 of 32; 386,713 and 1,592,881 edges with MLPs."""
    assert [s.model.graph().n_edges for s in LLAMA] == [386_713, 1_592_881]
    (quick,) = (s for s in QUICK if s.llama)
    small = replace(quick, layers=2, heads=2, width=16, hidden=24, vocab=500, prompts=3, threshold=1e-5)
    with torch.inference_mode():
        model, batch = make(small)
        assert model.config.gated and model.config.norm == "rms" and model.config.rotary == 8
        circuit, _ = ours(model, batch, Options(small.threshold), Watch())
    assert 0 < circuit.n_edges < circuit.graph.n_edges


def test_the_edges_of_a_run_are_compared_with_those_of_a_picture(tmp_path):
    assert len(drawn(ROOT / "docs" / "ioi-smollm2.svg")) == 189
    picture = tmp_path / "golden.svg"
    picture.write_text(to_svg(read_circuit(GOLDEN).circuit()))
    n = len(drawn(picture))
    assert compare(GOLDEN, picture) == (f"{n} of the CPU's {n} edges, and 0 others", True)
    name = max(drawn(picture))
    picture.write_text(picture.read_text().replace(f'id="{escape(name)}"', 'id="m0-&gt;m1000"'))
    text, same = compare(GOLDEN, picture)
    assert not same and text.startswith(f"{n - 1} of the CPU's {n} edges, and 1 others\n")
    assert f"{name}: only here, change 0." in text and "m0->m1000: only on the CPU" in text
