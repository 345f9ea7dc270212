"""No tensor is made on the wrong device, in a dtype that it lacks, or by an operation that gives other bits each time:
whole runs of all methods on a simulated accelerator that computes on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from acdc.commands.evaluate import evaluate
from acdc.commands.run import run
from acdc.methods import discover as discover_module
from acdc.methods.acdc import Options, discover
from acdc.methods.log import Journal
from acdc.model.transformer import Transformer
from acdc.patching import metrics, offload
from acdc.patching.activations import prepare
from acdc.patching.engine import Engine
from acdc.patching.patch import circuit_edges, patched_rows
from acdc.registry import METHODS
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support.random_models import random_model, random_prompts

ELSEWHERE = torch.device("meta")  # the only device besides the CPU in every build of torch
MOVES = ("_to_copy", "copy_")  # indexing with a CPU tensor would be allowed as well, but makes CUDA wait
# On CUDA, sums of floats in an order that differs from run to run; from PyTorch's `use_deterministic_algorithms`.
UNORDERED = (
    "cumsum", "logcumsumexp", "scatter_add", "scatter_reduce", "index_reduce", "put", "histc", "kthvalue",
    "embedding_dense_backward", "_embedding_bag", "nll_loss2d_forward", "ctc_loss", "grid_sampler_2d_backward",
)  # fmt: skip


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
    """Computes with tensors on ELSEWHERE. It refuses to mix them with CPU tensors, as CUDA does; to add floats in no
    fixed order, as CUDA does if asked for deterministic algorithms; and, if asked to, float64, as MPS does."""

    def __init__(self, float64: bool = True):
        super().__init__()
        self.float64 = float64

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
        if goes and flat and flat[0].is_floating_point() and unordered(name.rstrip("_"), args, kwargs):
            raise RuntimeError(f"{func}: has no fixed order of additions")
        out = func(*args, **kwargs)
        of_out = [x for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
        if goes and not self.float64 and any(x.dtype == torch.float64 for x in of_out):
            raise TypeError(f"{func}: this device has no float64")
        return tree_map(lambda x: There(x) if goes and isinstance(x, torch.Tensor) else x, out)


def unordered(name, args, kwargs):
    """Whether the order of additions, or of writes to one place, is left open."""
    if name in UNORDERED:
        return True
    if name == "scatter":
        return repeats(args[2], args[1])
    if name in ("index_copy", "index_add"):
        return repeats(args[2], 0)
    if name == "index_put":
        at = torch.broadcast_tensors(*(x for x in args[1] if x is not None))
        return repeats(torch.stack([x.flatten() for x in at], 1).unique(dim=0, return_inverse=True)[1], 0)
    return False


def repeats(index, dim):
    return bool((index.sort(dim)[0].diff(dim=dim) == 0).any())


def test_what_the_simulated_accelerator_refuses():
    with Accelerator():
        x = torch.ones(3, device=ELSEWHERE)
        assert (x + 1).tolist() == [2.0] * 3
        assert x.cpu().sum().item() == 3.0
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="no fixed order"):
            x.cumsum(0)
        at = torch.tensor([0, 1, 0]).to(ELSEWHERE)
        with pytest.raises(RuntimeError, match="no fixed order"):
            x.index_add(0, at, x)
        with pytest.raises(RuntimeError, match="no fixed order"):
            x.index_put((at,), x, accumulate=True)
        assert at.cumsum(0).tolist() == [0, 1, 1]
        assert x.double().dtype == torch.float64
    with Accelerator(float64=False), pytest.raises(TypeError, match="no float64"):
        torch.ones(3, device=ELSEWHERE).double()


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


def enter(self):
    self.before = torch.is_grad_enabled()
    torch.set_grad_enabled(self.before and not self.mode)


def leave(self, *_):
    torch.set_grad_enabled(self.before)


def save(tensors, path):
    save_file({name: x.cpu() for name, x in tensors.items()}, path)


def read(path, device):
    return {name: x.to(device) for name, x in load_file(path).items()}


RUNS = {method: {"method": method, "edges": 240} for method in METHODS if method != "acdc"} | {
    "acdc": {"threshold": 1.0},
    "acdc in parts": {"threshold": 1.0, "part": 1},
    "elimination": {"faithfulness": 0.5},
    "elimination in parts": {"edges": 12, "part": 1},
    "acdc by position": {"threshold": 0.1, "positions": True},
    "elimination by position": {"faithfulness": 0.5, "positions": True},
}
SLOW = ("elimination in parts", "elimination by position")


@pytest.mark.parametrize("name", [pytest.param(run, marks=[pytest.mark.slow] * (run in SLOW)) for run in RUNS])
def test_every_method_on_a_device_without_float64(monkeypatch, tmp_path, name):
    """Induction in tiny: nine scored positions in every prompt. The files equal those of the CPU up to rounding."""
    monkeypatch.setattr(metrics, "SAMPLE_VOCABULARY", 0)  # so that the guess is used as well
    monkeypatch.setattr(torch.inference_mode, "__enter__", enter)  # PyTorch has no views of wrapped tensors in it
    monkeypatch.setattr(torch.inference_mode, "__exit__", leave)
    monkeypatch.setattr(offload, "save_file", save)  # safetensors knows no wrapped tensors
    monkeypatch.setattr(offload, "load_file", read)
    monkeypatch.setattr(discover_module, "MANY", 0)  # so that acdc comes before elimination
    given = {"task": "induction", "model": "tiny", "device": "cpu", "metric": "nll", "examples": 2, **RUNS[name]}
    given |= {key: 1 for key in ("updates", "steps") if key in METHODS[given.get("method", "acdc")].options}
    config, task, _ = resolve(given, None, None)
    here = load(config, task)
    assert here.config.part == given.get("part")
    expected = run(here, tmp_path / "here")[0]
    with Accelerator(float64=False):
        weights = {name: w.to(ELSEWHERE) for name, w in raw(here.model.transformer).items()}
        model = replace(here.model, transformer=Transformer(here.model.transformer.config, weights))
        found = run(replace(here, model=model, scores={}, effects={}, _parts={}), tmp_path / "there")[0]
        once = name == "acdc"
        judged = evaluate(found, {}, None, 1, lambda _: None, config, model=model) if once else None
    assert found.method.device == "meta" and found.edges
    assert [e.label for e in found.edges] == [e.label for e in expected.edges]
    assert [e.score for e in found.edges] == pytest.approx([e.score for e in expected.edges], abs=1e-4)
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-4)
    if judged:
        assert judged.measured.circuit.value == pytest.approx(expected.metrics["held_out.circuit.nll"], abs=1e-4)
