"""The time left of a search, by a clock that counts what is computed: no time passes, and every machine agrees."""

from __future__ import annotations

import pytest

from acdc.io.progress import Forecast, Progress
from acdc.methods.discover import find
from acdc.model.transformer import Transformer
from acdc.patching.circuit_engine import CircuitEngine
from acdc.patching.engine import Engine
from tests.support.runs import inputs

WITHIN = 1.5
JUMPY = 2.5  # without a filter: most of the work on so small a graph is in layer 0, whose few edges mostly stay
TIMES = (0.25, 0.5, 0.75)  # of the search


class Operations:
    """A clock whose seconds are multiplications."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for name, cost in {
            "mlp": lambda model, layer, x: 2 * x.numel() * model.config.d_mlp,
            "project": lambda model, c, layer, heads, x, positions: x.numel() * model.config.d_head,
            "write": lambda model, layer, heads, z: z.numel() * model.config.d_model,
            "attend": lambda model, q, k, v, mask: 2 * q.numel() * k.shape[-2],
        }.items():
            monkeypatch.setattr(Transformer, name, self.counted(getattr(Transformer, name), cost))
        for engine in (Engine, CircuitEngine):
            monkeypatch.setattr(engine, "__init__", self.measuring(engine.__init__))

    def __call__(self):
        return self.now

    def counted(self, function, cost):
        def call(*args):
            self.now += cost(*args)
            return function(*args)

        return call

    def measuring(self, begin):
        def call(engine, model, *args):
            begin(engine, model, *args)
            name = "metric_of" if hasattr(engine, "metric_of") else "_metric"
            metric = getattr(engine, name)
            setattr(engine, name, self.counted(metric, lambda rows: rows.numel() * model.config.vocab_out))

        return call


def told(monkeypatch, tmp_path, stage, **given):
    """The factors by which the time left was wrong, and the last report of the stage."""
    options = {"model": "tiny", "examples": 10, "ablation": "corrupted", "batch": None, "dtype": "float32"}
    clock = Operations(monkeypatch)
    forecast = Forecast(clock)
    seen = []

    def show(p):
        forecast.see(p)
        if isinstance(p, Progress) and p.stage == stage:
            seen.append((clock.now, forecast.left(), p))

    find(inputs(**{**options, **given}), tmp_path, show)
    begin, end = seen[0][0], clock.now
    out = []
    for share in TIMES:
        now, left, _ = next(one for one in reversed(seen) if one[0] <= begin + share * (end - begin))
        out.append(left / (end - now))
    return out, seen[-1][2]


@pytest.mark.parametrize(
    ("given", "within"), [({"task": "ioi"}, JUMPY), ({"task": "ioi", "prefilter": "eap-ig:0.2"}, WITHIN)]
)
def test_the_time_left_of_acdc(monkeypatch, tmp_path, given, within):
    factors, last = told(monkeypatch, tmp_path, "search", **given)
    assert all(1 / within < factor < within for factor in factors), factors
    assert last.done == pytest.approx(last.total)


def test_the_time_left_of_elimination(monkeypatch, tmp_path):
    factors, _ = told(monkeypatch, tmp_path, "elimination", task="ioi", faithfulness=0.8)
    assert all(1 / WITHIN < factor < WITHIN for factor in factors), factors
