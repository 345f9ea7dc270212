"""The parameters of a circuit's components are the right slices of Hugging Face's own tensors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from acdc.commands.export import convert
from acdc.files.circuit import CircuitFile, write_circuit
from acdc.files.eap_ig import to_eap_ig
from acdc.files.parts import ModelPart
from acdc.graph.circuit import Circuit
from acdc.graph.graph import QKV, Graph
from acdc.model.checkpoint import open_checkpoint
from acdc.model.load import load_model
from acdc.model.transformer import Transformer
from acdc.task.load import load_task
from acdc.task.tokenize import Split, make_data
from tests.support import ROOT
from tests.support.assets import smollm2
from tests.support.checkpoints import FAMILIES, of_family
from tests.support.circuits import file_of
from tests.support.docs import blocks
from tests.support.oracle import Naive, forward
from tests.support.random_models import random_prompts

ALIKE = ("granite", "starcoder2", "gemma3", "olmo3")  # have the parameters of other families
TOLERANCE = 1e-4  # Hugging Face's norms compute in float32


def of_model(circuit: Circuit, family: str) -> CircuitFile:
    file = file_of(circuit)
    return file.model_copy(update={"model": file.model.model_copy(update={"family": family})})


def components_of(circuit: Circuit, family: str, model: str) -> dict:
    return json.loads(convert(of_model(circuit, family), "parameters", model=model))["components"]


def where(entry: dict) -> tuple[slice, ...]:
    return (slice(None),) * entry.get("axis", 0) + (slice(entry.get("start"), entry.get("end")),)


def circuit_of(graph: Graph, *edges: str, direct: tuple[str, ...] | None = None) -> Circuit:
    kept = np.zeros_like(graph.edges)
    for edge in edges:
        kept[graph.parse_edge(edge)] = True
    mask = None
    if direct is not None:
        mask = np.isin(np.arange(len(graph.receivers)), [graph.receiver_index[name] for name in direct])
    return Circuit(graph, kept, mask)


class Both:
    """A random model of a family: Hugging Face's module, ours, and the logits of each with something set to zero."""

    def __init__(self, name: str, folder) -> None:
        self.theirs = of_family(name, folder)
        self.parameters = dict(self.theirs.named_parameters())
        self.family = self.theirs.config.model_type
        self.ours: Transformer = load_model(str(folder), "cpu", "float64").transformer
        self.graph = self.ours.config.graph()
        self.found = components_of(Circuit.full(self.graph), self.family, str(folder))
        self.oracle = Naive(self.ours, random_prompts(1, self.ours, batch=2), "kl", "zero")

    def without_parameters(self, entries) -> torch.Tensor:
        before = {entry["name"]: self.parameters[entry["name"]].detach().clone() for entry in entries}
        with torch.no_grad():
            for entry in entries:
                self.parameters[entry["name"]][where(entry)] = 0
            logits = self.theirs(self.oracle.tokens).logits
            for name, tensor in before.items():
                self.parameters[name].copy_(tensor)
        return logits

    def without_component(self, name: str) -> torch.Tensor:
        kept = {self.graph.edge_name(s, r) for s, r in np.argwhere(self.graph.edges)}
        kept = {edge for edge in kept if not edge.startswith(f"{name}->")}
        final = forward(self.ours, self.graph, self.oracle.tokens, self.oracle.pad, self.oracle.ablated, kept)[1]
        return self.oracle.logits(final)

    def without_reading(self, x: str, layer: int, heads: list[int]) -> torch.Tensor:
        """Logits if the query, key or value `x` of some heads is 0 at all positions."""
        weights = self.ours.weights
        names = [f"layers.{layer}.{x}.{kind}" for kind in ("weight", "bias")]
        before = {name: weights[name] for name in names}
        for name in names:
            weights[name] = weights[name].clone()
            weights[name][heads] = 0
        final = forward(self.ours, self.graph, self.oracle.tokens, self.oracle.pad, None, set())[1]
        weights.update(before)
        return self.oracle.logits(final)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith(ALIKE)])
def test_setting_the_parameters_to_zero_removes_the_component(tmp_path, name):
    both = Both(name, tmp_path)
    whole = both.without_parameters([])
    for head in range(4):
        node = f"a1.h{head}"
        of = {x: [entry for entry in both.found[node] if entry["what"] == x] for x in "qkvo"}
        removed = both.without_parameters(of["o"])
        assert difference(removed, both.without_component(node)) < TOLERANCE < difference(removed, whole), node
        for x in QKV:
            (sharing,) = {tuple(entry.get("shared_with", ())) for entry in of[x]}
            heads = [int(other.removeprefix("a1.h")) for other in (node, *sharing)]
            removed = both.without_parameters(of[x])
            expected = both.without_reading(x, 1, heads)
            assert difference(removed, expected) < TOLERANCE < difference(removed, whole), (node, x)
    for node in ("m0", "m1"):
        removed = both.without_parameters(both.found[node])
        assert difference(removed, both.without_component(node)) < TOLERANCE < difference(removed, whole), node


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith(ALIKE)])
def test_the_slices_of_all_heads_tile_the_tensors(tmp_path, name):
    both = Both(name, tmp_path)
    slices, named = {}, set()
    for entries in both.found.values():
        named |= {entry["name"] for entry in entries}
        for entry in entries:
            if "axis" in entry:
                slices.setdefault((entry["name"], entry["axis"]), set()).add((entry["start"], entry["end"]))
    for (parameter, axis), places in slices.items():
        starts, ends = zip(*sorted(places), strict=True)
        assert (0, *ends) == (*starts, both.parameters[parameter].shape[axis]), parameter
    axes = {parameter: axis for parameter, axis in slices}
    assert len(axes) == len(slices)  # no tensor is cut along two axes
    outputs = ("attn.c_proj.bias", "out_proj.bias", "dense.bias", "o_proj.bias")  # of no head
    nobody = ("norm", "ln_", "lm_head", "embed_out")
    left = {p for p in both.parameters if not any(some in p for some in nobody) and not p.endswith(outputs)}
    assert named == left


def test_only_what_the_circuit_reads_and_writes_counts(tmp_path):
    of_family("llama, grouped, tied", tmp_path)
    graph = Graph(2, 4)
    edges = ("input->a0.h1<v>", "a0.h1->m1", "input->a1.h0<q>", "a1.h0->logits", "m1->logits")

    def parts(circuit):
        found = components_of(circuit, "llama", str(tmp_path))
        return found, {name: [entry.get("what") for entry in entries] for name, entries in found.items()}

    found, parts_of = parts(circuit_of(graph, *edges))
    assert parts_of == {"input": [None], "a0.h1": ["v", "o"], "a1.h0": ["q", "o"], "m1": [None] * 3}
    at = "model.layers.0.self_attn."
    assert found["a0.h1"] == [
        {"name": f"{at}v_proj.weight", "axis": 0, "start": 0, "end": 4, "what": "v", "shared_with": ["a0.h0"]},
        {"name": f"{at}o_proj.weight", "axis": 1, "start": 4, "end": 8, "what": "o"},
    ]
    assert found["input"] == [{"name": "model.embed_tokens.weight", "shared_with": ["logits"]}]
    _, parts_of = parts(circuit_of(graph, *edges, direct=("a0.h1<v>",)))  # the query of a1.h0 is removed
    assert parts_of == {"input": [None], "a0.h1": ["v", "o"], "a1.h0": ["o"], "m1": [None] * 3}


@pytest.mark.parametrize("model", ["or-gate", "tracr-reverse"])
def test_a_model_in_our_own_format_has_our_names(model):
    ours = load_model(model, "cpu", "float64")
    c = ours.transformer.config
    file = of_model(Circuit.full(c.graph()), "acdc")
    found = json.loads(convert(file, "parameters", model=model))
    assert found["names"] == "acdc"
    shapes = c.shapes()
    for name, entries in found["components"].items():
        for entry in entries:
            assert entry["name"] in shapes
            if name.startswith("a"):
                head = int(name.partition(".h")[2])
                assert (entry["axis"], entry["start"], entry["end"]) == (0, head, head + 1)
    first = "input" if "input" in found["components"] else "tok"
    assert found["components"][first][0] == {"name": "token.weight"}
    n_head = sum(math.prod(shapes[f"layers.0.{x}"]) for x in ("q.weight", "q.bias")) // c.n_heads
    assert n_head == (c.d_model + 1) * c.d_head


def test_what_is_refused(tmp_path, call):
    of_family("gpt_neo, windows", tmp_path / "neo")
    full = of_model(Circuit.full(Graph(2, 4)), "gpt2")
    path = tmp_path / "circuit.json"
    write_circuit(path, full)
    (tmp_path / "eap.json").write_text(to_eap_ig(Circuit.full(Graph(2, 4)), 16))
    missing = full.model.model_copy(update={"name": "./mine"})
    write_circuit(tmp_path / "mine.json", full.model_copy(update={"model": ModelPart(**missing.model_dump())}))
    cases = {
        ("circuit.json",): "the circuit's graph has 2 layers, 4 heads, 110 edges; that of tiny has 4 layers",
        ("circuit.json", "--model", "neo"): "family is gpt_neo, that of the circuit's model is gpt2",
        ("circuit.json", "--model", "./nothing"): "--model ./nothing: no such directory",
        ("mine.json",): "no such directory",
        ("circuit.json", "--task", "ioi"): "--task: is for a file in EAP-IG's format",
        ("eap.json",): "give --model MODEL",
        ("eap.json", "--model", "neo", "--width", "3"): "--width: only for pictures",
    }
    for arguments, message in cases.items():
        code, out, err = call("export", *arguments, "--to", "parameters")
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, (arguments, err)
    code, out, err = call("export", "eap.json", "--model", "neo", "--to", "parameters")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "eap.parameters.json").read_text())["family"] == "gpt_neo"


@pytest.mark.slow(minutes=1)
def test_the_example_of_the_docs_lowers_gender_bias_and_little_else(tmp_path, call):
    """`pytest -s` prints the figures of docs/methods.md."""
    smollm2()
    page = ROOT / "docs" / "methods.md"
    for line in blocks("sh", page)[-1].splitlines():
        code, _, err = call(*line.split()[1:])
        assert code == 0, err
    checkpoint = open_checkpoint("smollm2")
    model = checkpoint.read(torch.float32)
    data = make_data(load_task("gender-bias"), checkpoint.tokenizer, 50, 0)
    text = torch.tensor([checkpoint.tokenizer.encode((ROOT / "README.md").read_text(encoding="utf-8")[:4000])])

    def measured(split: Split) -> tuple[float, float, float]:
        """Mean preference for the stereotype in logits, share of prompts with one, and loss on other text."""
        with torch.no_grad():
            logits = model(torch.from_numpy(split.clean)).logits[:, -1]
            right, wrong = (logits.gather(1, torch.from_numpy(x[:, :1])) for x in (split.correct, split.wrong))
            bias = right - wrong
            return float(bias.mean()), float((bias > 0).float().mean()), float(model(text, labels=text).loss)

    before = measured(data.held_out)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    she, he = (checkpoint.tokenizer.encode(f"said {x}")[-1] for x in ("she", "he"))
    names = {"json": json, "torch": torch, "model": model, "she": she, "he": he}
    exec(blocks("python", page)[-1], names | {"prompts": torch.from_numpy(data.discovery.clean)})
    after = measured(data.held_out)
    print(*(f"bias {bias:.3f}, {share:.0%}, loss {loss:.4f}" for bias, share, loss in (before, after)), sep="\n")
    trained = json.loads((tmp_path / "gender" / "circuit.parameters.json").read_text())["components"]
    n_changed = 0
    for name, p in model.named_parameters():
        own = [e for c, entries in trained.items() for e in entries if e["name"] == name and c != "input"]
        outside = p.detach() != old[name]
        n_changed += int(outside.sum())
        for entry in own:
            outside[where(entry)] = False
        assert not outside.any(), name
    print(f"{n_changed:,} of {sum(p.numel() for p in old.values()):,} parameters, text of {text.numel()} tokens")
    assert before[0] > 0.5 and after[0] < 0.3 * before[0]
    assert abs(after[2] - before[2]) < 0.01
