"""No tensor is made on the wrong device: a whole discovery on a simulated accelerator that computes on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from acdc.methods.acdc import Options, discover
from acdc.methods.log import Journal
from acdc.model.transformer import Transformer
from acdc.patching import metrics
from acdc.patching.activations import prepare
from acdc.patching.engine import Engine
from acdc.patching.patch import circuit_edges, patched_rows
from tests.support.random_models import random_model, random_prompts

ELSEWHERE = torch.device("meta")  # the only device besides the CPU in every build of torch
MOVES = ("_to_copy", "copy_")  # indexing with a CPU tensor would be allowed as well, but makes CUDA wait


class There(torch.Tensor):
    """A tensor that claims to be on ELSEWHERE; its values are in `here`."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, x):
        layout = {"strides": x.stride(), "storage_offset": x.storage_offset()}
        out = torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=ELSEWHERE, **layout)
        out.here = x
        return out

    def tolist(self):
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the mode")


class Accelerator(TorchDispatchMode):
    """Computes with tensors on ELSEWHERE, and refuses to mix them with CPU tensors, as CUDA does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        there = [isinstance(x, There) for x in flat]
        name = func.overloadpacket.__name__
        here = [x for x, t in zip(flat, there, strict=True) if not t and x.ndim > 0]
        if any(there) and here and name not in MOVES:
            raise RuntimeError(f"{func}: tensors on two devices; {[tuple(x.shape) for x in here]} on the CPU")
        goes = any(there)
        if kwargs.get("device") is not None:
            goes = torch.device(kwargs["device"]) == ELSEWHERE
            kwargs["device"] = torch.device("cpu")
        elif name == "copy_":
            goes = there[0]
        args, kwargs = tree_map(lambda x: x.here if isinstance(x, There) else x, (args, kwargs))
        out = func(*args, **kwargs)
        return tree_map(lambda x: There(x) if goes and isinstance(x, torch.Tensor) else x, out)


def test_the_simulated_accelerator_refuses_two_devices():
    with Accelerator():
        x = torch.ones(3, device=ELSEWHERE)
        assert (x + 1).tolist() == [2.0] * 3
        assert x.cpu().sum().item() == 3.0
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(3)


ROTARY = {"rotary": 4, "windows": (0, 3)}


@pytest.mark.parametrize(
    ("metric", "ablation", "sizes"),
    [
        ("kl", "corrupted", {}),
        ("kl", "zero", ROTARY),
        ("prob-diff", "mean", {}),
        ("nll", "corrupted", ROTARY),
        ("l2", "corrupted", {}),
        ("logit-diff", "mean", ROTARY),
    ],
)
def test_a_discovery_stays_on_its_device(monkeypatch, metric, ablation, sizes):
    monkeypatch.setattr(metrics, "SAMPLE_VOCABULARY", 0)  # so that the guess is used as well
    here = random_model(1, **sizes)
    prompts = random_prompts(1, here, pad=True, scored="two")
    expected = found(here, prompts, metric, ablation)
    with Accelerator():
        weights = {name: w.to(ELSEWHERE) for name, w in raw(here).items()}
        assert found(Transformer(here.config, weights), prompts, metric, ablation) == expected


def raw(model):
    """The weights as given to the model, which centres the unembedding."""
    w = dict(model.weights)
    w["unembed.weight"] = w["unembed.weight"].T + model.unembed_mean[:, None]
    w["unembed.bias"] = w["unembed.bias"] + model.unembed_bias_mean
    return w


def found(model, prompts, metric, ablation):
    """All decisions, and the circuit's metric by plain patching."""
    graph, journal = model.config.graph(), Journal()
    with torch.no_grad():
        runs = prepare(model, prompts, ablation)
        engine = Engine(model, graph, runs, runs.metric(metric, model), metrics.make_guess(metric, model, runs.targets))
        circuit = discover(engine, Options(0.01), journal)
        rows = patched_rows(model, graph, runs, circuit_edges(circuit, model))
        patched = float(runs.metric(metric, model)(rows).mean())
    return [(d.edge, d.kept) for d in journal.decisions], pytest.approx(patched, abs=1e-9)
